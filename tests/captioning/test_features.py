"""The feature cache: contents, going on after a kill, staleness, broken pictures, full disks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import captioning.cnn.features
import captioning.data.images
from captioning.__main__ import main
from captioning.cnn.features import (
    BROKEN,
    DONE,
    Extraction,
    FeatureCache,
    cache_key,
    cache_path,
    extract_features,
)
from captioning.cnn.frozen import CNNConfig, load_cnn
from captioning.data.datasets import CaptionedImage, load_coco
from captioning.data.images import ImageError, load_image
from captioning.errors import CaptioningError
from captioning.files.atomic import read_json, write_json


@pytest.fixture
def images(scenes_root, tmp_path) -> list[CaptionedImage]:
    dataset = load_coco(scenes_root / "annotations" / "captions_val.json", scenes_root / "val")
    shutil.copytree(scenes_root / "val", tmp_path / "val")
    return [
        CaptionedImage(i.id, tmp_path / "val" / i.path.name, i.captions) for i in dataset.images
    ]


@pytest.fixture(scope="module")
def cnn():
    return load_cnn(CNNConfig("scenes_cnn", pool="2x2"))


def extract(cnn, images, path, **options):
    return extract_features(cnn, images, path, Extraction(**options), 5)


def test_holds_what_the_cnn_says_and_is_a_safetensors_file(cnn, images, tmp_path):
    cache = extract(cnn, images, tmp_path / "f.st")
    expected = cnn(torch.stack([cnn.transform(load_image(i.path)) for i in images]))
    rows = cache.rows([image.id for image in images])
    torch.testing.assert_close(cache.read(rows), expected)
    plain = load_file(tmp_path / "f.st")
    assert set(plain) == {"features", "ids", "state"}
    np.testing.assert_array_equal(plain["features"], cache.features)
    assert cache.rows([images[3].id, 10**9]).tolist() == [3, -1]


@pytest.mark.parametrize(("pool", "dtype"), [("2x2", "float32"), ("grid", "float16")])
def test_a_new_cache_of_a_grid_is_float16_and_one_that_is_there_stays(
    pool, dtype, images, tmp_path
):
    cnn, images = load_cnn(CNNConfig("scenes_cnn", pool=pool)), images[:2]
    assert extract(cnn, images, tmp_path / "new.st").features.dtype == dtype
    for given in ("float16", "float32"):
        path, key = tmp_path / f"{given}.st", cache_key(cnn, images)
        ids = [image.id for image in images]
        FeatureCache.create(path, ids, cnn.feature_shape, given, key)
        assert extract(cnn, images, path).features.dtype == given


def test_a_killed_run_goes_on_where_it_was(cnn, images, tmp_path, monkeypatch):
    whole = extract(cnn, images, tmp_path / "whole.st")
    seen = []

    def watched(path, *args):
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(path)
        return load_image(path, *args)

    monkeypatch.setattr(captioning.data.images, "load_image", watched)
    with pytest.raises(KeyboardInterrupt):
        extract(cnn, images, tmp_path / "f.st")
    assert int((FeatureCache(tmp_path / "f.st").state == DONE).sum()) == 5
    seen.clear()
    monkeypatch.setattr(
        captioning.data.images, "load_image", lambda p, *a: seen.append(p) or load_image(p, *a)
    )
    cache = extract(cnn, images, tmp_path / "f.st")
    assert seen == [image.path for image in images[5:]]
    np.testing.assert_array_equal(cache.features, whole.features)
    seen.clear()
    extract(cnn, images, tmp_path / "f.st")
    assert not seen


def test_a_stale_cache_is_refused_and_kept(cnn, images, tmp_path):
    extract(cnn, images, tmp_path / "f.st")
    before = (tmp_path / "f.st").read_bytes()
    other = load_cnn(CNNConfig("scenes_cnn", pool="avg"))
    changed = load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
    changed.trunk.body[0].weight.data += 1
    for arguments, message in (
        ((other, images), "its pool is '2x2', expected 'avg'"),
        ((changed, images), "stale: its fingerprint"),
        ((cnn, images[:-1]), "stale: its pictures is '12 pictures"),
    ):
        with pytest.raises(CaptioningError, match=message):
            extract(*arguments, tmp_path / "f.st")
    assert (tmp_path / "f.st").read_bytes() == before


def test_broken_pictures_are_refused_or_left_out(cnn, images, tmp_path):
    images[6].path.write_bytes(images[6].path.read_bytes()[:200])
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path / "f.st")
    cache = extract(cnn, images, tmp_path / "f.st", on_error="skip")
    assert cache.state.tolist() == [DONE] * 6 + [BROKEN] + [DONE] * 5
    assert cache.rows([images[6].id]).tolist() == [-1]
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path / "f.st")  # one that skipped is not what was asked for
    assert extract(cnn, images, tmp_path / "f.st", on_error="skip").state[6] == BROKEN


def test_a_full_disk_is_noticed_before_the_first_picture(cnn, images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CaptioningError, match=r"cannot write .*No space left.*MB needed"):
        extract(cnn, images, tmp_path / "f.st")
    assert not list(tmp_path.glob("f.st*"))


def test_a_folder_that_cannot_be_made_is_told(cnn, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptioningError, match="cannot write .*Not a directory"):
        FeatureCache.create(tmp_path / "file" / "sub" / "f.st", [1], (2,), "float32", {})


def test_a_changed_picture_is_noticed_by_its_size(cnn, images, tmp_path):
    extract(cnn, images, tmp_path / "f.st")
    with open(images[2].path, "ab") as file:
        file.write(b" ")
    with pytest.raises(CaptioningError, match="stale: its pictures"):
        extract(cnn, images, tmp_path / "f.st")


def test_each_captions_file_has_a_cache_of_its_own(tmp_path, monkeypatch):
    a, b = (cache_path("caches", tmp_path / name / "captions.json") for name in "ab")
    assert a != b and a.parent == b.parent == Path("caches")
    assert a.name.startswith("captions-") and a.suffix == ".st"
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")  # however the file is called
    assert cache_path("caches", "captions.json") == cache_path("caches", "../a/captions.json") == a
    assert cache_path("caches", "captions_val.json") != a


def test_the_command_writes_where_training_looks(scenes_root, tmp_path, capsys):
    annotations = scenes_root / "annotations" / "captions_val.json"
    words = ["features", annotations, "--features", tmp_path / "caches", "--cnn", "scenes_cnn"]
    assert main([str(word) for word in words]) == 0
    path = cache_path(tmp_path / "caches", annotations)
    assert "48 features each, by scenes_cnn" in capsys.readouterr().out
    assert list((tmp_path / "caches").iterdir()) == [path]
    assert (FeatureCache(path).state == DONE).all()


def test_the_command_wants_captions_as_training_does(scenes_root, tmp_path, capsys):
    data = read_json(scenes_root / "annotations" / "captions_val.json")
    first = data["images"][0]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != first["id"]]
    write_json(tmp_path / "c.json", data)
    words = ["features", tmp_path / "c.json", "--images", scenes_root / "val", "--cnn"]
    words += ["scenes_cnn", "--features", tmp_path]
    assert main([str(word) for word in words]) == 1
    assert f"1 x no caption: {scenes_root / 'val' / first['file_name']}" in capsys.readouterr().err


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    for content in (b"", b"x" * 100, (5).to_bytes(8, "little") + b"{...}"):
        (tmp_path / "f.st").write_bytes(content)
        with pytest.raises(CaptioningError, match="is not a feature cache"):
            FeatureCache(tmp_path / "f.st")
    with pytest.raises(CaptioningError, match="cannot read "):
        FeatureCache(tmp_path / "none.st")


def test_worker_processes_change_nothing(cnn, images, tmp_path):
    alone = extract(cnn, images, tmp_path / "a.st")
    helped = extract(cnn, images, tmp_path / "b.st", workers=2)
    np.testing.assert_array_equal(alone.features, helped.features)


def test_two_processes_make_a_cache_once(scenes_root, tmp_path):
    """At the same moment: one failed where the other had moved its file, or both encoded."""
    script = """if True:
        import sys, time
        from pathlib import Path
        import captioning.cnn.features as features
        from captioning.cnn.frozen import CNNConfig, load_cnn
        from captioning.data.datasets import load_coco
        folder, me, other, annotations = Path(sys.argv[1]), *sys.argv[2:]
        images, cnn = load_coco(annotations).images[:3], load_cnn(CNNConfig("scenes_cnn"))
        read = []
        from captioning.data import images as module
        real = module.load_image
        module.load_image = lambda *args: read.append(args) or real(*args)
        for i in range(12):
            (folder / f"{i}.{me}").touch()
            while not (folder / f"{i}.{other}").exists():
                time.sleep(0)
            quietly = features.Extraction()
            cache = features.extract_features(cnn, images, folder / f"{i}.st", quietly)
            assert (cache.state == features.DONE).all()
        print(len(read))
        """
    annotations = scenes_root / "annotations" / "captions_val.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), *names, str(annotations)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for names in (("a", "b"), ("b", "a"))
    ]  # fmt: skip
    done = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], done
    assert sum(int(out) for out, _ in done) == 12 * 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".st", ".a", ".b"}


def test_a_finished_cache_is_read_where_nothing_can_be_written(cnn, images, tmp_path, monkeypatch):
    extract(cnn, images, tmp_path / "f.st")
    monkeypatch.setattr(captioning.cnn.features, "lock_files", lambda *_: pytest.fail("locked"))
    real = np.memmap

    def read_only(path, dtype, mode, *args):
        assert mode == "r"
        return real(path, dtype, mode, *args)

    monkeypatch.setattr(np, "memmap", read_only)
    assert (extract(cnn, images, tmp_path / "f.st").state == DONE).all()


def edit_header(path, change):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["features"].update(shape=[10**6, 10**6]),
        lambda h: h["features"].update(data_offsets=[10**9, 2 * 10**9]),
        lambda h: h["features"].update(data_offsets=[-8, 0]),
        lambda h: h["features"].update(shape=[3, 5]),
        lambda h: h["features"].update(shape=[12, 2.5]),
        lambda h: h["features"].update(dtype="F16"),
        lambda h: h["features"].update(dtype=[]),
        lambda h: h["state"].update(data_offsets=h["ids"]["data_offsets"], shape=[12]),
        lambda h: h.update(__metadata__=[]),
        lambda h: h.update(ids=5),
    ],
)
def test_a_damaged_cache_is_refused_and_not_made_longer(cnn, images, tmp_path, change):
    path = tmp_path / "f.st"
    extract(cnn, images, path)
    edit_header(path, change)
    before = path.read_bytes()
    for mode in ("r", "r+"):
        with pytest.raises(CaptioningError, match="f.st is not a feature cache"):
            FeatureCache(path, mode)
    assert path.read_bytes() == before


def test_a_cache_of_other_pictures_by_the_same_key_is_refused(cnn, images, tmp_path):
    extract(cnn, images, tmp_path / "f.st")
    FeatureCache(tmp_path / "f.st", "r+").ids[3] = 1000
    with pytest.raises(CaptioningError, match="stale: its tables are of other pictures"):
        extract(cnn, images, tmp_path / "f.st")


def test_a_header_nested_without_end_is_refused(tmp_path):
    text = b"[" * 100_000
    (tmp_path / "f.st").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CaptioningError, match="is not a feature cache"):
        FeatureCache(tmp_path / "f.st")
