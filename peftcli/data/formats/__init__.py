"""What a row can look like, and the example that it becomes."""
