"""The tiny pretrained CNN of the embedded data set, made by benchmarks/pretrain_scenes_cnn.py."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_name("scenes_cnn.safetensors")
IMAGE_SIZE = 128
GRID = 16  # cells per side of the feature map


class SceneCNN(nn.Sequential):
    """Four 3x3 convolutions (39,888 parameters): [B,3,128,128] in -1..1 to [B,48,16,16]."""

    channels = 48

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


def load_scene_cnn() -> SceneCNN:
    """The CNN with the weights that are in this package."""
    cnn = SceneCNN()
    cnn.load_state_dict(load_file(WEIGHTS))
    return cnn
