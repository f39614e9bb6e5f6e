"""One file a format of rows: its columns, how a row becomes what is learnt from, and its part of the documentation."""
