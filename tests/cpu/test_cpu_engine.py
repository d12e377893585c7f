"""The CPU engines: every instruction set, any number of threads, memory, changed weights."""

import copy
import functools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from oracle import oracle
from samples import Sample, floating, with_floating
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader

import fastlstm
from fastlstm import _build

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")

# T, B, I, H: full and partial register tiles of every width, one row and many, one step and many.
SHAPES = [
    (1, 1, 3, 5), (1, 7, 16, 32), (3, 1, 16, 64), (5, 4, 9, 16), (4, 13, 7, 33), (2, 20, 65, 100),
    (5, 70, 4, 24),
]  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def layer_arguments(T, B, input_size, H, dtype=torch.float32, directions=1, P=0):
    """Returns arguments of the op. P is the size of the projection; 0: no projection."""
    sizes = T, B, input_size, H, P, directions
    sample = Sample("layer", *sizes, exact=True)
    return {name: given for name, given in sample.arguments(dtype).items() if given is not None}


def weighting(outputs):
    return [torch.arange(y.numel()).remainder(129).sub(64).to(y).view_as(y) / 64 for y in outputs]


def run(arguments, compute=None):
    leaves = [t.detach().clone().requires_grad_() for t in floating(arguments)]
    outputs = (compute or torch.ops.fastlstm.lstm)(**with_floating(arguments, leaves))[:3]
    with_grad = [y for y in outputs if y.requires_grad]  # the oracle may return constant zeros
    gradients = torch.autograd.grad(with_grad, leaves, weighting(with_grad), materialize_grads=True)
    return [*outputs, *gradients]


@functools.cache
def oracle_of(shape, directions, P):
    """Returns the oracle's results for `ragged`, whose values are exact in every dtype."""
    given = ragged(shape, torch.float64, directions, P)
    del given["layout"]
    return run({**given, "lengths": given["lengths"].tolist()}, oracle)


def ragged(shape, dtype, directions, P):
    """Returns the arguments of a layer whose rows have every length from T down to 0."""
    steps, batch, *_ = shape
    lengths = steps - torch.arange(batch).remainder(steps + 1)
    return {**layer_arguments(*shape, dtype, directions, P), "lengths": lengths}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("projects", [False, True])
def test_against_the_oracle(shape, dtype, directions, projects):
    options = directions, shape[3] * 2 // 3 if projects else 0
    found, expected = run(ragged(shape, dtype, *options)), oracle_of(shape, *options)
    for got, want in zip(found, expected, strict=True):
        # Every sum has at most `terms` rounded terms of the size of the largest result.
        terms = shape[0] * max(shape[1:])
        bound = torch.finfo(dtype).eps * (4 + terms**0.5) * want.abs().max().clamp(min=1.0)
        assert (got.double() - want).abs().max() <= bound


# Tests whose results depend on the kernels. Tests of compilers and errors, for example, do not.
ON_EVERY_INSTRUCTION_SET = [
    "cpu/test_cpu_engine.py::test_against_the_oracle",
    "op/test_same_bits.py::test_few_seeds", "op/test_fuzzed_calls.py::test_few_seeds",
    *(f"op/test_layer.py::test_{name}" for name in (
        "results", "gradients", "padding_is_never_read", "arguments_are_left_as_they_were",
    )),
    *(f"module/test_prepacked.py::test_{name}" for name in (
        "the_bits_of_a_layer_that_is_not_prepacked", "the_bits_of_a_cell_that_is_not_prepacked",
        "every_step_against_plain_equations", "rows_of_zeros_and_numbers_out_of_range",
    )),
    *(f"module/test_sequences.py::test_{name}" for name in (
        "lengths_equal_packed_input", "a_reset_stops_a_nan", "cell_states",
    )),
    "op/test_numerics.py", "module/test_regularizers.py::test_every_dtype",
    "module/test_regularizers.py::test_every_engine_draws_the_same",
    "module/test_layer_norm.py::test_two_bidirectional_layers",
]  # fmt: skip


def run_on_other_kernels(key, select, variables):
    """Runs the tests of the list in a new process; returns the text of its build_info()[key]."""
    tests = [f"{Path(__file__).parents[1] / test}" for test in ON_EVERY_INSTRUCTION_SET]
    code = f"import sys, pytest; from fastlstm import _C; print(_C.build_info()[{key!r}]);"
    code += f"sys.exit(pytest.main(['-q', '-k', '{select}', *{tests!r}]))"
    command, environment = [sys.executable, "-c", code], os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    return done.stdout.splitlines()[0]


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability):
    torch_names = {"baseline": "default", "neon": "default"}
    best = _build.library.build_info()["cpu_capability"]
    if capability == torch_names.get(best, best):
        pytest.skip(f"all other tests use {capability}")
    variables = {"ATEN_CPU_CAPABILITY": capability}
    chosen = run_on_other_kernels("cpu_capability", "not reference and not cuda", variables)
    chosen = torch_names.get(chosen, chosen)
    if chosen != capability and capability.upper() not in torch.__config__.show().upper():
        pytest.skip(f"this machine or build of torch has no {capability}")
    assert chosen == capability or chosen == "default"


def test_without_tiles_of_amx():
    if "bfloat16x2" not in _build.library.build_info()["products"]:
        pytest.skip("no AMX: no test uses its tiles")
    select = "(bfloat16 or int8 or rows_of_zeros or test_few_seeds) and not reference and not cuda"
    assert "amx" not in run_on_other_kernels("products", select, {"FASTLSTM_AMX": "0"})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("thread_count, hidden", [(1, 64), (2, 8), (3, 64)])
def test_two_directions_in_several_chunks(packed, thread_count, hidden, threads):
    """With 64 units backward takes several chunks; with 8, weight gradients sum in two parts."""
    threads(thread_count)
    torch.manual_seed(0)
    theirs = nn.LSTM(3, hidden, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(171, 7, 3).double(), torch.randn(2, 2, 7, hidden).double()
    lengths = torch.tensor([171, 171, 170, 170, 170, 169, 5] if packed else [171] * 7)
    results = []
    for lstm in (fastlstm.convert(copy.deepcopy(theirs)), theirs):
        leaves = [t.clone().requires_grad_() for t in (x, *hx)]
        output, state = lstm(pack_padded_sequence(leaves[0], lengths), tuple(leaves[1:]))
        (output.data.sin().sum() + state[0].sum() + state[1].cos().sum()).backward()
        results.append([output.data, *(t.grad for t in (*leaves, *lstm.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("P", [0, 23])
def test_a_zero_state_is_left_out_of_the_products(P, dtype):
    arguments = ragged((5, 20, 17, 50), dtype, 2, P)
    zeros = torch.zeros_like(arguments["h_0"])
    multiplied = run(arguments | {"h_0": -zeros})  # -0 is not left out
    assert same(run(arguments | {"h_0": zeros}), multiplied)
    step, end = ragged((1, 20, 17, 50), dtype, 2, P), zeros.clone()
    end[-1, -1, -1] = 1
    for k in (1, 1 + len(step["weights"]) // 2):
        step["weights"][k] = torch.full_like(step["weights"][k], torch.inf)
    outputs = (torch.ops.fastlstm.lstm(**step | {"h_0": h_0})[0] for h_0 in (zeros, -zeros, end))
    assert [y.isfinite().all().item() for y in outputs] == [True, False, False]


def test_several_python_threads_at_once():
    cases = [layer_arguments(8, 16 + k, 24, 64) for k in range(4)] * 5
    expected = [run(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, pool.map(run, cases), expected))


def test_in_forked_workers_of_a_data_loader(threads):
    threads(2)
    run = lambda _: torch.ops.fastlstm.lstm(**layer_arguments(20, 32, 40, 100))[0]
    expected, options = run(0), {"num_workers": 2, "multiprocessing_context": "fork"}
    loader = DataLoader(range(4), collate_fn=run, timeout=60, **options)
    assert same(loader, [expected] * 4)  # the first call has started threads


def test_working_memory_is_bounded():
    release = _build.library.release_scratch
    with torch.no_grad():
        for size in (300, 700, 1100, 1500):
            fastlstm.LSTM(size, size)(torch.randn(60, 9, size))
    # The last LSTM packs 72 MB of weights, but at most 64 MiB are kept.
    assert 32 << 20 < release() <= 64 << 20
    assert release() == 0
    lstm, kept_bytes = fastlstm.LSTM(64, 128), []
    for sizes in ([64], range(64), range(64, 0, -1)):
        for steps in sizes:
            lstm(torch.randn(steps + 1, 32, 64))[0].sum().backward()
        kept_bytes.append(release())
    assert max(kept_bytes) <= 1.5 * kept_bytes[0]  # no memory is kept for each number of steps


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("steps", [1, 5])
def test_changed_weights_are_seen_at_once(mode, steps):
    x = torch.randn(steps, 3, 8)
    lstm, torch_lstm = fastlstm.LSTM(8, 16), torch.nn.LSTM(8, 16)
    other_bias = torch.nn.Parameter(torch.ones(64))

    def check():
        torch_lstm.load_state_dict(lstm.state_dict())
        torch.testing.assert_close(lstm(x)[0], torch_lstm(x)[0])

    with mode():
        check()
        lstm.weight_hh_l0.mul_(2)
        check()
        lstm.weight_ih_l0.data.add_(0.5)  # hides from the version counter
        check()
        lstm.weight_hh_l0.detach().numpy()[:] *= -1  # so does this
        check()
        lstm.load_state_dict(torch.nn.LSTM(8, 16).state_dict())
        check()
        lstm.bias_ih_l0 = other_bias
        check()
    lstm.double(), torch_lstm.double()
    x = x.double()
    check()


def packed(weight, scale=None, format="float32"):
    return _build.library.pack_weight(weight, scale, format, False)


INT8, ONES = torch.zeros(8, 5, dtype=torch.int8), torch.ones(8)


@pytest.mark.parametrize("arguments, message", [
    ((ONES,), "two dimensions in Float on the CPU, without scales, got [8] Float on cpu without s"),
    ((torch.zeros(8, 0),), "got [8, 0]"),
    ((torch.zeros(8, 5, device="meta"),), "got [8, 5] Float on meta without scales"),
    ((torch.zeros(8, 5).to_sparse(),), "weight of two dimensions"),
    ((INT8.float(), None, "bfloat16"), "in BFloat16 on the CPU, without scales, got [8, 5] Float"),
    ((INT8.float(), ONES), "without scales, got [8, 5] Float on cpu with scales"),
    ((INT8, None, "int8"), "in Char on the CPU, with scales, got [8, 5] Char on cpu without s"),
    ((INT8, ONES.double(), "int8"), "a scale of float32 for each of 8 rows, got [8]"),
    ((INT8, ONES.to("meta"), "int8"), "a scale of float32 for each of 8 rows, got [8]"),
    ((INT8, ONES[1:], "int8"), "a scale of float32 for each of 8 rows, got [7]"),
    ((INT8, ONES[None], "int8"), "a scale of float32 for each of 8 rows, got [1, 8]"),
    ((INT8.new_zeros(1, 66312), ONES[1:2], "int8"), "at most 66311 columns of int8, got 66312"),
    ((INT8, None, "bfloat16x2"), 'a format that fastlstm.prepack takes, got "bfloat16x2"'),
])  # fmt: skip
def test_weights_that_cannot_be_packed(arguments, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        packed(*arguments)


@pytest.mark.parametrize("change, message", [
    *((change, r"got a tensor \[.*\] of .*: pack the model again") for change in (
        torch.zeros_like, lambda w: w.view(torch.int8), lambda w: w[None], lambda w: w[:64],
        lambda w: w.as_strided((len(w) // 2,), (2,)),
    )),
    (lambda w: w[:-16], r"expected \d+ bytes of a prepacked matrix \[8, 5\], got"),
    (lambda w: w.index_fill(0, torch.arange(8, 24), ord("A")), f'got "{"A" * 15}"$'),
    (lambda w: torch.cat([w[:24], w[24:25] + 1, w[25:]]),  # the lanes
     r"\(float32 in panels of (\d+)x(\d)\), got weights in float32 in panels of (?!\1)\d+x\2"),
])  # fmt: skip
def test_bytes_that_are_no_prepacked_weight(change, message):
    with pytest.raises(RuntimeError, match=message):
        _build.library.unpack_weight(change(packed(torch.zeros(8, 5))))


def test_prepacked_weights_of_other_sizes():
    packed(INT8.new_zeros(1, 66311), ONES[:1], "int8"), packed(ONES[:1, None])
    prepacked = fastlstm.prepack(fastlstm.LSTM(6, 10, proj_size=7).eval(), torch.int8)
    states = [torch.zeros(1, 3, size) for size in (6, 7, 10)]
    w_ih, w_hh, *others, w_hr = prepacked._op_weights()
    for given, message in (
        ((w_ih, w_ih, *others, w_hr), r"\[40, 7\] of gates, got \[40, 6\] of gates$"),
        ((w_ih, w_hh, *others, w_ih), r"\[7, 10\], got \[40, 6\] of gates$"),
    ):
        with pytest.raises(RuntimeError, match=f"expected a prepacked matrix {message}"):
            torch.ops.fastlstm.lstm_prepacked(*states, given, prepacked._layout)
