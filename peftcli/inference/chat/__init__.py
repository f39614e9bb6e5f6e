"""Talking to a causal model: the models of a chat, its turns, and the prompt that they make."""
