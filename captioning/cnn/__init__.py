"""Frozen, pretrained CNNs, and the cache of their features."""

from captioning.cnn.features import FeatureTable, extract_features
from captioning.cnn.pretrained import DEFAULT_CNN, CNNConfig, FrozenCNN, load_cnn
from captioning.cnn.scenes_cnn import GRID, IMAGE_SIZE, WEIGHTS, SceneCNN
