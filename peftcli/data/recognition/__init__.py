"""What all formats of rows share: what a format declares, the table of formats, and how one is recognised."""
