"""The model that leaves: the files beside the weights of a merged model, of `model/`, and of an adapter."""
