"""One module for each method: its hyper-parameters, its record, and how it changes a model."""
