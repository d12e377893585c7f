"""Frozen, pretrained CNNs, and the cache of their features."""
