"""Writing captions: searches, and the pictures they are for."""
