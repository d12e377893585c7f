"""Captioned pictures: formats, captions, words, pixels."""
