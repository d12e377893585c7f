"""What computes a call: the call as a value, its checks, the engines and the choice among them."""
