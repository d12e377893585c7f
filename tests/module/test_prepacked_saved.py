"""Saving and loading prepacked layers, also on other processors and in other processes."""

import copy
import os
import re
import sys

import native_programs
import pytest
import torch
import torch.multiprocessing as mp
from native_programs import ROOT
from prepacked_layers import (
    SMALLER_DTYPES,
    Tagger,
    X,
    in_a_model,
    prepacked_copy,
    prepacked_tagger,
    same_bits,
    small,
)
from samples import COPIES

import fastlstm
from fastlstm import _build, prepack

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")


@pytest.mark.parametrize("weights", [None, *SMALLER_DTYPES], ids=str)
@pytest.mark.parametrize("way", ["state_dict", "safetensors", copy.copy, *COPIES])
def test_round_trips(way, weights, tmp_path):
    model = prepacked_tagger(weights=weights)
    path, other = tmp_path / "model", prepacked_tagger(1, weights)
    if way == "state_dict":
        other.load_state_dict(model.state_dict())
    elif way == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_model(model, path)
        safetensors.load_model(other, path)
    else:
        other = way(model)
    assert torch.equal(other(X), model(X)) and repr(other) == repr(model)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert same_bits(list(other.state_dict().values()), list(model.state_dict().values()))
    tensors = other.lstm.state_dict()
    other.lstm.load_state_dict({name: torch.zeros_like(t) for name, t in tensors.items()})
    # Only a shallow copy shares its weights with the model.
    assert (way is copy.copy) == torch.equal(other(X), model(X))


def test_the_names_of_the_state_dict():
    names = Tagger().state_dict().keys()
    for weights in (None, torch.bfloat16):
        assert prepacked_tagger(weights=weights).state_dict().keys() == names
    matrices = {n for n in names if "weight" in n and "linear" not in n}
    state = prepacked_tagger(weights=torch.int8).state_dict()
    assert state.keys() == names | {f"{n}_scale" for n in matrices}
    for n in matrices:
        assert state[n].dtype == torch.int8 and state[n].abs().max() == 127
        assert state[f"{n}_scale"].shape == state[n].shape[:1]


@pytest.mark.parametrize("source", [None, *SMALLER_DTYPES], ids=str)
@pytest.mark.parametrize("target", [None, *SMALLER_DTYPES], ids=str)
def test_loading_a_state_dict_of_another_format(source, target):
    model = prepacked_tagger(weights=source)
    loaded = prepacked_tagger(1, target)
    assert str(loaded.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    expected = prepack(fastlstm.unpack(copy.deepcopy(model)), target)
    assert torch.equal(loaded(X), expected(X))


def load_errors(module, state_dict, **options):
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state_dict, **options)
    return re.sub("(Prepacked)?LSTM", "LSTM", str(caught.value))


def test_load_state_dict_raises_the_errors_of_an_lstm():
    lstm = small(num_layers=2)
    given = {**lstm.state_dict(), "weight_hh_l0": torch.zeros(3, 4), "weight_hr_l0": torch.ones(1)}
    given |= {"bias_ih_l1": torch.zeros(2)}
    del given["weight_ih_l1"]
    assert load_errors(prepacked_copy(lstm), given) == load_errors(copy.deepcopy(lstm), given)
    prepacked, expected = prepacked_copy(lstm), copy.deepcopy(lstm)
    doubled = {"weight_hh_l0": lstm.weight_hh_l0 * 2}
    result, _ = (layer.load_state_dict(doubled, strict=False) for layer in (prepacked, expected))
    assert set(result.missing_keys) == set(lstm.state_dict()) - {"weight_hh_l0"}
    assert same_bits(prepacked(X[..., :6]), expected(X[..., :6]))


@pytest.mark.parametrize("change, message", [
    (lambda d: d.pop("weight_hh_l0_scale"), 'Missing key(s) .*: "weight_hh_l0_scale"'),
    (lambda d: d.update(weight_hh_l0_scale=torch.ones(3)), "size mismatch for weight_hh_l0_"),
    (lambda d: d["weight_hh_l0_scale"].fill_(torch.nan), "weight_hh_l0_scale: .*finite.* nan"),
    (lambda d: d["weight_hh_l0"][2].fill_(-128), "weight_hh_l0: .* -127 to 127, got -128"),
    (lambda d: d.update(weight_hh_l0=torch.ones(40, 10) / 0), "weight_hh_l0: .* int8, got inf"),
    (lambda d: d.update(weight_hh_l0="x"), "weight_hh_l0_scale: expected a tensor, got str"),
])  # fmt: skip
def test_invalid_int8_weights_are_refused(change, message):
    prepacked = prepacked_copy(small(), torch.int8)
    given = prepacked.state_dict()
    before = prepacked(X[..., :6])
    change(given)
    assert re.search(message.replace("(s)", r"\(s\)"), load_errors(prepacked, given))
    assert same_bits(prepacked(X[..., :6]), before)
    inside = {f"lstm.{name}": tensor for name, tensor in given.items()}  # names inside a model
    message = re.sub("((weight|bias)_)", r"lstm.\1", message.replace("(s)", r"\(s\)"))
    assert re.search(message, load_errors(in_a_model(lstm=prepacked), inside))


NEW_PROCESS = """
import sys, torch, fastlstm
sys.path.insert(0, sys.argv[1])
from prepacked_layers import Tagger, X
unpickled = torch.load(f"{sys.argv[2]}/model.pt", weights_only=False)
model = fastlstm.prepack(Tagger().eval(), unpickled.lstm.weights)
model.load_state_dict(torch.load(f"{sys.argv[2]}/state.pt"))
kernels = fastlstm._build.library.build_info()["products"]
torch.save((kernels, model(X), unpickled(X)), f"{sys.argv[2]}/y.pt")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_saved_here_and_loaded_by_another_processor(capability, tmp_path):
    if capability == torch.backends.cpu.get_cpu_capability().lower():
        pytest.skip("this process runs with that capability itself")
    model = prepacked_tagger(weights=torch.int8)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    command = sys.executable, "-c", NEW_PROCESS, ROOT / "tests", tmp_path
    native_programs.check(*command, env=environment)
    kernels, loaded, unpickled = torch.load(tmp_path / "y.pt")
    assert kernels["float32"] != _build.library.build_info()["products"]["float32"]
    assert torch.equal(loaded, unpickled)
    # The sigmoid of another instruction set differs in its last bits.
    torch.testing.assert_close(loaded, model(X), rtol=0, atol=1e-5)


def _put(model, results):
    torch.set_num_threads(1)
    results.put((model(X).tolist(), model.cell))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_model(method):
    model = prepacked_tagger(weights=torch.int8).share_memory()
    assert all(buffer.is_shared() for buffer in model.lstm.buffers())
    context = mp.get_context(method)
    results = context.Queue()
    process = context.Process(target=_put, args=(model, results))
    process.start()
    process.join(timeout=60)
    found, cell = results.get(timeout=60)  # after the end of the process that sent them
    assert found == model(X).tolist()
    assert same_bits(list(cell.state_dict().values()), list(model.cell.state_dict().values()))


def test_a_saved_layer_that_does_not_fit_is_refused():
    layer = prepacked_copy(small())
    tensors = layer.state_dict() | {"bias_ih_l0": torch.ones(3)}
    for change, message in (
        ({"weights": torch.uint8}, "one of .*int8, got torch.uint8 in a saved layer"),
        ({"_unpacked_weights": tensors}, "size mismatch for bias_ih_l0: .*3.*, .*40"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.__setstate__(layer.__getstate__() | change)
