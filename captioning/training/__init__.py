"""Trains captioners: the request, its preparation, the epochs, and the steps of an epoch."""
