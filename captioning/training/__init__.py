"""Training: what is requested, its preparation, the epochs and their steps."""
