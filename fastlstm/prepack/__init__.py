"""`prepack` and `unpack`, the prepacked layers and the formats of their weights."""
