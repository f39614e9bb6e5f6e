"""The loop and everything around it."""
