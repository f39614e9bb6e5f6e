"""From a recipe's model block to a live model and its tokenizer."""
