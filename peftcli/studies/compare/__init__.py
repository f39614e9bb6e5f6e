"""`peft compare`: which trials, at which rates and seeds, and what they cost."""
