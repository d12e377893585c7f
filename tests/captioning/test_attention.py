"""The attention decoder: its equations, where it looks, and that it learns where to look."""

import pytest
import torch

from captioning.data.vocabulary import END, PAD, START
from captioning.model.attention import AttentionDecoder
from captioning.model.captioner import Captioner
from captioning.search.decoding import write_captions
from captioning.settings import DecodeConfig, ModelConfig

E, H, V, GRID = 6, 8, 12, 3
CELLS = GRID**2
CAPTIONS = torch.tensor([[START, 5, 6, 7, END], [START, 9, 5, END, PAD], [START, 4, END, PAD, PAD]])
LENGTHS = torch.tensor([5, 4, 3])


def decoder(lstm="fastlstm"):
    torch.manual_seed(0)
    return AttentionDecoder(ModelConfig(1, V, E, H, grid=GRID), lstm).eval()


def scores_of(decoder, image):
    return decoder.linear(decoder.unroll(image, CAPTIONS, LENGTHS)[0])


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randn(3, CELLS, E)


def test_weights_are_a_distribution_and_the_cells_matter(image):
    model = decoder()
    weights = model.attention(image, CAPTIONS[:, 1:])
    assert weights.shape == (3, 4, CELLS)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 4))
    assert not torch.allclose(scores_of(model, image * 2), scores_of(model, image))


def test_the_place_of_a_cell_is_its_row_and_its_column(image):
    model = decoder()
    mirrored = image.view(3, GRID, GRID, E).flip(2).reshape(image.shape)
    expected = scores_of(model, image)
    assert not torch.allclose(scores_of(model, mirrored), expected)
    model.column.data = model.column.flip(0)
    torch.testing.assert_close(scores_of(model, mirrored), expected)
    turned = image.view(3, GRID, GRID, E).transpose(1, 2).reshape(image.shape)
    model.column.data, model.row.data = model.row.data, model.column.flip(0)
    torch.testing.assert_close(scores_of(model, turned), expected)


def test_attention_finds_the_marked_cell(image):
    model = decoder()
    for weight in (model.key.weight, model.query.weight, model.row, model.column):
        weight.data.zero_()
    model.key.weight.data[:, 0] = 5.0
    model.energy.weight.data.fill_(1.0)
    image[..., 0] = -1.0
    image[torch.arange(3), torch.tensor([4, 0, 2])] = 2 * torch.eye(E)[0]
    assert model.attention(image, CAPTIONS[:, 1:2])[:, 0].argmax(1).tolist() == [4, 0, 2]


def test_learns_which_cell_decides():
    """The pictures differ only in one cell, and each has its own caption."""
    torch.manual_seed(0)
    model = Captioner(ModelConfig(4, V, 16, 24, decoder="attention", grid=GRID))
    features = torch.zeros(4, CELLS, 4)
    features[torch.arange(4), torch.tensor([0, 3, 1, 4]), torch.arange(4)] = 3.0
    captions = torch.tensor([[START, 4 + i, 8 + i, END] for i in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(features, torch.arange(4), captions, torch.full((4,), 4))[0].backward()
        optimizer.step()
    model.encoder.train()  # after 80 steps BatchNorm's running statistics are not exact yet
    image = model.encoder.embed(features)
    found = write_captions([model.decoder.eval()], [image], DecodeConfig("greedy"))
    assert [h.tokens for h in found] == captions[:, 1:].tolist()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_energies_are_those_of_the_paper(autocast):
    """The paper has tanh(key + query). The decoder computes it by a sigmoid in float32."""
    torch.manual_seed(0)
    decoder = Captioner(ModelConfig(4, V, 16, 24, decoder="attention", grid=GRID)).decoder.eval()
    decoder.energy.weight.data *= 8  # so that the attention weights of the cells differ
    image, words = torch.randn(5, GRID * GRID, 16), torch.randn(5, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        start = decoder.start(image)
        found = decoder.advance(words, start).weights
        keys, query = decoder.key(start.cells).float(), decoder.query(start.h).float()
    energies = (keys + query.unsqueeze(1)).tanh() @ decoder.energy.weight.squeeze(0)
    assert found.dtype == torch.float32 and found.std() > 0.01
    torch.testing.assert_close(found, energies.softmax(1), rtol=1e-5, atol=1e-6)
