"""The captioner: encoder, decoders, loss, and the file that holds it."""

from captioning.model import attention, lstm  # which register their decoders
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint, load_checkpoint, load_ensemble
from captioning.model.cider import CiderD
from captioning.model.decoder import DECODERS, Attentive, Decoder, decoder_class, register
from captioning.model.layers import HELP, LSTMS, WEIGHTS, freeze
from captioning.model.neighbors import Neighbors
