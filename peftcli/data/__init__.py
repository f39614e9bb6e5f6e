"""Rows: from data files to batches of tokens."""
