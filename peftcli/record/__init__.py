"""What a run leaves on disk: its directory, checkpoints and random states."""
