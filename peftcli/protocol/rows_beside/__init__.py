"""Rows of the vocabulary's tables that are trained beside any method: put in place, and folded into the base."""
