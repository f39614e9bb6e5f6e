"""`peft sweep`: a search over keys of a recipe."""
