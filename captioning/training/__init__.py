"""Training: what is requested, its preparation, a run and its steps."""

from captioning.training.pipeline import train_captioner
from captioning.training.preparation import prepare_training
from captioning.training.request import TrainingRequest
from captioning.training.run import train
