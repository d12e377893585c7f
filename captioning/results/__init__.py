"""Scores of captions, and what they look like."""
