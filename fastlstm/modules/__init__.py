"""The modules: LSTM, LSTMCell and LayerNormLSTM, and what a call reads of them."""
