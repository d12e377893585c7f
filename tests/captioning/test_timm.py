"""Models of timm by name, small ones of random weights, and weights from a file."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioning.__main__ import main
from captioning.cnn.features import cache_path
from captioning.cnn.frozen import CNNChoice, CNNConfig, load_cnn
from captioning.errors import CaptioningError
from captioning.model.checkpoint import CNNIdentity, load_checkpoint

timm = pytest.importorskip("timm", reason="needs the extra timm")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Makes a file of weights, with those of the classifier, as timm's own files have them."""

    def save(name: str) -> str:
        torch.manual_seed(1)
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), path)
        return str(path)

    return save


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB")


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 10), ("test_convnext", 5), ("test_mambaout", 5)]
)
def test_the_vector_and_the_map_are_those_of_timm(name, side, weights, picture):
    """A transformer with a class token, a convolutional one, and one whose map is channels last."""
    path = weights(name)
    net = timm.create_model(name, num_classes=0).eval()
    timm.models.load_checkpoint(net, path, strict=False)
    vector, grid = (load_cnn(CNNConfig(f"timm:{name}", path, p)) for p in ("avg", "grid"))
    pixels = vector.transform(picture)[None]
    with torch.no_grad():
        torch.testing.assert_close(vector(pixels), net(pixels))
        maps = net.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]
    assert grid.grid == side
    torch.testing.assert_close(grid(pixels), maps.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vit_tiny_patch16_224"])
def test_pictures_are_seen_as_timm_prepares_them(name):
    """Timm crops to the middle: of a picture of the size before its crop both see the same."""
    cnn = load_cnn(CNNConfig(f"timm:{name}", "none"))
    data = timm.data.resolve_model_data_config(timm.create_model(name))
    theirs = timm.data.create_transform(**data, is_training=False)
    size, crop = cnn.transform.resize_size, cnn.transform.crop_size
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), "uint8")
    begin = round((size - crop) / 2)
    inner = Image.fromarray(noise[begin : begin + crop, begin : begin + crop])
    torch.testing.assert_close(cnn.transform(inner), theirs(Image.fromarray(noise)))


def test_weights_from_a_file_are_those_wherever_it_lies(weights, picture, tmp_path, monkeypatch):
    path = weights("test_vit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(open(path, "rb").read())
    here = CNNChoice("timm:test_vit", weights="w.safetensors")
    cnn, same = here.load(), load_cnn(CNNConfig("timm:test_vit", path))
    assert torch.equal(cnn.encode(picture), same.encode(picture))
    assert cache_path("f", "c.json", cnn, []) == cache_path("f", "c.json", same, [])
    identity = CNNIdentity.of(cnn)
    monkeypatch.chdir("/")
    assert torch.equal(identity.load().encode(picture), cnn.encode(picture))


def test_a_file_that_moved_is_found_beside_the_checkpoint(weights, picture, tmp_path):
    cnn = load_cnn(CNNConfig("timm:test_vit", weights("test_vit")))
    beside = tmp_path / "test_vit.safetensors"
    content = open(cnn.config.weights, "rb").read()
    moved = CNNIdentity(
        CNNConfig("timm:test_vit", "/nowhere/test_vit.safetensors"),
        cnn.transform,
        cnn.fingerprint(),
        origin=str(tmp_path / "best.pt"),
    )
    with pytest.raises(CaptioningError, match="expected a file or one of .*got '/nowhere"):
        moved.load()
    beside.write_bytes(content)
    assert torch.equal(moved.load().encode(picture), cnn.encode(picture))
    save_file({k: v + 1 for k, v in timm.create_model("test_vit").state_dict().items()}, beside)
    with pytest.raises(CaptioningError, match="are not those that it was trained on"):
        moved.load()


@pytest.mark.parametrize("weights", ["", "/", ".", "a\0b", "x" * 5000])
def test_strange_names_of_weights_are_refused(weights):
    identity = CNNIdentity(CNNConfig("timm:test_vit", weights), None, "", origin="/tmp/best.pt")
    with pytest.raises(CaptioningError, match="timm:test_vit"):
        identity.load()


def test_it_stands_beside_another_cnn(weights, picture):
    path = weights("test_convnext")
    both = load_cnn(CNNConfig("timm:test_convnext+scenes_cnn", path, "grid"))
    assert both.feature_shape == (25, 64 + 48)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CNNConfig("timm:test_vti"), "expected a model of timm, such as timm:.*test_vit"),
        (CNNConfig("timm:zzz"), "expected a model of timm, such as timm:convnext_tiny"),
        (CNNConfig("timm:hf-hub:someone/model"), "expected a model of timm"),
        (CNNConfig("timm:resnet18.nothing", "none"), "one of .*'a1_in1k'.*Invalid pretrained tag"),
        (CNNConfig("timm:resnet18", "nothing"), "timm:resnet18: expected a file or one of"),
        (CNNConfig("timm:pit_ti_224", "none", "grid"), "has no feature map to pool by 'grid'"),
    ],
)
def test_wrong_names_are_refused(config, message):
    with pytest.raises(CaptioningError, match=message):
        load_cnn(config)


def test_a_failed_download_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True
    )
    monkeypatch.setattr(
        importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path)
    )
    with pytest.raises(CaptioningError, match="cannot download .*timm:test_vit.*--weights"):
        load_cnn(CNNConfig("timm:test_vit"))


@pytest.mark.parametrize("damage", ["empty", "text", "other", "part"])
def test_damaged_weights_are_named(weights, tmp_path, damage):
    path = tmp_path / "w.safetensors"
    if damage in ("empty", "text"):
        path.write_bytes({"empty": b"", "text": b"<html>"}[damage])
    else:
        state = timm.create_model("test_vit").state_dict()
        kept = state if damage == "other" else dict(list(state.items())[:-20])
        save_file({f"x.{k}" if damage == "other" else k: v for k, v in kept.items()}, path)
    with pytest.raises(
        CaptioningError, match=r"weights of timm:test_vit: expected .*w\.safetensors"
    ):
        load_cnn(CNNConfig("timm:test_vit", str(path)))


def test_without_timm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CaptioningError, match=r"needs timm: pip install 'fastlstm\[timm\]'"):
        load_cnn(CNNConfig("timm:test_vit"))


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
def test_train_and_caption_from_random_weights(scenes_root, weights, tmp_path, decoder, capsys):
    files, path = scenes_root / "annotations", weights("test_vit")
    run = tmp_path / "run"
    train = ["train", "--train", str(files / "captions_train.json"), "--output", str(run)]
    train += ["--val", str(files / "captions_val.json"), "--cnn", "timm:test_vit"]
    train += ["--weights", path, "--decoder", decoder, "--epochs", "1", "--hidden-size", "16"]
    assert main(train) == 0 and main([*train, "--resume", "--epochs", "2"]) == 0
    cnn = load_checkpoint(run / "best.pt").cnn
    assert (cnn.config.name, cnn.config.weights) == ("timm:test_vit", path)
    results = tmp_path / "results.json"
    pictures = str(scenes_root / "val")
    assert main(["caption", str(run / "best.pt"), pictures, "--json", str(results)]) == 0
    assert len(json.loads(results.read_text())) == 12
