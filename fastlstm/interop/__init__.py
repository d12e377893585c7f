"""What other parts of PyTorch need to know of our modules and ops."""
