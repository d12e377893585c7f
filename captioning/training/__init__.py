"""Training: what is requested, its preparation, the epochs and their steps."""

from captioning.training.loop import train
from captioning.training.pipeline import train_captioner
from captioning.training.request import TrainingRequest
from captioning.training.setup import set_up
