"""What a run reports while it trains: records, meters, trackers, curves, profiles."""
