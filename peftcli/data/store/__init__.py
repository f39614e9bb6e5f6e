"""Prepared rows on disk, their labels, and what was counted while they were written."""
