"""Saving and loading adapters in this project's format, and exchanging them with other libraries."""
