"""Experts of mixtures of experts: changes of one expert's weights, and the function that runs them."""
