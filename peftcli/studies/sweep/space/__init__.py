"""The space of a search: how it is written, read, checked by the recipe, and turned into changes of it."""
