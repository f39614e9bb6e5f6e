"""The process of one trial: its share of the machine, its start, its output and its end."""
