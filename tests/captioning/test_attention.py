"""Attention: the decoder's equations, that it learns where to look, and the maps that show it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioning.__main__ import main
from captioning.data.coco import CaptionDataset
from captioning.data.images import load_image
from captioning.data.vocabulary import END, PAD, START
from captioning.model.attention import AttentionDecoder
from captioning.model.captioner import Captioner
from captioning.results.attention_maps import attends, attention_maps, attention_weights, shade
from captioning.results.metrics import score_captions
from captioning.results.report import Section, write_report
from captioning.search.decoding import greedy_or_sample
from captioning.settings import DecodeConfig, ModelConfig

E, H, V, GRID = 6, 8, 12, 3
CELLS = GRID**2
CAPTIONS = torch.tensor([[START, 5, 6, 7, END], [START, 9, 5, END, PAD], [START, 4, END, PAD, PAD]])
LENGTHS = torch.tensor([5, 4, 3])


def decoder():
    torch.manual_seed(0)
    return AttentionDecoder(ModelConfig(1, V, E, H, grid=GRID)).eval()


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
    start, places = model.start(image), (model.row[:, None] + model.column).flatten(0, 1)
    torch.testing.assert_close(start.cells, image + places)
    assert start.weights.shape == (3, CELLS) and 0.05 < places.std() < 0.3
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
    found = greedy_or_sample([model.decoder.eval()], [image], DecodeConfig("greedy"))
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
    assert decoder.query.bias is None and decoder.energy.bias is None
    assert found.dtype == torch.float32 and found.std() > 0.01
    torch.testing.assert_close(found, energies.softmax(1), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def picture(data):
    return data.val.images[0].path


def test_maps_are_the_weights_of_the_decoder(attention_checkpoint, grid_cnn, picture):
    image = load_image(picture)
    view = grid_cnn.transform.view(image)
    words, features = ["a", "red", "square"], grid_cnn.encode(image)
    found = attention_weights(attention_checkpoint, features, words)
    maps = attention_maps(attention_checkpoint, view, features, words)
    assert [(m.size, word) for m, word in maps] == [((128, 128), word) for word in words]
    assert found.shape == (3, 16, 16)
    tokens = torch.tensor([[attention_checkpoint.vocabulary.index[word] for word in words]])
    with torch.no_grad():
        cells = attention_checkpoint.model.encoder.embed(grid_cnn.encode(image))
    expected = attention_checkpoint.model.decoder.attention(cells, tokens)[0]
    torch.testing.assert_close(found.flatten(1), expected)


def test_each_cell_lies_over_its_part_of_the_view(attention_checkpoint, grid_cnn, monkeypatch):
    """All attention is on the cell that differs most from the background: where the square is."""
    picture = Image.new("RGB", (200, 100), (20, 20, 20))
    # The CNN sees x from 50 to 150, so this square is at the top right.
    picture.paste((220, 40, 40), (115, 10, 135, 30))
    cells = grid_cnn.encode(picture)[0]
    differences = (cells - cells[8 * 16 + 2]).abs().sum(1)
    weights = torch.nn.functional.one_hot(differences.argmax(), 256).float()
    attention = weights.expand(1, 2, 256)
    monkeypatch.setattr(type(attention_checkpoint.model.decoder), "attention", lambda *_: attention)
    view = grid_cnn.transform.view(picture)
    ((panel, _),) = attention_maps(attention_checkpoint, view, grid_cnn.encode(picture), ["square"])
    red = panel.tobytes()[::3]
    y, x = divmod(red.index(max(red)), 128)
    assert 128 * 0.6 < x < 128 * 0.9 and 128 * 0.05 < y < 128 * 0.35


def test_shade_is_dark_where_the_weight_is_small():
    weights = torch.zeros(4, 4)
    weights[1, 3] = 0.7
    dark = shade(weights, (64, 64))
    assert dark.getpixel((56, 24)) < 30 and dark.getpixel((8, 56)) == 204
    assert shade(torch.full((4, 4), 1 / 16), (8, 8)).getextrema() == (0, 0)


def test_reports_have_maps_and_name_broken_pictures(attention_checkpoint, grid_cnn, data, tmp_path):
    images = [replace(image, path=Path("none.png")) for image in data.val.images[:1]]
    dataset = CaptionDataset(images + data.val.images[1:])
    results = {image.id: 'a red <b> "square"' for image in dataset.images}
    scores = score_captions(results, dataset.references)
    section = Section("val", "", dataset.images, results, scores)
    write_report(tmp_path / "r.html", "title", "", [section], (), attention_checkpoint, grid_cnn)
    report = (tmp_path / "r.html").read_text()
    shown, lost = report.count("<figure>"), report.count("none.png: no such file")
    assert lost and report.count('<div class="attention"') == shown - lost > 20
    assert report.count("where it looked for &quot;red&quot;") == shown - lost


def test_caption_writes_maps(attention_checkpoint, data, new_checkpoint, picture, tmp_path, capsys):
    attention_checkpoint.save(tmp_path / "attention.pt")
    new_checkpoint().save(tmp_path / "plain.pt")
    assert attends(attention_checkpoint) and not attends(new_checkpoint())
    out = tmp_path / "out.png"
    arguments = ["caption", str(tmp_path / "attention.pt"), str(picture), "--attention", str(out)]
    assert main(arguments) == 0
    with Image.open(out) as image:
        assert image.width > 1000 and len(set(image.convert("L").tobytes())) > 20
    out.unlink()
    assert main(["caption", str(tmp_path / "plain.pt"), str(picture), "--attention", str(out)]) == 1
    assert "got 1, --decoder lstm" in capsys.readouterr().err
    assert main([*arguments, str(data.val.images[1].path)]) == 1
    assert "got 2, --decoder attention" in capsys.readouterr().err and not out.exists()
