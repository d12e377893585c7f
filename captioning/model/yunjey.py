"""Captioners of yunjey's pytorch-tutorial: encoder-*.ckpt, decoder-*.ckpt and vocab.pkl.

No code in these files is run: the weights are read with ``weights_only=True``, and the pickled
vocabulary by an unpickler that loads no class but a plain container.
"""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from captioning.cnn import CNNConfig, load_cnn
from captioning.console import short
from captioning.data import Transform, Vocabulary
from captioning.errors import CaptioningError, naming
from captioning.files import open_regular
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint, CNNIdentity
from captioning.model.decoders.lstm import LSTMSettings
from captioning.model.tensors import check_fit, check_numbers, load_tensors

# The tutorial keeps the ResNet as a Sequential of its children without fc.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Its 20 steps contain <start> and <end>.
_MAX_SEQ_LENGTH = 19
_TRANSFORM = Transform(224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "lanczos", True)


class _PickledVocabulary:
    word2idx: dict[str, int]


class _VocabularyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "Vocabulary":
            return _PickledVocabulary
        raise pickle.UnpicklingError(f"it would load {module}.{name}")


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read vocab.pkl without running code in it."""
    file = open_regular(path)
    try:
        with file:
            word2idx = _VocabularyUnpickler(file).load().word2idx
        words = sorted(word2idx, key=word2idx.__getitem__)
        if [word2idx[word] for word in words] != list(range(len(words))):
            raise ValueError("its indices have gaps")
    except Exception as error:  # a damaged pickle raises anything
        raise CaptioningError(f"{path} is not the tutorial's vocabulary: {error}") from error
    with naming(path):
        return Vocabulary(words)


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    weights = load_tensors(path)
    if not isinstance(weights, dict):
        raise CaptioningError(f"{path}: expected a state_dict, got {type(weights).__name__}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CaptioningError(f"{path}: expected tensors by name, got {short({name: tensor})}")
    check_numbers(weights, str(path))
    return weights


def import_yunjey(
    encoder: str | Path, decoder: str | Path, vocabulary: str | Path, cnn: str = "resnet152"
) -> Checkpoint:
    """Convert the three files of the tutorial; `cnn` is the name of its ResNet.

    The ResNet comes from the file too: the tutorial trains with BatchNorm in train mode, so its
    statistics are not torchvision's. Files that do not fit are refused with a CaptioningError.
    """
    words = read_vocabulary(vocabulary)
    enc, dec = _read_weights(encoder), _read_weights(decoder)
    frozen = load_cnn(CNNConfig(cnn, "none"))
    frozen.transform = _TRANSFORM
    weights = {}
    for name, tensor in enc.items():
        part, _, rest = name.partition(".")
        if part == "resnet":
            child, _, rest = rest.partition(".")
            weights[f"trunk.{_CHILDREN.get(child, child)}.{rest}"] = tensor
    try:
        check_fit(frozen.state_dict(), weights, f"{encoder}: {cnn}")
        frozen.load_state_dict(weights)
        size = LSTMSettings(
            feature_size=enc["linear.weight"].size(1),
            vocab_size=dec["linear.weight"].size(0),
            embed_size=dec["embed.weight"].size(1),
            hidden_size=dec["linear.weight"].size(1),
            num_layers=sum(name.startswith("lstm.weight_hh") for name in dec),
            max_seq_length=_MAX_SEQ_LENGTH,
        )
        if len(words) != size.vocab_size:
            raise CaptioningError(
                f"{vocabulary} has {len(words)} words, {decoder} {size.vocab_size}: they do not "
                "belong together"
            )
        model = Captioner(size).eval()
        linear = {k: v for k, v in enc.items() if "resnet." not in k}
        for name, given, file in (("encoder", linear, encoder), ("decoder", dec, decoder)):
            module = model.get_submodule(name)
            check_fit(module.state_dict(), given, str(file))
            module.load_state_dict(given)
    except (RuntimeError, LookupError) as error:
        raise CaptioningError(
            f"{encoder} and {decoder} are not an encoder with {cnn} and its decoder: {error}"
        ) from error
    identity = replace(CNNIdentity.of(frozen), weights=frozen.state_dict())
    return Checkpoint(model, words, identity, {})
