"""Models of timm: small ones with random weights from a file, and wrong names and files."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioning.__main__ import main
from captioning.cnn.features import cache_path
from captioning.cnn.pretrained import CNNConfig, load_cnn
from captioning.errors import CaptioningError
from captioning.model.checkpoint import load_checkpoint


@pytest.fixture(scope="module", autouse=True)
def timm():
    return pytest.importorskip("timm", reason="needs the extra timm")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, timm):
    """A function that saves random weights of a model, with its classifier, as timm's files do."""

    def save(name):
        torch.manual_seed(1)
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), path)
        return str(path)

    return save


@pytest.fixture
def picture():
    return Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB")


# A transformer with a class token, a CNN, a model with a map [B,h,w,C]; the sides of their maps.
@pytest.mark.parametrize(
    "name, side", [("test_vit", 10), ("test_convnext", 5), ("test_mambaout", 5)]
)
def test_the_vector_and_the_map_are_those_of_timm(name, side, weights, picture, timm):
    path, net = weights(name), timm.create_model(name, num_classes=0).eval()
    timm.models.load_checkpoint(net, path, strict=False)
    vector, grid = (load_cnn(CNNConfig(f"timm:{name}", path, p)) for p in ("avg", "grid"))
    pixels = vector.transform(picture)[None]
    with torch.no_grad():
        torch.testing.assert_close(vector(pixels), net(pixels))
        maps = net.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]
    assert grid.grid == side
    torch.testing.assert_close(grid(pixels), maps.flatten(2).transpose(1, 2))


def test_weights_from_a_file_are_those_wherever_it_lies(weights, picture, tmp_path, monkeypatch):
    path = weights("test_vit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(open(path, "rb").read())
    here, same = (load_cnn(CNNConfig("timm:test_vit", p)) for p in ("w.safetensors", path))
    assert torch.equal(here.encode(picture), same.encode(picture))
    assert cache_path("f", "c.json", here, []) == cache_path("f", "c.json", same, [])


def test_a_file_beside_the_checkpoint_is_found(weights, picture, tmp_path, new_checkpoint, timm):
    path = weights("test_vit")
    cnn, checkpoint = load_cnn(CNNConfig("timm:test_vit", path)), new_checkpoint()
    checkpoint.cnn = replace(cnn.config, weights="/nowhere/test_vit.safetensors")
    checkpoint.save(tmp_path / "c.pt")
    moved = lambda: load_cnn(load_checkpoint(tmp_path / "c.pt").cnn)
    with pytest.raises(CaptioningError, match="expected a file or one of .*got '/nowhere"):
        moved()
    beside = tmp_path / "test_vit.safetensors"
    beside.write_bytes(open(path, "rb").read())
    assert torch.equal(moved().encode(picture), cnn.encode(picture))
    save_file({k: v + 1 for k, v in timm.create_model("test_vit").state_dict().items()}, beside)
    with pytest.raises(CaptioningError, match="trained with other weights of timm:test_vit"):
        moved()


@pytest.mark.parametrize("config, message", [
    (CNNConfig("timm:test_vti"), "expected one of timm.list_models()"),
    (CNNConfig("timm:hf-hub:someone/model"), "expected one of timm.list_models()"),
    (CNNConfig("timm:resnet18.nothing"), "one of .*'a1_in1k'.*Invalid pretrained tag"),
    (CNNConfig("timm:resnet18", "nothing"), "timm:resnet18: expected a file or one of"),
])  # fmt: skip
def test_wrong_names_are_refused(config, message):
    with pytest.raises(CaptioningError, match=message):
        load_cnn(config)


@pytest.mark.parametrize("damage", ["empty", "text", "other", "part"])
def test_damaged_weights_are_named(weights, tmp_path, damage, timm):
    path = tmp_path / "w.safetensors"
    if damage in ("empty", "text"):
        path.write_bytes({"empty": b"", "text": b"<html>"}[damage])
    else:
        state = timm.create_model("test_vit").state_dict()
        kept = state if damage == "other" else dict(list(state.items())[:-20])
        save_file({f"x.{k}" if damage == "other" else k: v for k, v in kept.items()}, path)
    with pytest.raises(CaptioningError, match=r"weights of timm:test_vit: expected .*w\.safe"):
        load_cnn(CNNConfig("timm:test_vit", str(path)))


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
def test_train_and_caption_from_random_weights(scenes_root, weights, tmp_path, decoder):
    path, run = weights("test_vit"), tmp_path / "run"
    train = ["train", str(scenes_root / "annotations"), "--output", str(run), "--cnn-weights", path]
    train += f"--cnn timm:test_vit --decoder {decoder} --epochs 1 --hidden-size 16".split()
    assert main(train) == 0 and main([*train, "--resume", "--epochs", "2"]) == 0
    cnn = load_checkpoint(run / "best.pt").cnn
    assert (cnn.name, cnn.weights) == ("timm:test_vit", path)
    results, pictures = tmp_path / "results.json", str(scenes_root / "val")
    assert main(["caption", str(run / "best.pt"), pictures, "--json", str(results)]) == 0
    assert len(json.loads(results.read_text())) == 12
