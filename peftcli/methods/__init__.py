"""The methods, one module each, behind one protocol."""
