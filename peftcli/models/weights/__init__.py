"""The weight files of a base: which there are, what is in them, and what is wrong with them."""
