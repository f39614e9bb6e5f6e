"""The files beside the weights of a merged model, of `model/`, and of an exported adapter."""
