"""`check`: each engine against the equations of the LSTM, on the user's machine."""
