"""Rows of the embedding tables that are trained together with any method: attaching and folding them."""
