"""Names that other tools and earlier versions use, and what they are called here."""
