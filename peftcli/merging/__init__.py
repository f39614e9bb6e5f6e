"""Folding a change into the base weights, and verifying it."""
