"""Experts of mixtures of experts: where their weights are, and how a recipe names them."""
