"""What a recipe would cost: parameter counts."""
