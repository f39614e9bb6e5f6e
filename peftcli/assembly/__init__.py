"""What training and inference both start from: a recipe's model, tokenizer, anatomy, rows and task."""
