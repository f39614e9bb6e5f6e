"""Tasks: one file each, with what the rest of the program asks about it (`TaskInfo`) and its loss."""
