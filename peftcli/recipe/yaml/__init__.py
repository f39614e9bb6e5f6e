"""YAML with line numbers: reading, errors, values, and writing it again."""
