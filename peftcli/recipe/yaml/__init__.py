"""YAML: reading it with line numbers, its values, its errors, and writing it."""
