"""Saving and loading adapters, in our format and HF peft's."""
