"""The torch half of the methods that need one of their own; each file is named after its method."""
