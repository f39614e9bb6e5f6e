"""Every model type of transformers, made tiny, with every method tried on it."""
