"""The recipe: its schema, how it is read and checked, and the names that other tools use for its keys."""
