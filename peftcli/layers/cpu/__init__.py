"""Faster ways to compute attention, dropout and a block's rest on a CPU."""
