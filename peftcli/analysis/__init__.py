"""Parameter counts, which methods fit a model, and what a saved adapter changed."""
