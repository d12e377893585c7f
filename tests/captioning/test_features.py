"""The feature cache: contents, going on after a kill, staleness, broken pictures, full disks."""

import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import captioning.cnn.features
import captioning.data.images
from captioning.__main__ import main
from captioning.cnn.features import (
    BROKEN,
    DONE,
    Extraction,
    FeatureCache,
    FeatureTable,
    cache_key,
    cache_path,
    extract_features,
)
from captioning.cnn.frozen import CNNConfig, load_cnn
from captioning.data.datasets import CaptionDataset, CaptionedImage, load_coco
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


def test_holds_what_the_cnn_says_and_is_a_file_of_torch(cnn, images, tmp_path):
    cache = extract(cnn, images, tmp_path / "f.pt")
    expected = cnn(torch.stack([cnn.transform(load_image(i.path)) for i in images]))
    torch.testing.assert_close(FeatureTable(CaptionDataset(images), cache).read(), expected)
    plain = torch.load(tmp_path / "f.pt")
    assert plain["key"] == cache_key(cnn, images) and plain["state"].tolist() == [DONE] * 12
    assert torch.equal(plain["features"], cache.features)


def test_a_new_cache_of_a_grid_is_float16_and_one_that_is_there_stays(cnn, images, tmp_path):
    grid, images = load_cnn(CNNConfig("scenes_cnn", pool="grid")), images[:2]
    assert extract(cnn, images, tmp_path / "new.pt").features.dtype == torch.float32
    assert extract(grid, images, tmp_path / "grid.pt").features.dtype == torch.float16
    for given in (torch.float16, torch.float32):
        path, shape = tmp_path / f"{given}.pt", (2, *cnn.feature_shape)
        FeatureCache.create(path, shape, given, cache_key(cnn, images))
        assert extract(cnn, images, path).features.dtype == given


def test_a_killed_run_goes_on_where_it_was(cnn, images, tmp_path, monkeypatch):
    whole = extract(cnn, images, tmp_path / "whole.pt")
    seen = []

    def watched(path, *args):
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(path)
        return load_image(path, *args)

    monkeypatch.setattr(captioning.data.images, "load_image", watched)
    with pytest.raises(KeyboardInterrupt):
        extract(cnn, images, tmp_path / "f.pt")
    assert int((FeatureCache(tmp_path / "f.pt").state == DONE).sum()) == 5
    seen.clear()
    monkeypatch.setattr(
        captioning.data.images, "load_image", lambda p, *a: seen.append(p) or load_image(p, *a)
    )
    cache = extract(cnn, images, tmp_path / "f.pt")
    assert seen == [image.path for image in images[5:]]
    assert torch.equal(cache.features, whole.features)
    seen.clear()
    extract(cnn, images, tmp_path / "f.pt")
    assert not seen


def test_a_stale_cache_is_refused_and_kept(cnn, images, tmp_path):
    extract(cnn, images, tmp_path / "f.pt")
    before = (tmp_path / "f.pt").read_bytes()
    other = load_cnn(CNNConfig("scenes_cnn", pool="avg"))
    changed = load_cnn(CNNConfig("scenes_cnn", pool="2x2"))
    changed.trunk.body[0].weight.data += 1
    for arguments, message in (
        ((other, images), "its pool is '2x2', expected 'avg'"),
        ((changed, images), "stale: its fingerprint"),
        ((cnn, images[:-1]), "stale: its pictures is '12 pictures"),
    ):
        with pytest.raises(CaptioningError, match=message):
            extract(*arguments, tmp_path / "f.pt")
    assert (tmp_path / "f.pt").read_bytes() == before


def test_broken_pictures_are_refused_or_left_out(cnn, images, tmp_path):
    images[6].path.write_bytes(images[6].path.read_bytes()[:200])
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path / "f.pt")
    cache = extract(cnn, images, tmp_path / "f.pt", on_error="skip")
    assert cache.state.tolist() == [DONE] * 6 + [BROKEN] + [DONE] * 5
    assert images[6].id not in FeatureTable(CaptionDataset(images), cache).ids
    with pytest.raises(ImageError, match=f"(?s){images[6].path.name}.*on-error skip"):
        extract(cnn, images, tmp_path / "f.pt")  # one that skipped is not what was asked for
    assert extract(cnn, images, tmp_path / "f.pt", on_error="skip").state[6] == BROKEN


def test_a_full_disk_is_noticed_before_the_first_picture(cnn, images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CaptioningError, match=r"cannot write .*No space left.*MB needed"):
        extract(cnn, images, tmp_path / "f.pt")
    assert not list(tmp_path.glob("f.pt*"))


def test_a_folder_that_cannot_be_made_is_told(cnn, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptioningError, match="cannot write .*Not a directory"):
        FeatureCache.create(tmp_path / "file" / "sub" / "f.pt", (1, 2), torch.float32, {})


def test_a_changed_picture_is_noticed_by_its_size(cnn, images, tmp_path):
    extract(cnn, images, tmp_path / "f.pt")
    with open(images[2].path, "ab") as file:
        file.write(b" ")
    with pytest.raises(CaptioningError, match="stale: its pictures"):
        extract(cnn, images, tmp_path / "f.pt")


def test_each_captions_file_has_a_cache_of_its_own(tmp_path, monkeypatch):
    a, b = (cache_path("caches", tmp_path / name / "captions.json") for name in "ab")
    assert a != b and a.parent == b.parent == Path("caches")
    assert a.name.startswith("captions-") and a.suffix == ".pt"
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
        (tmp_path / "f.pt").write_bytes(content)
        with pytest.raises(CaptioningError, match="is not a feature cache"):
            FeatureCache(tmp_path / "f.pt")
    with pytest.raises(CaptioningError, match="cannot read "):
        FeatureCache(tmp_path / "none.pt")


def test_worker_processes_change_nothing(cnn, images, tmp_path):
    alone = extract(cnn, images, tmp_path / "a.pt")
    helped = extract(cnn, images, tmp_path / "b.pt", workers=2)
    assert torch.equal(alone.features, helped.features)


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
            cache = features.extract_features(cnn, images, folder / f"{i}.pt", quietly)
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
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".a", ".b"}


def test_a_finished_cache_is_read_where_nothing_can_be_written(cnn, images, tmp_path, monkeypatch):
    extract(cnn, images, tmp_path / "f.pt")
    monkeypatch.setattr(captioning.cnn.features, "lock_files", lambda *_: pytest.fail("locked"))
    (tmp_path / "f.pt").chmod(0o444)
    real = mmap.MAP_SHARED
    monkeypatch.setattr(mmap, "MAP_SHARED", None)
    assert (extract(cnn, images, tmp_path / "f.pt").state == DONE).all()
    monkeypatch.setattr(mmap, "MAP_SHARED", real)


def test_its_name_may_be_of_any_bytes(cnn, images, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\n.pt")
    assert torch.equal(extract(cnn, images, path).features, extract(cnn, images, path).features)


def test_a_finished_cache_is_not_changed_by_who_reads_it(cnn, images, tmp_path):
    before = extract(cnn, images, tmp_path / "f.pt").path.read_bytes()
    cache = extract(cnn, images, tmp_path / "f.pt")
    cache.features.zero_()
    cache.state.zero_()
    assert (tmp_path / "f.pt").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(12, 240).long()},
        {"features": torch.zeros(1, 1).expand(12, 240)},
        {"features": torch.zeros(12, 240).to_sparse()},
        {"features": [0.0] * 12},
        {"features": 5},
        {"state": torch.ones(12)},
        {"state": torch.full((12,), 3, dtype=torch.uint8)},
        {"state": None},
    ],
)
def test_a_damaged_cache_is_refused_and_not_made_longer(cnn, images, tmp_path, change):
    path = tmp_path / "f.pt"
    extract(cnn, images, path)
    torch.save(torch.load(path) | change, path)
    before = path.read_bytes()
    for content in (before, before[:-1], before[:1000], before + b"x"):
        path.write_bytes(content)
        for writable in (False, True):
            with pytest.raises(CaptioningError, match="f.pt is not a feature cache"):
                FeatureCache(path, writable)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(12, 5)}, "its tables are of other pictures"),
        ({"features": torch.zeros(11, 240)}, "its tables are of other pictures"),
        ({"state": torch.ones(11, dtype=torch.uint8)}, "its tables are of other pictures"),
        ({"key": {}}, "its cnn is None, expected 'scenes_cnn'"),
        ({"key": [[]]}, "its cnn is None, expected 'scenes_cnn'"),
    ],
)
def test_a_cache_of_other_pictures_is_refused(cnn, images, tmp_path, change, message):
    extract(cnn, images, tmp_path / "f.pt")
    torch.save(torch.load(tmp_path / "f.pt") | change, tmp_path / "f.pt")
    with pytest.raises(CaptioningError, match=f"stale: {message}"):
        extract(cnn, images, tmp_path / "f.pt")
