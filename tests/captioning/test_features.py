"""The feature cache: contents, name, killed runs, broken pictures, full disks, damaged files."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch

import captioning.data.images
from captioning.cnn.features import BROKEN, DONE, FeatureTable, cache_path, extract_features
from captioning.cnn.pretrained import CNNConfig, load_cnn
from captioning.data.coco import CaptionDataset, load_coco
from captioning.data.images import ImageError, load_image
from captioning.errors import CaptioningError


@pytest.fixture
def images(scenes_root, captions_of, tmp_path):
    dataset = load_coco(captions_of("val"), scenes_root / "val")
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    return [replace(i, path=tmp_path / "val" / i.path.name) for i in dataset.images]


@pytest.fixture(scope="module")
def cnn():
    return load_cnn(CNNConfig("scenes_cnn", pool="2x2"))


def extract(cnn, images, folder, **options):
    return extract_features(cnn, images, folder, "captions.json", **options, batch_size=5)


def path_of(cnn, images, folder):
    return cache_path(folder, "captions.json", cnn, images)


def test_a_cache_is_a_numpy_file_of_the_cnns_features(cnn, images, tmp_path):
    cache = extract(cnn, images, tmp_path)
    expected = cnn(torch.stack([cnn.transform(load_image(i.path)) for i in images]))
    torch.testing.assert_close(FeatureTable(CaptionDataset(images), cache).read(), expected)
    assert cache.path == path_of(cnn, images, tmp_path) and cache.state.tolist() == [DONE] * 12
    assert np.array_equal(np.load(cache.path), cache.features)
    grid = load_cnn(CNNConfig("scenes_cnn", pool="grid"))
    assert extract(grid, images[:2], tmp_path).features.dtype == torch.float16


def test_a_killed_run_continues_where_it_stopped(cnn, images, tmp_path, monkeypatch):
    whole = extract(cnn, images, tmp_path / "whole")
    load = Mock(wraps=load_image, side_effect=[DEFAULT] * 8 + [KeyboardInterrupt])
    monkeypatch.setattr(captioning.data.images, "load_image", load)
    with pytest.raises(KeyboardInterrupt):
        extract(cnn, images, tmp_path)
    state = np.load(path_of(cnn, images, tmp_path).with_suffix(".state.npy"))
    assert (state == DONE).sum() == 5
    load.reset_mock(side_effect=True)
    cache = extract(cnn, images, tmp_path)
    assert [call.args[0] for call in load.mock_calls] == [image.path for image in images[5:]]
    assert torch.equal(cache.features, whole.features)
    load.reset_mock()
    extract(cnn, images, tmp_path)
    load.assert_not_called()


def test_another_cnn_or_picture_gets_another_file_and_the_old_one_stays(cnn, images, tmp_path):
    extract(cnn, images, tmp_path)
    first = path_of(cnn, images, tmp_path)
    before, other = first.read_bytes(), load_cnn(CNNConfig("scenes_cnn", pool="avg"))
    changed, named = (load_cnn(CNNConfig("scenes_cnn", pool="2x2")) for _ in range(2))
    changed.trunk.body[0].weight.data += 1
    changed.config = replace(changed.config, fingerprint=changed.fingerprint())
    view = replace(cnn.transform, resize_size=140)
    cropped = load_cnn(CNNConfig("scenes_cnn", pool="2x2", transform=view))
    named.config = replace(named.config, name="of the same weights, but another function")
    again = [replace(image, id=image.id + 1) for image in images]
    calls = (other, changed, cropped, named), (images[:-1], images[::-1], again)
    for arguments in [(c, images) for c in calls[0]] + [(cnn, pictures) for pictures in calls[1]]:
        known, new = set(tmp_path.glob("*.npy")), extract(*arguments, tmp_path)
        state = new.path.with_suffix(".state.npy")
        assert {*tmp_path.glob("*.npy")} - known == {new.path, state}
        expected = torch.stack([arguments[0].transform.load(i.path) for i in arguments[1]])
        torch.testing.assert_close(new.features, arguments[0](expected))
    assert first.read_bytes() == before and extract(cnn, images, tmp_path).path == first


def test_broken_pictures_are_refused_or_left_out(cnn, images, tmp_path):
    images[6].path.write_bytes(images[6].path.read_bytes()[:200])
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path)
    cache = extract(cnn, images, tmp_path, on_error="skip")
    assert cache.state.tolist() == [DONE] * 6 + [BROKEN] + [DONE] * 5
    assert images[6].id not in FeatureTable(CaptionDataset(images), cache).ids
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path)  # the default, "refuse", refuses a skipped picture too
    assert extract(cnn, images, tmp_path, on_error="skip").state[6] == BROKEN


def test_a_changed_picture_is_noticed_by_its_size(cnn, images, tmp_path):
    before = extract(cnn, images, tmp_path)
    with open(images[2].path, "ab") as file:
        file.write(b" ")
    assert extract(cnn, images, tmp_path).path != before.path


def test_each_captions_file_has_a_cache_of_its_own(cnn, images, tmp_path, monkeypatch):
    path = lambda annotations: cache_path("caches", annotations, cnn, images)
    a, b = (path(tmp_path / name / "captions.json") for name in "ab")
    assert a != b and a.parent == b.parent == Path("caches")
    assert re.fullmatch(r"captions-[0-9a-f]{16}\.npy", a.name)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")  # a relative path names the same file
    assert path("captions.json") == path("../a/captions.json") == a
    assert path("captions_val.json") != a


def test_worker_processes_change_nothing(cnn, images, tmp_path):
    alone = extract(cnn, images, tmp_path / "a")
    helped = extract(cnn, images, tmp_path / "b", workers=2)
    assert torch.equal(alone.features, helped.features)


def test_a_full_disk_is_noticed_before_the_first_picture(cnn, images, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(CaptioningError, match="needs .* MB, and the disk has less"):
        extract(cnn, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


def test_a_damaged_cache_is_refused(cnn, images, tmp_path):
    path = extract(cnn, images, tmp_path).path
    for content in (b"", b"x" * 100, path.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(CaptioningError, match=f"{path} is damaged .*: delete it"):
            extract(cnn, images, tmp_path)
