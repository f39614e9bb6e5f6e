"""Studies: several runs of one question, kept on disk, and what they show. They know runs, but not the loop."""
