"""Reads captioned pictures: caption files, words, batches, pixels; draws the embedded data set."""
