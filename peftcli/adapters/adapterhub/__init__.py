"""AdapterHub's adapters, read and written."""
