"""Learned positions: prefixes in attention and prompts in the input."""
