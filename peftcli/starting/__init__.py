"""Where a recipe comes from: a shipped one, another tool's configuration, or a few answers and a look at the data."""
