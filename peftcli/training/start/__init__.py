"""What a new run needs before its first step: starting values of its method, and the reference of preference tuning."""
