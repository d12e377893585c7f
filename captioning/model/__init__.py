"""The captioner: encoder, decoders, loss, checkpoint file, and the ranking by similar pictures."""
