"""What several benchmarks use, whether they are run as scripts or as modules."""
