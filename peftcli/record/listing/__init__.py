"""Runs as a list: what is below a directory, and in which state each run is. Reads text alone; imports no torch."""
