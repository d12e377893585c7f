"""The embedded data set of drawn scenes, and a demonstration on it."""

from captioning.demo.run import demo
from captioning.demo.scenes import generate
