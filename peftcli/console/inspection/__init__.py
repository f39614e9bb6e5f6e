"""What `peft inspect` shows: rows and their tokens, on a terminal and as a page."""
