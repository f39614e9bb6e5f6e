"""The nearest plain LoRA of any change of weights, and what it loses."""
