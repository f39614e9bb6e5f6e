"""What a method adds to a projection or a branch."""
