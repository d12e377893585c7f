"""Attention maps: they show the decoder's weights at the right place of the picture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioning.__main__ import main
from captioning.data.coco import CaptionDataset
from captioning.data.images import load_image
from captioning.results.attention_maps import attends, attention_maps, attention_weights, shade
from captioning.results.metrics import score_captions
from captioning.results.report import Section, write_report


@pytest.fixture(scope="module")
def path(data):
    return data.val.images[0].path


def test_maps_are_the_weights_of_the_decoder(attentive, grid_cnn, path):
    image = load_image(path)
    view = grid_cnn.transform.view(image)
    words, features = ["a", "red", "square"], grid_cnn.encode(image)
    found = attention_weights(attentive, features, words)
    maps = attention_maps(attentive, view, features, words)
    assert [(m.size, word) for m, word in maps] == [((128, 128), word) for word in words]
    assert found.shape == (3, 16, 16)
    tokens = torch.tensor([[attentive.vocabulary.index[word] for word in words]])
    with torch.no_grad():
        cells = attentive.model.encoder.embed(grid_cnn.encode(image))
    expected = attentive.model.decoder.attention(cells, tokens)[0]
    torch.testing.assert_close(found.flatten(1), expected)


def test_each_cell_of_a_map_lies_over_its_part_of_the_view(attentive, grid_cnn, monkeypatch):
    """All attention is on the cell that differs most from the background: where the square is."""
    picture = Image.new("RGB", (200, 100), (20, 20, 20))
    # The CNN sees x from 50 to 150, so this square is at the top right.
    picture.paste((220, 40, 40), (115, 10, 135, 30))
    cells = grid_cnn.encode(picture)[0]
    differences = (cells - cells[8 * 16 + 2]).abs().sum(1)
    weights = torch.nn.functional.one_hot(differences.argmax(), 256).float()
    attention = weights.expand(1, 2, 256)
    monkeypatch.setattr(type(attentive.model.decoder), "attention", lambda *_: attention)
    view = grid_cnn.transform.view(picture)
    ((panel, _),) = attention_maps(attentive, view, grid_cnn.encode(picture), ["square"])
    y, x = divmod(int(panel.convert("RGB").tobytes()[::3].index(max(panel.tobytes()[::3]))), 128)
    assert 128 * 0.6 < x < 128 * 0.9 and 128 * 0.05 < y < 128 * 0.35


def test_shade_is_dark_where_the_weight_is_small():
    weights = torch.zeros(4, 4)
    weights[1, 3] = 0.7
    dark = shade(weights, (64, 64))
    assert dark.getpixel((56, 24)) < 30 and dark.getpixel((8, 56)) == 204
    assert shade(torch.full((4, 4), 1 / 16), (8, 8)).getextrema() == (0, 0)


def test_only_attention_decoders_attend(new_checkpoint, attentive):
    assert attends(attentive) and not attends(new_checkpoint())


def test_the_report_shows_maps_and_names_broken_pictures(attentive, grid_cnn, data, tmp_path):
    images = [replace(image, path=Path("none.png")) for image in data.val.images[:1]]
    dataset = CaptionDataset(images + data.val.images[1:])
    results = {image.id: 'a red <b> "square"' for image in dataset.images}
    scores = score_captions(results, dataset.references)
    section = Section("val", "", dataset.images, results, scores)
    write_report(tmp_path / "r.html", "title", "", [section], (), attentive, grid_cnn)
    report = (tmp_path / "r.html").read_text()
    shown = report.count("<figure>")
    lost = report.count("none.png: no such file")
    assert lost and report.count('<div class="attention"') == shown - lost > 20
    assert report.count("where it looked for &quot;red&quot;") == shown - lost


def test_caption_writes_the_attention_maps(attentive, data, new_checkpoint, path, tmp_path, capsys):
    attentive.save(tmp_path / "attention.pt")
    new_checkpoint().save(tmp_path / "plain.pt")
    out = tmp_path / "out.png"
    arguments = ["caption", str(tmp_path / "attention.pt"), str(path), "--attention", str(out)]
    assert main(arguments) == 0
    with Image.open(out) as picture:
        assert picture.width > 1000 and len(set(picture.convert("L").tobytes())) > 20
    out.unlink()
    assert main(["caption", str(tmp_path / "plain.pt"), str(path), "--attention", str(out)]) == 1
    assert "got 1, --decoder lstm" in capsys.readouterr().err
    assert main([*arguments, str(data.val.images[1].path)]) == 1
    assert "got 2, --decoder attention" in capsys.readouterr().err and not out.exists()
