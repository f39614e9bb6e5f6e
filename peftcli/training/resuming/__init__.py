"""Continuing a run: its inputs must be those of before, and a finished run may take more steps."""
