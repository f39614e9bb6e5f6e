"""Studies and recommendations on the screen: what was asked, progress, and tables."""
