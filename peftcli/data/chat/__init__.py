"""Conversations and how a chat template renders them."""
