"""float32 by products of bfloat16 (csrc/cpu/products/split_float32.h), as layers use them."""

import os
import subprocess
import sys

import pytest
import torch

import fastlstm
from fastlstm import _build

ROWS, UNITS = 64, 256  # from which on they are used
PRECISION = torch.backends.mkldnn

pytestmark = pytest.mark.skipif(not _build.has_kernels("cpu"), reason="there are no kernels")


def cpu():
    return _build.library.build_info()


def needs_amx():
    if not cpu()["splits_float32"]:
        pytest.skip("this processor has no AMX with bfloat16")


def needs_avx512():
    if cpu()["cpu_capability"] != "avx512":
        pytest.skip("the tiles are emulated with AVX-512 alone")


@pytest.fixture
def precision():
    """Sets torch.backends.mkldnn.rnn.fp32_precision, and sets it back."""
    if not hasattr(PRECISION, "rnn"):
        pytest.skip("this torch has no precision of its own for recurrent layers")
    before = PRECISION.rnn.fp32_precision

    def choose(name):
        PRECISION.rnn.fp32_precision = name

    yield choose
    PRECISION.rnn.fp32_precision = before


def layers(input_size, hidden_size=UNITS, seed=0, **options):
    """An LSTM, and torch.nn's in float64 with the same weights."""
    torch.manual_seed(seed)
    ours = fastlstm.LSTM(input_size, hidden_size, **options).eval()
    exact = torch.nn.LSTM(input_size, hidden_size, **options).double()
    exact.load_state_dict(ours.state_dict())
    return ours, exact


def error(found, exact):
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"proj_size": 90}]
)
@pytest.mark.parametrize("steps", [3, 1000])
@torch.no_grad()
def test_at_most_the_error_of_float32(precision, options, steps) -> None:
    needs_amx()
    ours, exact = layers(70, **options)
    x = torch.randn(steps, ROWS, 70)
    output, (_, c_n) = ours(x)
    true_output, (_, true_c_n) = exact(x.double())
    precision("ieee")
    plain, (_, plain_c_n) = ours(x)
    assert not torch.equal(output, plain)  # they are another product
    assert error(output, true_output) <= error(plain, true_output)
    assert error(c_n, true_c_n) <= error(plain_c_n, true_c_n)


@torch.no_grad()
def test_ragged_and_packed_rows(precision) -> None:
    """As many rows as a step has on average; the last steps have few, or one."""
    needs_amx()
    ours, exact = layers(40)
    lengths = torch.tensor([9] + [8] * 70 + [7] * 30)
    x = torch.randn(9, len(lengths), 40)
    for row, length in enumerate(lengths):
        x[length:, row] = 0
    output, _ = ours(x, lengths=lengths)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.double(), lengths)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(exact(packed)[0])
    precision("ieee")
    plain, _ = ours(x, lengths=lengths)
    assert not torch.equal(output, plain)
    assert error(output, expected) <= error(plain, expected)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
@torch.no_grad()
def test_packed_weights(precision, options) -> None:
    """Packed as float32 they take the same products as the layer, bit for bit."""
    needs_amx()
    ours, _ = layers(40, 270, **options)
    packed = fastlstm.prepack(ours, torch.float32)
    x = torch.randn(6, ROWS + 6, 40)
    lengths = torch.tensor([6] * ROWS + [5] * 6)
    split = packed(x, lengths=lengths)[0]
    assert torch.equal(split, ours(x, lengths=lengths)[0])
    precision("ieee")
    plain = packed(x, lengths=lengths)[0]
    assert torch.equal(plain, ours(x, lengths=lengths)[0])
    assert not torch.equal(plain, split)


@torch.no_grad()
def test_packed_weights_with_a_projection(precision) -> None:
    needs_amx()
    ours, exact = layers(40, 270, proj_size=50)
    packed = fastlstm.prepack(ours, torch.float32)
    x = torch.randn(6, ROWS, 40)
    expected, found = exact(x.double())[0], packed(x)[0]
    precision("ieee")
    plain = packed(x)[0]
    assert not torch.equal(found, plain)
    assert error(found, expected) <= error(plain, expected)


@torch.no_grad()
def test_where_float32_stays_what_it_is(precision) -> None:
    """Few rows of a step or a call, few units, a requested precision: the bits of "tiled"."""

    def bits(rows, units, engine="auto", steps=6):
        ours, _ = layers(30, units)
        x = torch.randn(steps, rows, 30, generator=torch.Generator().manual_seed(1))
        weights = list(ours.parameters())
        zeros = torch.zeros(1, rows, units)
        return fastlstm.functional.lstm(x, (zeros, zeros), weights, engine=engine)[0]

    for rows, units in [(ROWS - 1, UNITS), (ROWS, UNITS - 1), (23, 3 * UNITS)]:
        assert torch.equal(bits(rows, units), bits(rows, units, "tiled"))
    few = 40, 2 * UNITS
    assert torch.equal(bits(*few, steps=3), bits(*few, "tiled", steps=3))
    precision("ieee")
    assert torch.equal(bits(ROWS, UNITS), bits(ROWS, UNITS, "tiled"))


def gradients(module, x, **call):
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    output = module(x, **call)[0]
    wanted = [x, *module.parameters()]
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, wanted, direction.to(x.dtype))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True, "bias": False},
        {"num_layers": 2},
        {"bidirectional": True, "proj_size": 90},
    ],
)
@pytest.mark.parametrize(("input_size", "hidden_size"), [(70, UNITS), (256, 300), (33, 411)])
def test_gradients_have_at_most_the_error_of_float32(
    precision, options, input_size, hidden_size
) -> None:
    needs_amx()
    ours, exact = layers(input_size, hidden_size, **options)
    x = torch.randn(12, ROWS + 3, input_size)
    expected, found = gradients(exact, x.double()), gradients(ours, x)
    precision("ieee")
    for true, split, plain in zip(expected, found, gradients(ours, x), strict=True):
        assert not torch.equal(split, plain)
        # A bias has no product: its gradient is a sum of numbers that have the smaller error.
        most = 1 if split.dim() > 1 else 1.25
        assert error(split, true) <= most * error(plain, true)


def test_tf32_takes_three_products(precision) -> None:
    """Two planes leave out 2^-15 of a product at most; TF32 would round its factors to 2^-11."""
    needs_amx()
    ours, exact = layers(70, 300, bidirectional=True)
    x = torch.randn(12, ROWS, 70)
    expected, six = gradients(exact, x.double()), gradients(ours, x)
    precision("tf32")
    for true, more, less in zip(expected, six, gradients(ours, x), strict=True):
        size = true.square().mean().sqrt().item()
        assert error(more, true) < error(less, true) <= 2**-15 * size


def test_gradients_of_ragged_rows_and_resets(precision) -> None:
    needs_amx()
    ours, _ = layers(40)
    lengths = torch.tensor([9] + [8] * 120 + [7] * 60)  # 154 rows of a mean step
    x = torch.randn(9, len(lengths), 40)
    for call in {"lengths": lengths}, {"reset": torch.rand(x.shape[:2]) < 0.1}:
        precision("none")
        found = gradients(ours, x, **call)
        precision("ieee")
        for split, plain in zip(found, gradients(ours, x, **call), strict=True):
            assert not torch.equal(split, plain)
            torch.testing.assert_close(split, plain, atol=2e-4, rtol=1e-5)


def test_gradients_that_are_not_finite() -> None:
    """An infinity in one row of the input: what nn.LSTM's gradients are."""
    needs_amx()
    ours, exact = layers(40)
    x = torch.randn(3, ROWS, 40)
    x[1, 5, 7] = float("inf")
    for found, true in zip(gradients(ours, x), gradients(exact, x.double()), strict=True):
        torch.testing.assert_close(found.double(), true, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@torch.no_grad()
def test_values_that_are_not_finite(value) -> None:
    """In the input of one row: it gives what nn.LSTM gives, and the others keep their bits."""
    needs_amx()
    ours, exact = layers(40)
    x = torch.randn(3, ROWS, 40)
    before, _ = ours(x)
    x[1, 5, 7] = value
    output, _ = ours(x)
    expected, _ = exact(x.double())
    torch.testing.assert_close(
        output[:, 5].double(), expected[:, 5], atol=1e-5, rtol=1e-5, equal_nan=True
    )
    others = [row for row in range(ROWS) if row != 5]
    assert torch.equal(output[:, others], before[:, others])


@torch.no_grad()
def test_a_weight_that_is_infinite() -> None:
    needs_amx()
    ours, exact = layers(40)
    ours.weight_ih_l0[3, 2] = float("inf")
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(3, ROWS, 40)
    expected, _ = exact(x.double())
    torch.testing.assert_close(ours(x)[0].double(), expected, atol=1e-5, rtol=1e-5, equal_nan=True)


SCRIPT = """
import sys, torch, fastlstm
torch.manual_seed(0)
lstm = fastlstm.LSTM(40, 256, bidirectional=True).eval()
with torch.no_grad():
    torch.save(lstm(torch.randn(3, 70, 40))[0], sys.argv[1])
"""


def run_with(switch, file):
    """The output of a script with FASTLSTM_AMX set."""
    environment = {**os.environ, "FASTLSTM_AMX": switch}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], env=environment, capture_output=True, text=True
    )
    return done, torch.load(file) if done.returncode == 0 else None


def test_with_and_without_tiles(tmp_path) -> None:
    """With AMX or its emulation, and without: close, and neither is the other."""
    needs_avx512()
    with_tiles = run_with("1", tmp_path / "with")[1]
    without = run_with("0", tmp_path / "without")[1]
    assert not torch.equal(with_tiles, without)
    torch.testing.assert_close(with_tiles, without, atol=1e-6, rtol=1e-5)


def test_an_unknown_value_of_the_switch(tmp_path) -> None:
    needs_avx512()
    done, _ = run_with("yes", tmp_path / "none")
    assert done.returncode != 0
    assert "FASTLSTM_AMX: expected 0 or 1, got yes" in done.stderr


def test_the_plan_names_the_product() -> None:
    needs_amx()
    sizes = {"input_size": 128, "steps": 20, "directions": 1, "threads": 2}
    sizes["l2_cache_bytes"] = 2 << 20

    def product(hidden_size, batch, training=False, backward=False):
        return _build.library.plan_cpu(
            dtype="float32",
            hidden_size=hidden_size,
            batch=batch,
            training=training,
            backward=backward,
            **sizes,
        )["product"]

    assert product(UNITS, ROWS) == "bfloat16x3"
    assert product(342, 48) == product(1000, 24) == "bfloat16x3"
    for units, rows in (UNITS, ROWS - 1), (341, 48), (1000, 23), (UNITS - 1, 2 * ROWS):
        assert product(units, rows) == "float32"
    assert product(UNITS, ROWS, training=True) == "bfloat16x3"
    assert product(UNITS, ROWS, training=True, backward=True) == "bfloat16x3"
    assert product(UNITS, ROWS - 1, training=True, backward=True) == "float32"
