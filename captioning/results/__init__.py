"""Scores captions, and shows them in reports, curves, sheets and attention maps."""
