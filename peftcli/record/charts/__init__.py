"""Charts as SVG: in a page, where the page's colours apply, and as files of their own."""
