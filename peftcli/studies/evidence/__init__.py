"""What scores of the same rows can and cannot decide: intervals, paired differences, verdicts."""
