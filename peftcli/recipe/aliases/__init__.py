"""Names that other tools and earlier versions of this one use for the keys of a recipe."""
