"""The oracle against torch.nn.LSTM in float64."""

import pytest
import torch
from oracle import oracle
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_oracle_agrees_with_torch(bidirectional, proj_size, bias):
    torch.manual_seed(0)
    lengths = [4, 3, 1]
    options = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    lstm = nn.LSTM(3, 5, **options).double()
    directions = 2 if bidirectional else 1
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    h_0 = torch.randn(directions, 3, proj_size or 5, dtype=torch.float64)
    c_0 = torch.randn(directions, 3, 5, dtype=torch.float64)
    output, (h_n, c_n) = lstm(pack_padded_sequence(x, torch.tensor(lengths)), (h_0, c_0))

    found = oracle(x, h_0, c_0, list(lstm.parameters()), lengths)

    expected = [pad_packed_sequence(output)[0], h_n, c_n]
    torch.testing.assert_close(list(found[:3]), expected, rtol=1e-12, atol=1e-12)
