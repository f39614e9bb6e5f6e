"""What a new run takes before its first step: values for its method, and what preference tuning compares with."""
