"""Load the model and tokenizer that a recipe names."""
