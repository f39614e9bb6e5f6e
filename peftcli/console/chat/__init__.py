"""A chat on a terminal and in a pipe, and its commands."""
