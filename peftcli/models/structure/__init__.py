"""Reading the blocks of families that the table does not know."""
