"""Combining several adapters of the same base: by their factors, or by their changes of the weights."""
