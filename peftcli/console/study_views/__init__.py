"""Studies on the screen: what was asked, progress, and tables."""
