"""HF peft's adapters, read and written: one file for each method."""
