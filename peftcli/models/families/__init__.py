"""The table of model families, with one row of data for each."""
