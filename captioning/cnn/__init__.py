"""Turns pictures into features with frozen, pretrained CNNs, and caches the features."""
