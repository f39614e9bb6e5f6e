"""The torch modules that methods and the loop are built from."""
