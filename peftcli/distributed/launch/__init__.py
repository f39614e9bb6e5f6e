"""Around the launcher of processes: what it says to them and of them, and what other launchers say in variables."""
