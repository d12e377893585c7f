"""Image captioning on `fastlstm.LSTM`: a frozen CNN encoder, an LSTM decoder, and what they need."""
