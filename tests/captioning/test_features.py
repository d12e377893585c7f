"""The feature cache: contents, going on after a kill, its name, broken pictures, full disks."""

import mmap
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
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


def extract(cnn, images, folder, **options):
    return extract_features(cnn, images, folder, "captions.json", Extraction(**options), 5)


def path_of(cnn, images, folder):
    return cache_path(folder, "captions.json", cnn, images)


def test_holds_what_the_cnn_says_and_is_a_file_of_torch(cnn, images, tmp_path):
    cache = extract(cnn, images, tmp_path)
    expected = cnn(torch.stack([cnn.transform(load_image(i.path)) for i in images]))
    torch.testing.assert_close(FeatureTable(CaptionDataset(images), cache).read(), expected)
    assert cache.path == path_of(cnn, images, tmp_path)
    plain = torch.load(cache.path)
    assert plain["state"].tolist() == [DONE] * 12
    assert torch.equal(plain["features"], cache.features)


def test_a_new_cache_of_a_grid_is_float16_and_one_that_is_there_stays(cnn, images, tmp_path):
    grid, images = load_cnn(CNNConfig("scenes_cnn", pool="grid")), images[:2]
    assert extract(cnn, images, tmp_path).features.dtype == torch.float32
    assert extract(grid, images, tmp_path).features.dtype == torch.float16
    for given in (torch.float16, torch.float32):
        folder, shape = tmp_path / str(given), (2, *cnn.feature_shape)
        FeatureCache.create(path_of(cnn, images, folder), shape, given)
        assert extract(cnn, images, folder).features.dtype == given


def test_a_killed_run_goes_on_where_it_was(cnn, images, tmp_path, monkeypatch):
    whole = extract(cnn, images, tmp_path / "whole")
    seen = []

    def watched(path, *args):
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(path)
        return load_image(path, *args)

    monkeypatch.setattr(captioning.data.images, "load_image", watched)
    with pytest.raises(KeyboardInterrupt):
        extract(cnn, images, tmp_path)
    path = path_of(cnn, images, tmp_path)
    assert int((FeatureCache(path, (12, 240)).state == DONE).sum()) == 5
    seen.clear()
    monkeypatch.setattr(
        captioning.data.images, "load_image", lambda p, *a: seen.append(p) or load_image(p, *a)
    )
    cache = extract(cnn, images, tmp_path)
    assert seen == [image.path for image in images[5:]]
    assert torch.equal(cache.features, whole.features)
    seen.clear()
    extract(cnn, images, tmp_path)
    assert not seen


def test_what_differs_is_in_another_file_and_the_old_one_stays(cnn, images, tmp_path):
    extract(cnn, images, tmp_path)
    (first,) = tmp_path.glob("*.pt")
    before = first.read_bytes()
    other = load_cnn(CNNConfig("scenes_cnn", pool="avg"))
    changed, cropped, named = (load_cnn(CNNConfig("scenes_cnn", pool="2x2")) for _ in range(3))
    changed.trunk.body[0].weight.data += 1
    cropped.transform = replace(cropped.transform, resize_size=140)
    named.config = replace(named.config, name="of the same weights, but another function")
    again = [replace(image, id=image.id + 1) for image in images]
    calls = (other, changed, cropped, named), (images[:-1], images[::-1], again)
    for arguments in [(c, images) for c in calls[0]] + [(cnn, pictures) for pictures in calls[1]]:
        known = set(tmp_path.glob("*.pt"))
        new = extract(*arguments, tmp_path)
        assert {*tmp_path.glob("*.pt")} - known == {new.path}
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
        extract(cnn, images, tmp_path)  # one that skipped is not what was asked for
    assert extract(cnn, images, tmp_path, on_error="skip").state[6] == BROKEN


def test_a_full_disk_is_noticed_before_the_first_picture(cnn, images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CaptioningError, match=r"cannot write .*No space left.*MB needed"):
        extract(cnn, images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


def test_a_folder_that_cannot_be_made_is_told(cnn, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptioningError, match="cannot write .*Not a directory"):
        FeatureCache.create(tmp_path / "file" / "sub" / "f.pt", (1, 2), torch.float32)


def test_a_changed_picture_is_noticed_by_its_size(cnn, images, tmp_path):
    before = extract(cnn, images, tmp_path)
    with open(images[2].path, "ab") as file:
        file.write(b" ")
    assert extract(cnn, images, tmp_path).path != before.path


def test_each_captions_file_has_a_cache_of_its_own(cnn, images, tmp_path, monkeypatch):
    path = lambda annotations: cache_path("caches", annotations, cnn, images)
    a, b = (path(tmp_path / name / "captions.json") for name in "ab")
    assert a != b and a.parent == b.parent == Path("caches")
    assert re.fullmatch(r"captions-[0-9a-f]{16}\.pt", a.name)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")  # however the file is called
    assert path("captions.json") == path("../a/captions.json") == a
    assert path("captions_val.json") != a


def test_pictures_that_moved_are_not_encoded_again(cnn, images, tmp_path):
    cache = extract(cnn, images, tmp_path)
    (tmp_path / "val").rename(tmp_path / "moved")
    moved = [replace(i, path=tmp_path / "moved" / i.path.name) for i in images]
    assert extract(cnn, moved, tmp_path).path == cache.path


def test_the_command_writes_where_training_looks(scenes_root, tmp_path, capsys):
    annotations = scenes_root / "annotations" / "captions_val.json"
    words = ["features", annotations, "--features", tmp_path / "caches", "--cnn", "scenes_cnn"]
    assert main([str(word) for word in words]) == 0
    images = load_coco(annotations).images
    path = cache_path(tmp_path / "caches", annotations, load_cnn(CNNConfig("scenes_cnn")), images)
    told = f"{path}: 12 pictures, 48 features each, by scenes_cnn\n"
    assert told in capsys.readouterr().out
    assert list((tmp_path / "caches").iterdir()) == [path]
    assert (FeatureCache(path, (12, 48)).state == DONE).all()


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
            FeatureCache(tmp_path / "f.pt", (12, 240))
    with pytest.raises(CaptioningError, match="cannot read "):
        FeatureCache(tmp_path / "none.pt", (12, 240))


def test_worker_processes_change_nothing(cnn, images, tmp_path):
    alone = extract(cnn, images, tmp_path / "a")
    helped = extract(cnn, images, tmp_path / "b", workers=2)
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
            cache = features.extract_features(cnn, images, folder, f"{i}.json")
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
    extract(cnn, images, tmp_path).path.chmod(0o444)
    monkeypatch.setattr(captioning.cnn.features, "lock_files", lambda *_: pytest.fail("locked"))
    real = mmap.MAP_SHARED
    monkeypatch.setattr(mmap, "MAP_SHARED", None)
    assert (extract(cnn, images, tmp_path).state == DONE).all()
    monkeypatch.setattr(mmap, "MAP_SHARED", real)


def test_its_name_may_be_of_any_bytes(cnn, images, tmp_path):
    name = os.fsdecode(b"caf\xe9\n")
    one, two = (extract_features(cnn, images, tmp_path / name, f"{name}.json") for _ in range(2))
    assert one.path.name.startswith(name) and torch.equal(one.features, two.features)


def test_a_finished_cache_is_not_changed_by_who_reads_it(cnn, images, tmp_path):
    before = extract(cnn, images, tmp_path).path.read_bytes()
    cache = extract(cnn, images, tmp_path)
    cache.features.zero_()
    cache.state.zero_()
    assert cache.path.read_bytes() == before


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
    path = extract(cnn, images, tmp_path).path
    torch.save(torch.load(path) | change, path)
    before = path.read_bytes()
    for content in (before, before[:-1], before[:1000], before + b"x"):
        path.write_bytes(content)
        for writable in (False, True):
            with pytest.raises(CaptioningError, match=f"{path} is not a feature cache .*Delete it"):
                FeatureCache(path, (12, 240), writable)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(12, 5)}, "got ((12, 5), (12,))"),
        ({"features": torch.zeros(11, 240)}, "got ((11, 240), (12,))"),
        ({"state": torch.ones(11, dtype=torch.uint8)}, "got ((12, 240), (11,))"),
    ],
)
def test_a_cache_of_other_shapes_is_refused_and_kept(cnn, images, tmp_path, change, message):
    path = extract(cnn, images, tmp_path).path
    torch.save(torch.load(path) | change, path)
    before, told = path.read_bytes(), f"expected shapes ((12, 240), (12,)), {message}. Delete it"
    with pytest.raises(CaptioningError, match=re.escape(told)):
        extract(cnn, images, tmp_path)
    assert path.read_bytes() == before
