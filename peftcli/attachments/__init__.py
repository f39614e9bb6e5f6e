"""The torch half of each method whose attachment does more than hold parts; a file has its method's name."""
