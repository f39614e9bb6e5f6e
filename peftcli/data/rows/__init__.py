"""Rows as training sees them: views, splits, packing, streams, batches, padding."""
