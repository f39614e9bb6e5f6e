"""The recipe: schema, loading, overrides."""
