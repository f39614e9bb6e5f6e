"""Weights held in fewer bits: which quantisers there are, and how a layer of theirs is read."""
