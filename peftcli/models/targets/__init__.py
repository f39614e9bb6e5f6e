"""The modules that a recipe names by `target_modules`, and what is said of them."""
