"""What pages are made of: the shell, its style and script, tables and figures, numbers in words."""
