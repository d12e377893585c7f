"""Frozen, pretrained CNNs, and the cache of their features."""

from captioning.cnn.features import Extraction, FeatureTable, extract_features
from captioning.cnn.frozen import CNNChoice, CNNConfig, FrozenCNN, keep_freed_blocks, load_cnn
from captioning.cnn.scenes_cnn import GRID, IMAGE_SIZE, WEIGHTS, SceneCNN
