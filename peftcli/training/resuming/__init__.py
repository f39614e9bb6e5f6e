"""Going on with a run: the same inputs as before, and more steps for one that is done."""
