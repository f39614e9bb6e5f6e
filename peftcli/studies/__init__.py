"""Studies: several runs that answer one question, kept on disk, and their results. They know runs, but not the loop."""
