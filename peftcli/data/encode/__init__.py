"""From examples to tokens, one file a kind of example."""
