"""Random calls, each drawn from a seed: a call must give the right result or a plain error.

python tests/fuzzed_calls.py 0 500       # the calls of 500 seeds; without 500: of one seed
"""

import random
import sys
import traceback
import warnings

import torch
from oracle import oracle
from samples import Sample, floating, with_leaves
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import _build, functional
from fastlstm.engine.call import LAYOUTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHER_DTYPES = (torch.int8, torch.int32, torch.complex64, torch.float8_e5m2)
ENGINES = ("auto", "tiled", "stepwise", "reference")
PLAIN_ERRORS = (RuntimeError, TypeError, ValueError)
# The error of oneDNN for a dtype that it does not support on this processor, or not in training.
ONEDNN_ERROR = "could not create a primitive"


class Draw:
    """The random choices of one case; all of them follow from its seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.pick = lambda *options: self.random.choice(options)
        self.int = self.random.randint

    def chance(self, probability):
        return self.random.random() < probability

    def values(self, *shape, wild=False):
        """Returns normal values in float64. If `wild`, they may be huge, tiny, zero or NaN."""
        scale = self.pick(1, 1, 1e4, 1e-38, 1e-20, 0) if wild else 1
        values = torch.randn(*shape, dtype=torch.float64) * scale
        if wild and values.numel() and self.chance(0.1):
            values.view(-1)[self.int(0, values.numel() - 1)] = torch.nan
        return values

    def restride(self, tensor):
        """Returns the same values, perhaps with other strides."""
        kind = self.pick("as is", "as is", "permuted", "slice", "every other")
        if kind == "permuted":
            order = self.random.sample(range(tensor.dim()), tensor.dim())
            back = [order.index(k) for k in range(tensor.dim())]
            return tensor.permute(order).contiguous().permute(back)
        if kind == "slice":
            wide = tensor.new_zeros([size + 2 for size in tensor.shape])
            for k, size in enumerate(tensor.shape):
                wide = wide.narrow(k, 1, size)
            return wide.copy_(tensor)
        if kind == "every other":
            return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]
        return tensor


def random_options(draw):
    hidden_size = draw.int(1, 40)
    return {
        "input_size": draw.int(1, 20),
        "hidden_size": hidden_size,
        "num_layers": draw.pick(1, 1, 2, 3),
        "bias": draw.chance(0.8),
        "batch_first": draw.chance(0.3),
        "bidirectional": draw.chance(0.4),
        "proj_size": draw.int(1, hidden_size - 1) if draw.chance(0.3) and hidden_size > 1 else 0,
    }


def scale_weights(draw, module):
    """Scales the weights in place, or leaves them; returns True if some may be as large as 1e30."""
    kind = draw.pick("as drawn", "as drawn", "saturated", "large", "any size")
    largest = 30 if next(module.parameters()).dtype != torch.float16 else 2
    with torch.no_grad():
        for parameter in module.parameters():
            if kind == "saturated" and parameter.dim() == 1:
                parameter.add_(draw.pick(0, 100, -100, -87, 20))
            elif kind == "large" and draw.chance(0.3):
                parameter.mul_(draw.pick(10, 100))
            elif kind == "any size" and draw.chance(0.3):
                parameter.mul_(10.0 ** draw.int(0, largest))
    return bool(kind == "any size")


def lstm_case(draw):
    """Returns an nn.LSTM and a fastlstm.LSTM with random options, and a call of any form.

    The results are both modules, the dtype of their matrix products, the tensors of the call, and a
    function call(module, dtype), which converts the tensors and returns outputs and gradients.
    """
    options, dtype = random_options(draw), draw.pick(torch.float32, *DTYPES)
    theirs, ours = nn.LSTM(**options, dtype=dtype), fastlstm.LSTM(**options, dtype=dtype)
    steps, batch = draw.int(1, 6), draw.int(0, 5)
    form = draw.pick("batch", "batch", "unbatched", "packed")
    lengths = torch.tensor([draw.int(1, steps) for _ in range(max(batch, 1))])
    if form != "batch":
        batch = len(lengths)
    states = theirs.num_layers * (1 + theirs.bidirectional)
    shape = (batch, steps) if theirs.batch_first and form != "packed" else (steps, batch)
    wild = dtype != torch.float64
    tensors = [draw.values(*shape, theirs.input_size, wild=wild)]
    if draw.chance(0.5):
        h_size = theirs.proj_size or theirs.hidden_size
        tensors += [draw.values(states, batch, size, wild=wild)
                    for size in (h_size, theirs.hidden_size)]  # fmt: skip
    if form == "unbatched":
        first = tensors[0]
        tensors = [first[0] if theirs.batch_first else first[:, 0], *(t[:, 0] for t in tensors[1:])]
    tensors = [draw.restride(t.to(dtype)) for t in tensors]
    used = [draw.chance(0.8) for _ in range(3)]  # whether the loss uses output, h_n, c_n
    autocast = dtype == torch.float32 and draw.chance(0.15)
    seed = draw.int(0, 1 << 30)

    def call(module, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
        x = leaves[0]
        if form == "packed":
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype != torch.float64):
            output, state = module(x, tuple(leaves[1:]) or None)
        results = [output.data if isinstance(output, PackedSequence) else output, *state]
        generator = torch.Generator().manual_seed(seed)
        grads = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
        pairs = [(r, g.to(r.dtype)) for r, g, u in zip(results, grads, used, strict=True) if u]
        wanted = [*leaves, *module.parameters()]
        if not pairs:
            return results
        outputs, grads = zip(*pairs, strict=True)
        return [*results, *torch.autograd.grad(outputs, wanted, grads, materialize_grads=True)]

    return theirs, ours, torch.bfloat16 if autocast else dtype, tensors, call


def cell_case(draw):
    dtype, I, H = draw.pick(*DTYPES), draw.int(1, 20), draw.int(1, 40)
    bias, wild = draw.chance(0.8), dtype != torch.float64
    theirs, ours = (k(I, H, bias=bias, dtype=dtype) for k in (nn.LSTMCell, fastlstm.LSTMCell))
    rows = () if draw.chance(0.2) else (draw.int(0, 20),)
    tensors = [draw.values(*rows, size, wild=wild) for size in (I, H, H)]
    tensors = [draw.restride(t.to(dtype)) for t in tensors[: draw.pick(1, 3)]]

    def call(module, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in tensors]
        results = module(leaves[0], tuple(leaves[1:]) or None)
        wanted = [*leaves, *module.parameters()]
        return [*results, *torch.autograd.grad([r.sum() for r in results], wanted)]

    return theirs, ours, dtype, tensors, call


def against_torch(draw):
    """Results must be as accurate as those of nn.LSTM, and NaN in the same elements."""
    case = draw.pick(lstm_case, lstm_case, lstm_case, cell_case)
    theirs, ours, dtype, tensors, call = case(draw)
    any_size = scale_weights(draw, theirs)
    sizes = [t.double().nan_to_num().abs().max().item() for t in tensors if t.numel()]
    if any_size and 0 < min(sizes, default=0) < 1e-30:
        return  # weights of up to 1e30 would magnify the rounding of a subnormal input
    ours.load_state_dict(theirs.state_dict())
    ours.engine = draw.pick(*ENGINES)
    weight_dtype = next(theirs.parameters()).dtype
    our_results = call(ours, weight_dtype)
    with torch.backends.mkldnn.flags(enabled=False):  # ATen's operators support every dtype
        their_results = [call(theirs, weight_dtype)]
    try:
        their_results.append(call(theirs, weight_dtype))
    except RuntimeError as error:
        if ONEDNN_ERROR not in str(error):
            raise
    truth = call(theirs.double(), torch.float64)
    if dtype == torch.float16 and any((t.abs() > largest_of(dtype)).any() for t in truth):
        return  # an overflow gives infinities and NaNs, in places that depend on the engine
    has_nan = any(t.isnan().any() for t in tensors)
    # These engines call torch.mm, which with AMX spreads a NaN to the row before it.
    mixes_rows = ours.engine in ("stepwise", "reference") and dtype == torch.bfloat16
    for k, (a, b, true) in enumerate(zip(our_results, their_results[-1], truth, strict=True)):
        if has_nan:  # nn.LSTM skips some products with zeros, where fastlstm gets 0 * NaN = NaN
            our_results[k] = a = torch.where(a.isnan() & (b == 0), b, a)
        wrong = b.isfinite() & ~a.isfinite() & ~(true.abs() > largest_of(dtype))
        assert mixes_rows or not wrong.any(), f"result {k} should be finite"
        if weight_dtype == dtype:  # not under autocast
            assert a.dtype == b.dtype, f"result {k} has {a.dtype}, expected {b.dtype}"
        exact = dtype in (torch.float32, torch.float64) and not any_size
        # If only c_n has a gradient, the engines compute 0 * NaN for gate o. The reference skips o.
        if exact and ours.engine != "reference":
            assert torch.equal(a.isnan(), b.isnan()), f"result {k}: other elements are NaN"
    with torch.no_grad():  # makes the weights wrong by a roundoff: see `compare`
        for weight in theirs.parameters():
            weight.mul_(1 + torch.finfo(dtype).eps / 2 * torch.randn_like(weight))
    sizes += [weight.abs().max().item() for weight in theirs.parameters()]
    compare(our_results, truth, [*their_results, call(theirs, torch.float64)], dtype, max(sizes))


def largest_of(dtype):  # a larger true value may overflow in a result
    return torch.finfo(dtype).max / 8


def compare(our_results, truth, their_results, dtype, largest_given):
    """Checks that no error of `our_results` is much larger than the largest of `their_results`.

    `truth` is nn.LSTM's result in float64, `their_results` those in this dtype, and in float64 with
    weights that are wrong by a roundoff. `largest_given` is the largest argument or weight.
    """
    info = torch.finfo(dtype)
    largest = max((t.abs().max().item() for t in truth if t.numel()), default=0)
    # Errors below `floor` do not count. They come from subnormal numbers: these are less precise in
    # float16, and fastlstm flushes them to zero in the other dtypes.
    base_floor = 64 * info.tiny * (info.eps if dtype == torch.float16 else 1)
    floor = base_floor * max(1, largest_given, largest if largest == largest else 1)
    if dtype == torch.float64:  # the truth, too, has the roundoff of float64
        floor = 64 * info.eps * largest

    def errors(results, floor):
        values = []
        for result, true in zip(results, truth, strict=True):
            assert result.shape == true.shape, f"shape {result.shape}, expected {true.shape}"
            if true.numel() and (true.abs() <= largest_of(dtype)).all():
                scale = true.abs().max().item() + 1e-300
                error = (result.double() - true).abs().max().item()
                values.append(max(error - floor, 0) / scale if error == error else float("inf"))
        return values

    allowed = 64 * info.eps
    allowed += 20 * max(e for each in their_results for e in [0, *errors(each, base_floor)])
    for k, error in enumerate(errors(our_results, floor)):
        assert error <= allowed, f"result {k}: relative error {error}, expected at most {allowed}"


def layer_arguments(draw, dtype):
    """Returns the oracle's arguments, with a padded input, and the layout of the weights."""
    steps, batch, H = draw.int(1, 5), draw.int(1, 4), draw.int(1, 20)
    input_size, proj_size = draw.int(1, 9), draw.int(1, H) if draw.chance(0.3) else 0
    sizes = steps, batch, input_size, H, proj_size, draw.pick(1, 2)
    flags = {"bias": draw.chance(0.8), "norms": draw.chance(0.2), "reset": draw.chance(0.3)}
    lengths = tuple(draw.int(0, steps) for _ in range(batch)) if draw.chance(0.4) else None
    drawn = {"h_mask": draw.chance(0.2), "seed": draw.int(0, 1 << 30)}
    sample = Sample("fuzzed", *sizes, **flags, lengths=lengths, **drawn)
    return sample.padded(dtype), LAYOUTS[sample.bias, sample.proj_size > 0, sample.norms]


def as_call(draw, layer, layout):
    """Returns the op's arguments: perhaps packed, lengths as a tensor, perhaps other strides."""
    call = {**layer, "layout": layout, "batch_sizes": None}
    if layer["lengths"] is not None:
        call["lengths"] = torch.tensor(layer["lengths"])
    elif layer["reset"] is None and draw.chance(0.3):
        steps, batch = layer["input"].shape[:2]
        call["batch_sizes"] = torch.full((steps,), batch)
        call["input"] = call["input"].flatten(0, 1)
    for name, value in call.items():
        if isinstance(value, Tensor):
            call[name] = draw.restride(value)
    call["weights"] = [draw.restride(w) for w in call["weights"]]
    return call


def against_the_oracle(draw):
    layer, layout = layer_arguments(draw, torch.float64)
    oracle_arguments = with_leaves(layer)
    expected = list(oracle(**oracle_arguments))
    torch.manual_seed(1)
    gradients = [torch.randn(r.shape, dtype=torch.float64) for r in expected]
    pairs = zip(expected, gradients, strict=True)
    torch.autograd.backward(*zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True))
    call = as_call(draw, layer, layout)
    leaves = with_leaves(call)
    only_stepwise = "layer_norm" in layout or call["h_mask"] is not None
    engine = draw.pick("auto", "stepwise", *[] if only_stepwise else ["tiled"])
    found = list(torch.ops.fastlstm.lstm(**leaves, engine=engine)[:4])
    if call["lengths"] is not None:
        real = torch.arange(len(layer["input"]))[:, None] < call["lengths"]
        found[3] = torch.where(real[..., None], found[3], 0.0)
    torch.autograd.backward(found, [g.view(f.shape) for g, f in zip(gradients, found, strict=True)])
    found += [leaf.grad for leaf in floating(leaves)]
    expected += [leaf.grad for leaf in floating(oracle_arguments)]
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        a = torch.zeros_like(b) if a is None else a
        b = torch.zeros_like(a).view(a.shape) if b is None else b.view(a.shape)
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, k=k: f"{k}: {m}")


def damage(draw, tensor, engine):
    """Returns a damaged form of a tensor, which a call must refuse."""
    kind = draw.pick("shorter", "longer", "flat", "dims", "transposed", "dtype", "meta", "memory")
    if kind == "memory" and engine == "reference":  # ATen does not check the storage
        kind = "longer"
    k = draw.int(0, tensor.dim() - 1)
    if kind == "shorter":
        return tensor.narrow(k, 0, tensor.size(k) - 1)
    if kind == "flat" and tensor.dim() > 1:
        return tensor.flatten()
    if kind == "dims":
        return tensor.unsqueeze(k)
    if kind == "transposed" and tensor.dim() > 1 and tensor.size(0) != tensor.size(1):
        return tensor.transpose(0, 1)
    if kind == "dtype":
        return tensor.to(draw.pick(*(d for d in (*DTYPES, *OTHER_DTYPES) if d != tensor.dtype)))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "memory":
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(draw.pick(0, tensor.nbytes - 1))
        return tensor
    return torch.cat([tensor, tensor.narrow(k, 0, 1)], k)


def damaged_backward(draw):
    """The backward op must accept any strides, and refuse each tensor if it is damaged."""
    call = as_call(draw, *layer_arguments(draw, draw.pick(*DTYPES)))
    norms = "layer_norm" in call["layout"]
    engine = draw.pick("auto", "stepwise")
    saved = torch.ops.fastlstm.lstm(**call, save_cells=True, save_gates=True, engine=engine)
    output, h_n, c_n, cells, gates = saved
    tensors = {"grad_output": output, "grad_h_n": h_n, "grad_c_n": c_n, "grad_cells": cells}
    tensors |= {"output": output, "cells": cells, "gates": gates}
    needs = {"input_needs_grad": True, "state_needs_grad": True, "engine": engine}
    needs["return_d_gates"] = not norms and draw.chance(0.5)
    backward = torch.ops.fastlstm.lstm_backward
    expected = backward(**tensors, **call, **needs)
    again = backward(**{n: draw.restride(t) for n, t in tensors.items()}, **call, **needs)
    for a, b in zip([*expected[:3], *expected[3]], [*again[:3], *again[3]], strict=True):
        assert torch.equal(a, b), "the gradients depend on the strides"
    for name in tensors:
        given = {**tensors, name: damage(draw, tensors[name], engine)}
        expect_error(lambda given=given: backward(**given, **call, **needs), name)


def damaged_forward(draw):
    """Damages one argument of `functional.lstm` at a time."""
    layer = as_call(draw, *layer_arguments(draw, draw.pick(*DTYPES)))
    engine = draw.pick(*ENGINES)
    if "layer_norm" in layer["layout"] and engine == "tiled":
        engine = "stepwise"
    names = "input", "weights", "layout", "batch_sizes", "lengths", "reset"
    arguments = {name: layer[name] for name in names} | {"hx": (layer["h_0"], layer["c_0"])}
    arguments |= {"engine": engine, "bidirectional": layer["h_0"].shape[0] == 2}
    functional.lstm(**arguments)
    for name in "input h_0 c_0 weights batch_sizes lengths reset number".split():
        damage_argument(draw, layer, dict(arguments), name)


def damage_argument(draw, layer, arguments, name):
    not_a_tensor = draw.pick(3, "x", [1.0], (), True, float("nan"))
    damaged = lambda t: not_a_tensor if draw.chance(0.3) else damage(draw, t, arguments["engine"])
    texts = name  # the error must have one of these texts, which `|` separates
    if name == "number":
        numbers = {"num_layers": draw.pick(0, -1, 1.5, None, "2"), "dropout": draw.pick(-1, 2, "x")}
        texts = name = draw.pick(*numbers, "zoneout_c", "recurrent_dropout")
        arguments |= {name: numbers.get(name, draw.pick(-0.1, float("nan"))), "training": True}
        if name == "num_layers":
            texts += "|= layers * directions"  # from the error of h_0
    elif name in ("h_0", "c_0"):
        bad = damaged(layer[name])
        arguments["hx"] = (bad, layer["c_0"]) if name == "h_0" else (layer["h_0"], bad)
        if name == "c_0" and isinstance(bad, Tensor) and bad.dtype == torch.float32:
            return  # layers of 16-bit types accept c_0 in float32
        texts = "h_0|c_0|batch_sizes to start with the batch size"
    elif name == "weights":
        k = draw.int(0, len(layer["weights"]) - 1)
        weights = list(layer["weights"])
        weights[k] = damaged(weights[k])
        arguments["weights"] = weights
        texts = "W_|b_|gain_|bias_c|weights|input"
    elif arguments[name] is None:
        return
    else:
        tensor = arguments[name]
        bad = damaged(tensor)
        fits = isinstance(bad, Tensor) and bad.shape == tensor.shape and bad.device == tensor.device
        if name == "lengths" and fits and bad.dtype.is_signed:
            return  # another signed dtype may be accepted
        if name == "reset" and fits:
            return  # a reset of another dtype may be accepted
        arguments[name] = bad
        if name == "input" and isinstance(bad, Tensor) and bad.shape[1:] == tensor.shape[1:]:
            return  # another number of steps is valid
        if name in ("input", "batch_sizes"):
            texts = "input|W_ih|h_0|reset|lengths|batch_sizes|sequence length"
    expect_error(lambda: functional.lstm(**arguments), texts)


def expect_error(function, texts):
    """Expects a plain error whose message has one of the texts, which `|` separates."""
    try:
        function()
    except PLAIN_ERRORS as error:
        assert any(text in str(error) for text in texts.split("|")), f"{texts}: {error}"
        assert "incompatible function arguments" not in str(error), error
        assert "INTERNAL ASSERT" not in str(error), error
    else:
        raise AssertionError(f"no error for a bad argument: {texts}")


def damaged_prepacked(draw):
    dtype = draw.pick(torch.float32, torch.float64, torch.bfloat16)
    sizes = {**random_options(draw), "num_layers": 1, "dtype": dtype}
    lstm = fastlstm.LSTM(**sizes).eval()
    smaller = () if dtype == torch.float64 else (torch.bfloat16, torch.int8)
    prepacked = fastlstm.prepack(lstm, draw.pick(None, *smaller))
    batch, directions = draw.int(1, 4), 1 + prepacked.bidirectional
    H, P = prepacked.hidden_size, prepacked.proj_size or prepacked.hidden_size
    shapes = (draw.pick(1, 3), batch, prepacked.input_size), (directions, batch, P)
    names = zip(("input", "h_0", "c_0"), (*shapes, (directions, batch, H)), strict=True)
    call = {name: draw.values(*shape).to(dtype) for name, shape in names}
    weights = prepacked._op_weights()

    def run_direct(input, h_0, c_0, weights):
        layer = input, h_0, c_0, weights, prepacked._layout
        return _build.library.lstm(*layer, None, None, None, None, False, "auto")

    def run_op(input, h_0, c_0, weights):
        return torch.ops.fastlstm.lstm_prepacked(input, h_0, c_0, weights, prepacked._layout)[:4]

    run = draw.pick(run_direct, run_op)
    expected = run(**call, weights=weights)
    negated = {name: torch._neg_view(-tensor) for name, tensor in call.items()}
    for a, b in zip(run(**negated, weights=weights), expected, strict=True):
        assert a is b or torch.equal(a, b), "negated views change the results"
    name = draw.pick("input", "h_0", "c_0", "weight")
    if name == "weight":
        k = draw.int(0, len(weights) - 1)
        damaged = [*weights]
        damaged[k] = damage(draw, weights[k], "auto")
        if damaged[k].shape == (1, weights[k].numel()):
            return  # this is the shape of a prepacked matrix
        expect_error(lambda: run(**call, weights=damaged), "lstm|packed|weight|bias|memory|Meta")
    else:
        before = call[name]
        call[name] = damage(draw, before, "auto")
        if name == "input" and call[name].shape[1:] == (batch, prepacked.input_size):
            return  # another number of steps is valid
        if call[name].shape[:-1] == before.shape[:-1] and (name == "input" or P != H):
            return  # prepacked matrices are padded: the op does not know the exact sizes
        if name == "c_0" and call[name].dtype == torch.float32 and call[name].is_cpu:
            return  # layers of 16-bit types accept c_0 in float32
        expect_error(lambda: run(**call, weights=weights), "lstm|packed|memory|sequence|Meta|h_0")


CHECKS = against_torch, against_torch, against_the_oracle
CHECKS += damaged_backward, damaged_forward, damaged_prepacked


def run(seed):
    """Runs the case of a seed; returns a text that says what failed, or None."""
    draw = Draw(seed)
    check = draw.pick(*CHECKS)
    try:
        check(draw)
    except Exception:
        return f"seed {seed}, {check.__name__}:\n{traceback.format_exc(limit=-3)}"
    return None


def main(arguments, run=run):
    first, count = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1
    warnings.simplefilter("ignore")
    failures = 0
    for seed in range(first, first + count):
        print(f"begin {seed}", flush=True)
        if text := run(seed):
            failures += 1
            print(text, flush=True)
    print("done")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
