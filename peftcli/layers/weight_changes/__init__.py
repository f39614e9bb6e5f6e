"""Parts that change a projection's weight in other ways than by a low-rank product."""
