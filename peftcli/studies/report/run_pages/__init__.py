"""The page of a run: its files, its curves, its samples and counts."""
