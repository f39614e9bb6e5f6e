"""What `peft recipes`, `peft convert` and `peft init` show and ask."""
