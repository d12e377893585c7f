"""The captioner: encoder, decoders, loss, and the file that holds it."""
