"""The layout of each method that HF peft has: one file a method."""
