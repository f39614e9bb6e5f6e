"""A study as a table, as Markdown, as one HTML page, as pictures: all from its record."""
