"""The captioner: encoder, decoders, loss, and the file that holds it."""

from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint, CNNIdentity, load_checkpoint
from captioning.model.cider import CiderD
from captioning.model.decoders import (
    DECODERS,
    Attentive,
    Decoder,
    decoder_class,
    model_config,
    register,
)
from captioning.model.ensemble import Ensemble, load_ensemble
from captioning.model.layers import HELP, LSTMS, WEIGHTS, freeze
from captioning.model.neighbors import Neighbors
from captioning.model.yunjey import import_yunjey
