"""The table of model families: a row of data each."""
