"""Learning-rate defaults: what is known of them, where from, and the function that makes one for a model."""
