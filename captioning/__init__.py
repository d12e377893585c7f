"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder and an LSTM decoder."""
