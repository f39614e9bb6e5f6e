"""Optimizers, their parameter groups, the learning rate."""
