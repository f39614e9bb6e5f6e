"""What a well-formed recipe is checked for: contradictions, which are refused, and idle keys, which are named."""
