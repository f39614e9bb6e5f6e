"""Models: which tasks they can do, where their parts are, and loading them."""
