"""The nearest plain LoRA to any weight change, and how much it loses."""
