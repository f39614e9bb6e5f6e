"""Several adapters of one base as one: by their factors, or by what they do to the weights."""
