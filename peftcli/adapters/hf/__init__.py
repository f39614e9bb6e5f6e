"""HF peft's files, one file a method."""
