"""What a run tells whoever watches it: records, meters, trackers, curves, profiles."""
