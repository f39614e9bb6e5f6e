"""From what a recipe names to records: files, archives, hub data sets, one reader a kind of file."""
