"""Learning-rate defaults: the evidence, its sources, and the function that computes the default for a model."""
