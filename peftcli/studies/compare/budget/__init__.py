"""How long the runs of a comparison are, so that all of them fit a budget."""
