"""Bad input gives an error that names the argument, on every route; no crash, no garbage."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from samples import Route, every_module_route, every_op_route, every_route
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import _build, functional

T, B, I, H, P = 4, 3, 2, 5, 3
# In the words of newer and of older versions of torch.
OTHER_DTYPE = (
    r"input dtype \(.*64\) .* weight dtype|must have the type torch.float32, got type torch.float64"
)


def arguments(route: Route, *, directions: int = 1, proj_size: int = 0) -> dict[str, Any]:
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, bidirectional=directions == 2, proj_size=proj_size, device=route.device)
    return {
        "input": torch.randn(T, B, I, device=route.device),
        "hx": (
            torch.zeros(directions, B, proj_size or H, device=route.device),
            torch.zeros(directions, B, H, device=route.device),
        ),
        "weights": [p.detach() for p in lstm.parameters()],
        "bidirectional": directions == 2,
        "engine": route.engine,
    }


Change = Callable[[dict[str, Any]], None]


def state(k: int, change: Callable[[Tensor], Tensor]) -> Change:
    def apply(a: dict[str, Any]) -> None:
        hx = list(a["hx"])
        hx[k] = change(hx[k])
        a["hx"] = tuple(hx)

    return apply


def weight(k: int, change: Callable[[Tensor], Tensor]) -> Change:
    def apply(a: dict[str, Any]) -> None:
        a["weights"][k] = change(a["weights"][k])

    return apply


def put(**values: Any) -> Change:
    def apply(a: dict[str, Any]) -> None:
        a.update({k: v(a) if callable(v) else v for k, v in values.items()})

    return apply


def packed(sizes: Any, rows: int = 8) -> Change:
    return put(
        batch_sizes=lambda a: torch.tensor(sizes) if isinstance(sizes, list) else sizes,
        input=lambda a: a["input"].new_zeros(rows, I),
    )


# What is done to good arguments; what the message must hold: the argument, and what came.
BAD: dict[str, tuple[Change, str]] = {
    "input 2-D": (put(input=lambda a: a["input"][0]), r"input.*\[?\(?3, 2"),
    "input 1-D": (put(input=lambda a: a["input"][0, 0]), r"input.*\(2,?\)"),
    "input 1-D batch_first": (
        put(input=lambda a: a["input"][0, 0], batch_first=True),
        r"input.*\(2,?\)",
    ),
    "input 1-D without state": (put(input=lambda a: a["input"][0, 0], hx=None), r"input.*\(2,?\)"),
    "W_hh columns without state": (
        lambda a: (weight(1, lambda w: w[:, :4])(a), put(hx=None)(a))[1],
        r"W_hh.*20, 5.*20, 4",
    ),
    "input 4-D": (put(input=lambda a: a["input"][None]), r"input.*1, 4, 3, 2"),
    "input_size": (put(input=lambda a: a["input"][..., :1]), r"W_ih.*20, 1.*20, 2"),
    "input of integers": (put(input=lambda a: a["input"].long()), r"input.*int64"),
    "input dtype": (put(input=lambda a: a["input"].double()), r"(W_ih|h_0).*(float64|Double)"),
    "input on meta": (put(input=lambda a: a["input"].to("meta")), r"on meta like input"),
    "no steps": (put(input=lambda a: a["input"][:0]), r"sequence length to be larger than 0"),
    "h_0 batch": (state(0, lambda t: t[:, :2]), r"h_0.*1, 3, 5.*1, 2, 5"),
    "h_0 size": (state(0, lambda t: t[..., :4]), r"h_0.*1, 3, 5.*1, 3, 4"),
    "h_0 2-D": (state(0, lambda t: t[0]), r"h_0.*3, 5"),
    "h_0 layers": (state(0, lambda t: t.expand(3, -1, -1)), r"h_0.*3, 3, 5"),
    "h_0 dtype": (state(0, lambda t: t.double()), r"h_0.*float32|h_0.*Float.*Double"),
    "h_0 on meta": (state(0, lambda t: t.to("meta")), r"h_0.*on.*meta"),
    "c_0 batch": (state(1, lambda t: t[:, :2]), r"c_0.*1, 3, 5.*1, 2, 5"),
    "c_0 size": (state(1, lambda t: t[..., :4]), r"c_0.*1, 3, 5.*1, 3, 4"),
    "c_0 layers": (state(1, lambda t: t.expand(3, -1, -1)), r"c_0.*3, 3, 5"),
    "c_0 dtype": (state(1, lambda t: t.half()), r"c_0.*float32|c_0.*Float.*Half"),
    "c_0 on meta": (state(1, lambda t: t.to("meta")), r"c_0.*on.*meta"),
    "W_ih columns": (weight(0, lambda w: w[:, :1]), r"W_ih.*20, 2.*20, 1"),
    "W_ih rows": (weight(0, lambda w: w[:19]), r"W_ih.*(19, 2|4 \* hidden_size)"),
    "W_ih 1-D": (weight(0, lambda w: w[:, 0]), r"(W_ih|weights\[0\]).*20"),
    "W_ih dtype": (weight(0, lambda w: w.double()), r"W_ih.*(float64|Double)"),
    "W_hh columns": (weight(1, lambda w: w[:, :4]), r"W_hh.*20, 5.*20, 4"),
    "W_hh on meta": (weight(1, lambda w: w.to("meta")), r"W_hh.*on.*meta"),
    "b_ih size": (weight(2, lambda w: w[:19]), r"b_ih.*20.*19"),
    "b_hh size": (weight(3, lambda w: w[:1]), r"b_hh.*20.*1"),
    "b_hh 2-D": (weight(3, lambda w: w[:, None]), r"(b_hh|weights\[3\]).*20, 1"),
    "weights: one": (put(weights=lambda a: a["weights"][:1]), r"weights.*1 tensors"),
    "weights: ten": (
        put(weights=lambda a: a["weights"] * 2 + a["weights"][:2]),
        r"weights.*10 tensors",
    ),
    "gain_hh": (
        put(
            weights=lambda a: a["weights"] + [torch.ones(n) for n in (20, 19, 5, 5)],
            layout="bias layer_norm",
        ),
        r"gain_hh.*20.*19",
    ),
    "bias_c": (
        put(
            weights=lambda a: a["weights"] + [torch.ones(n) for n in (20, 20, 5, 4)],
            layout="bias layer_norm",
        ),
        r"bias_c.*5.*4",
    ),
    "weights: none": (put(weights=[]), r"weights.*0 tensors"),
    "layout: too few weights": (put(layout="bias projection"), r"weights.*4 tensors"),
    "lengths 2-D": (put(lengths=torch.ones(B, 1).long()), r"lengths.*3.*3, 1"),
    "lengths batch": (put(lengths=torch.ones(2).long()), r"lengths.*3.*2"),
    "lengths negative": (put(lengths=torch.tensor([1, -1, 2])), r"lengths.*between 0.*4.*-1"),
    "lengths too long": (put(lengths=torch.tensor([1, 5, 2])), r"lengths.*between 0.*4.*5"),
    "reset 1-D": (put(reset=lambda a: torch.ones(T).bool()), r"reset.*4, 3.*4"),
    "reset 1-D batch_first": (
        put(
            input=lambda a: a["input"].transpose(0, 1),
            batch_first=True,
            reset=lambda a: torch.ones(T).bool(),
        ),
        r"reset.*batch, steps.*4",
    ),
    "reset transposed": (put(reset=lambda a: torch.ones(B, T).bool()), r"reset.*4, 3.*3, 4"),
    "reset complex": (put(reset=lambda a: torch.ones(T, B).cfloat()), r"reset.*numbers.*complex"),
    "reset on meta": (put(reset=torch.ones(T, B, device="meta").bool()), r"reset.*on.*meta"),
    "batch_sizes grows": (packed([3, 2, 3]), r"batch_sizes.*never to grow"),
    "batch_sizes zero": (packed([3, 3, 2, 0]), r"batch_sizes.*fall below 1"),
    "batch_sizes negative": (packed([3, 3, 3, -1]), r"batch_sizes.*-1"),
    "batch_sizes sum": (packed([3, 3, 1]), r"batch_sizes to sum to.*8.*7"),
    "batch_sizes first": (packed([2, 2, 2, 2]), r"batch_sizes.*3"),
    "batch_sizes empty": (packed(torch.empty(0).long()), r"sequence length.*larger than 0"),
    "batch_sizes dtype": (packed(torch.tensor([3, 3, 2]).int()), r"batch_sizes.*int64.*[iI]nt"),
    "batch_sizes 2-D": (packed([[3, 3, 2]]), r"batch_sizes.*1, 3"),
    "packed 3-D": (put(batch_sizes=torch.tensor([3, 3])), r"input.*4, 3, 2"),
    "packed with lengths": (
        lambda a: (packed([3, 3, 2])(a), put(lengths=torch.ones(3).long())(a))[1],
        r"lengths.*batch_sizes",
    ),
    "packed with reset": (
        lambda a: (packed([3, 3, 2])(a), put(reset=lambda a: torch.ones(3, 3).bool())(a))[1],
        r"reset.*batch_sizes",
    ),
}


@every_module_route
@pytest.mark.parametrize("name", BAD)
def test_bad_argument_of_functional(route: Route, name: str) -> None:
    change, message = BAD[name]
    given = arguments(route)
    functional.lstm(**given)
    change(given)
    if route.engine == "torch":  # has none of the options, however good
        message = f"({message})|PyTorch's own LSTM has no (lengths|reset|layer normalization)"
    with pytest.raises(RuntimeError, match=message):
        functional.lstm(**given)


@every_module_route
@pytest.mark.parametrize(
    ("lengths", "came"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), "float32"),
        (torch.tensor([1.0, torch.nan, 2.0]), "float32"),
        (torch.tensor([True, False, True]), "bool"),
        ([1, 2, 3], "list"),
    ],
    ids=["floats", "nan", "bools", "list"],
)
def test_lengths_must_be_a_tensor_of_integers(route: Route, lengths: Any, came: str) -> None:
    with pytest.raises(TypeError, match=rf"lengths.*integers.*{came}"):
        functional.lstm(**arguments(route), lengths=lengths)


NO_TENSORS: dict[str, tuple[Change, str]] = {
    "weights[1]": (weight(1, lambda w: None), "NoneType"),
    "weights[2]": (weight(2, lambda w: w.tolist()), "list"),
    "input": (put(input=[[1.0]]), "list"),
    "h_0": (state(0, lambda t: 0.0), "float"),
    "c_0": (state(1, lambda t: None), "NoneType"),
    "hx alone": (put(hx=lambda a: a["hx"][0]), "Tensor"),
    "hx of three": (put(hx=lambda a: (*a["hx"], a["hx"][0])), "3 items"),
    "batch_sizes": (packed((3, 3, 2)), "tuple"),
    "reset": (put(reset=[[True] * B] * T), "list"),
}


@every_module_route
@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_tensor(route: Route, name: str) -> None:
    change, came = NO_TENSORS[name]
    given = arguments(route)
    change(given)
    name, expected = name.split(maxsplit=1)[0], "a pair" if name.startswith("hx") else "a tensor"
    with pytest.raises(TypeError, match=rf"^{re.escape(name)}: expected {expected}.*, got {came}$"):
        functional.lstm(**given)


@every_module_route
@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None, torch.nan])
def test_number_of_layers(route: Route, number: Any) -> None:
    with pytest.raises(ValueError, match=f"num_layers: .* positive integer, got {number!r}"):
        functional.lstm(**arguments(route), num_layers=number)


@every_module_route
@pytest.mark.parametrize("p", [-1, 1.5, torch.nan, True, "half"])
def test_dropout_is_a_probability(route: Route, p: Any) -> None:
    message = rf"dropout: expected a number in range \[0, 1\], got {p!r}"
    with pytest.raises(ValueError, match=message):
        functional.lstm(**arguments(route), dropout=p, training=True)
    lstm = module(route)
    lstm.dropout = p
    with pytest.raises(ValueError, match=message):
        lstm(torch.zeros(T, B, I, device=route.device))


@every_route
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_reset_of_numbers_is_what_is_not_zero(route: Route, batch_first: bool) -> None:
    lstm = module(route, batch_first=batch_first)
    x = torch.randn(T, T, I, device=route.device)
    done = (torch.rand(T, T, device=route.device) < 0.4).index_fill(0, torch.tensor(1), True)
    expected = lstm(x, reset=done)[0]
    for numbers in (done.float(), -0.5 * done, done.long(), done.to(torch.uint8)):
        assert torch.equal(lstm(x, reset=numbers)[0], expected)
    assert not torch.equal(lstm(x)[0], expected)


@pytest.mark.parametrize(
    ("cls", "packs"),
    [(fastlstm.LSTM, False), (fastlstm.LSTM, True), (fastlstm.LayerNormLSTM, False)],
)
def test_a_nan_is_no_reset(cls: type, packs: bool) -> None:
    lstm = fastlstm.prepack(cls(I, H).eval()) if packs else cls(I, H)
    reset = torch.zeros(T, B, dtype=torch.float16)
    with torch.no_grad():
        lstm(zeros(T, B, I), reset=reset)
        reset[1, 2] = torch.nan
        with pytest.raises(ValueError, match="^reset: expected true or false, or numbers, got NaN"):
            lstm(zeros(T, B, I), reset=reset)


@every_module_route
def test_flags_and_options_in_the_place_of_others(route: Route) -> None:
    lstm, x = module(route), torch.zeros(T, B, I, device=route.device)
    for call in (lstm, functools.partial(functional.lstm, hx=None, weights=[*lstm.parameters()])):
        with pytest.raises(
            TypeError, match="^return_cell_states: expected True or False, got 'yes'"
        ):
            call(x, return_cell_states="yes")
    for wrong in (torch.tensor([4, 2, 1]), torch.tensor(4), torch.zeros(T, B, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"^hx: .*got a tensor of (int64|bool); lengths and"):
            lstm(x if wrong.dim() else x[:, 0], wrong)
    with pytest.raises(TypeError, match=r"^LSTM.forward\(\) got an unexpected keyword .*'length'"):
        lstm(x, length=torch.tensor([4, 2, 1]))


@every_op_route
def test_sparse_tensors(route: Route) -> None:
    x, h = torch.zeros(T, B, I, device=route.device), torch.zeros(1, B, H, device=route.device)
    expected = "expected a dense tensor, got one of layout torch.sparse"
    with pytest.raises(TypeError, match=f"^input: {expected}"):
        module(route)(x.to_sparse())
    with pytest.raises(TypeError, match=f"^c_0: {expected}"):
        module(route)(x, (h, h.to_sparse()))
    with pytest.raises(TypeError, match=f"^input: {expected}"):
        module(route, fastlstm.LSTMCell)(x[0].to_sparse())


def test_masks_and_lengths_are_named_in_the_shape_that_was_passed() -> None:
    lstm = fastlstm.LSTM(I, H, batch_first=True)
    x = torch.zeros(B, T, I)
    with pytest.raises(RuntimeError, match=r"reset of shape \(batch, steps\) = \(3, 4\).*\(4, 3\)"):
        lstm(x, reset=torch.zeros(T, B))
    for name, shape, wrong in (("reset", r"\(4,\)", (4, 1)), ("lengths", r"\(\)", (1,))):
        with pytest.raises(RuntimeError, match=rf"{name} of shape {shape} for unbatched input"):
            lstm(x[0], **{name: torch.ones(wrong).long()})
    weights = [p.detach() for p in lstm.parameters()]
    with pytest.raises(RuntimeError, match=r"input of shape \(batch, steps, input_size\)"):
        functional.lstm(x[0], None, weights, batch_first=True)


def test_a_number_of_numpy_is_a_number() -> None:
    lstm = fastlstm.LSTM(I, H, num_layers=np.int64(2), dropout=np.float32(0.5), zoneout_c=0.5)
    lstm(torch.zeros(T, B, I))


def without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.nbytes - 1)
    return tensor


@every_op_route
@pytest.mark.parametrize(
    "name", ["input", "h_0", "c_0", "W_hh", "b_ih", "W_hr", "lengths", "reset"]
)
def test_a_tensor_without_memory(route: Route, name: str) -> None:
    """torch.nn.LSTM reads what happens to lie there, and dies where there is nothing."""
    given = arguments(route, proj_size=P)
    given["lengths"] = torch.tensor([4, 2, 0], device=route.device)
    given["reset"] = torch.zeros(T, B, dtype=torch.bool, device=route.device)
    functional.lstm(**given)
    place = {"W_hh": 1, "b_ih": 2, "W_hr": 4}
    if name in place:
        weight(place[name], without_memory)(given)
    elif name in ("h_0", "c_0"):
        state("hc".index(name[0]), without_memory)(given)
    else:
        given[name] = without_memory(given[name])
    with pytest.raises(RuntimeError, match=rf"lstm: expected {name} of shape .* bytes of memory"):
        functional.lstm(**given)


@pytest.mark.parametrize("layout", ["projection bias", "bias bias", "biases", "bias int8", 4])
def test_bad_layout(layout: Any) -> None:
    given = arguments(Route("auto"))
    message = f"layout: expected of the words bias, .* in this order, got {layout!r}"
    with pytest.raises(ValueError, match=message):
        functional.lstm(**given, layout=layout)


@pytest.mark.skipif(not _build.has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize(("layout", "expected"), [
    ("projection", "to hold W_ih, W_hh, W_hr, as layout says, for each of 1 direction.*got 4"),
    ("projection bias", "of the words bias, projection, layer_norm.* got \"projection bias\""),
    ("bias int8", "of the words bias, projection, layer_norm.* got \"bias int8\""),
])  # fmt: skip
def test_bad_layout_of_the_op(layout: str, expected: str) -> None:
    given = arguments(Route("auto"))
    (h_0, c_0), weights = given["hx"], given["weights"]
    with pytest.raises(RuntimeError, match=f"lstm: expected (weights|layout to be) {expected}"):
        torch.ops.fastlstm.lstm(given["input"], h_0, c_0, weights, layout)


@every_module_route
@pytest.mark.parametrize("k", range(5))
def test_bad_weights_of_the_second_direction(route: Route, k: int) -> None:
    given = arguments(route, directions=2, proj_size=P)
    functional.lstm(**given)
    given["weights"][5 + k] = given["weights"][5 + k][:-1]
    with pytest.raises(RuntimeError, match="W_|b_|weights"):
        functional.lstm(**given)


@every_module_route
def test_bad_projection(route: Route) -> None:
    given = arguments(route, proj_size=P)
    functional.lstm(**given)
    given["weights"][4] = given["weights"][4][:, :4]
    with pytest.raises(RuntimeError, match=r"W_hr.*3, 5.*3, 4"):
        functional.lstm(**given)


@every_module_route
def test_bad_input_raises_under_no_grad_too(route: Route) -> None:
    """The checks do not depend on the dispatch key that comes first."""
    given = arguments(route)
    state(0, lambda t: t[..., :4])(given)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast(route.device)):
        with mode, pytest.raises(RuntimeError, match="h_0"):
            functional.lstm(**given)


@every_module_route
def test_functional_cell(route: Route) -> None:
    x, h = torch.zeros(B, I, device=route.device), torch.zeros(B, H, device=route.device)
    w_ih, w_hh, b_ih, _ = arguments(route)["weights"]
    with pytest.raises(RuntimeError, match="b_ih and b_hh"):
        functional.lstm_cell(x, (h, h), w_ih, w_hh, b_ih, engine=route.engine)
    with pytest.raises(RuntimeError, match="c_0.*1, 3, 5"):
        functional.lstm_cell(x, (h, h[:2]), w_ih, w_hh, engine=route.engine)
    with pytest.raises(TypeError, match="w_hh: expected a tensor, got list"):
        functional.lstm_cell(x, (h, h), w_ih, w_hh.tolist(), engine=route.engine)
    with pytest.raises(TypeError, match="c_0: expected a tensor, got float"):
        functional.lstm_cell(x, (h, 0.0), w_ih, w_hh, engine=route.engine)
    with pytest.raises(TypeError, match=r"hx: expected a pair \(h_0, c_0\), got 1 items"):
        functional.lstm_cell(x, (h,), w_ih, w_hh, engine=route.engine)


def module(route: Route, cls: type = fastlstm.LSTM, **options: Any) -> Any:
    built = cls(I, H, **options, device=route.device)
    if isinstance(built, (fastlstm.LSTM, fastlstm.LSTMCell)):
        built.engine = route.engine
    return built


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


MODULE_CALLS: dict[str, tuple[Any, ...]] = {
    "1-D": (zeros(I),),
    "4-D": (zeros(1, T, B, I),),
    "input_size": (zeros(T, B, I + 1),),
    "unbatched input_size": (zeros(T, I + 1),),
    "dtype": (zeros(T, B, I).double(),),
    "no steps": (zeros(0, B, I),),
    "no steps unbatched": (zeros(0, I),),
    "hx 2-D for a batch": (zeros(T, B, I), (zeros(1, H), zeros(1, H))),
    "hx 3-D for no batch": (zeros(T, I), (zeros(1, 1, H), zeros(1, 1, H))),
    "h_0 batch": (zeros(T, B, I), (zeros(1, 2, H), zeros(1, B, H))),
    "h_0 layers": (zeros(T, B, I), (zeros(2, B, H), zeros(1, B, H))),
    "h_0 size": (zeros(T, B, I), (zeros(1, B, 4), zeros(1, B, H))),
    "c_0 size": (zeros(T, B, I), (zeros(1, B, H), zeros(1, B, 4))),
    "c_0 layers": (zeros(T, B, I), (zeros(1, B, H), zeros(3, B, H))),
    "hx of one": (zeros(T, B, I), (zeros(1, B, H),)),
    "hx of three": (zeros(T, B, I), (zeros(1, B, H),) * 3),
    "hx of three, packed": (pack_padded_sequence(zeros(T, B, I), [4, 2, 1]), (zeros(1, B, H),) * 3),
    "h_0 alone": (zeros(T, B, I), zeros(1, B, H)),
}


@every_module_route
@pytest.mark.parametrize("name", MODULE_CALLS)
def test_the_module_raises_what_torch_raises(route: Route, name: str) -> None:
    if route.device != "cpu":
        pytest.skip("the calls are of tensors on the CPU")
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)) as theirs:
        module(route, nn.LSTM)(*MODULE_CALLS[name])
    with pytest.raises(theirs.type) as ours:
        module(route)(*MODULE_CALLS[name])
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("sizes", [(I + 1, H), (I, H + 1)])
@pytest.mark.parametrize("compiles", [False, True])
def test_replaced_weights_that_do_not_fit_the_module(
    sizes: tuple[int, int], compiles: bool
) -> None:
    """They fit each other, the input and the state."""
    x, hx = zeros(T, B, sizes[0]), (zeros(1, B, sizes[1]),) * 2
    said = []
    for cls in (nn.LSTM, fastlstm.LSTM):
        lstm = cls(I, H)
        for name, weight in nn.LSTM(*sizes).named_parameters():
            setattr(lstm, name, nn.Parameter(weight.detach()))
        run = torch.compile(lstm, backend="eager") if compiles else lstm
        with pytest.raises(RuntimeError) as error:
            run(x, hx)
        said.append(str(error.value))
    assert said[0] == said[1]


@every_module_route
@pytest.mark.parametrize("shape", [(), (1,), (1, H)], ids=str)
def test_a_packed_state_of_too_few_dimensions(route: Route, shape: tuple[int, ...]) -> None:
    """nn.LSTM has an IndexError, which names no argument."""
    packed = pack_padded_sequence(zeros(T, B, I), [4, 2, 1]).to(route.device)
    state = torch.zeros(shape, device=route.device)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 5\), got \["):
        module(route)(packed, (state, state))


@every_module_route
def test_the_module_names_a_device(route: Route) -> None:
    lstm = module(route)
    x = torch.zeros(T, B, I, device=route.device)
    hx = torch.zeros(1, B, H, device=route.device)
    theirs = nn.LSTM(I, H, device=route.device)
    for states in ((hx.to("meta"), hx), (hx, hx.to("meta"))):
        with pytest.raises(RuntimeError) as expected:
            theirs(x, states)
        with pytest.raises(RuntimeError, match=f"^{re.escape(str(expected.value))}$"):
            lstm(x, states)
    cell = module(route, fastlstm.LSTMCell)
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        cell(x[0], (hx[0], hx[0].to("meta")))


@every_module_route
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
def test_the_module_compares_input_with_its_parameters(route: Route, cls: type) -> None:
    built = module(route, cls)
    x = torch.zeros(B, I) if cls is fastlstm.LSTMCell else torch.zeros(T, B, I)
    x = x.to(route.device)
    found = "not at the same device, found input tensor at {} and parameter tensor at {}"
    here = str(x.device)
    with pytest.raises((RuntimeError, ValueError), match=OTHER_DTYPE):
        built(x.double())
    with pytest.raises((RuntimeError, ValueError)) as integers:
        built(x.long())
    assert "int64" in str(integers.value)
    with pytest.raises(RuntimeError, match=found.format("meta", here)):
        built(x.to("meta"))
    with pytest.raises(RuntimeError, match=found.format(here, "meta")):
        built.to("meta")(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "cls, options, why",
    [(fastlstm.LSTM, {"zoneout_h": 0.1}, "zoneout_h=0.1"), (fastlstm.LayerNormLSTM, {}, "derives")],
)
def test_scripting_is_refused_with_what_to_use(cls: type, options: Any, why: str) -> None:
    lstm = cls(I, H, **options)
    for model in (lstm, nn.Sequential(fastlstm.LSTM(I, H), nn.Sequential(lstm))):
        modules = list(model.modules())
        match = f"^{cls.__name__}: torch.jit.script is not supported, .*{why}.*trace"
        with pytest.raises(RuntimeError, match=match):
            torch.jit.script(model)
        assert list(model.modules()) == modules


@every_module_route
def test_packed_sequences_of_the_wrong_size(route: Route) -> None:
    lstm = module(route)
    packed = pack_padded_sequence(torch.zeros(T, B, I + 1), torch.tensor([4, 2, 1]))
    packed = packed.to(route.device)
    with pytest.raises(RuntimeError, match="input_size. Expected 2, got 3"):
        lstm(packed)
    good = pack_padded_sequence(torch.zeros(T, B, I), torch.tensor([4, 2, 1])).to(route.device)
    hx = torch.zeros(1, B + 1, H, device=route.device)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 5\), got"):
        lstm(good, (hx, hx))
    with pytest.raises(RuntimeError, match="lengths cannot be combined|has no lengths"):
        lstm(good, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=OTHER_DTYPE):
        lstm(good.to(torch.float64))
    forged = PackedSequence(good.data, torch.tensor([3, 3, 3]))
    with pytest.raises(RuntimeError, match="batch_sizes to sum to"):
        lstm(forged)


CELL_CALLS: dict[str, tuple[Any, ...]] = {
    "3-D": (zeros(1, B, I),),
    "input_size": (zeros(B, I + 1),),
    "unbatched input_size": (zeros(I + 1),),
    "h 3-D": (zeros(B, I), (zeros(1, B, H), zeros(B, H))),
    "c 3-D": (zeros(B, I), (zeros(B, H), zeros(1, B, H))),
    "h batch": (zeros(B, I), (zeros(2, H), zeros(B, H))),
    "h size": (zeros(B, I), (zeros(B, 4), zeros(B, H))),
    "c batch": (zeros(B, I), (zeros(B, H), zeros(2, H))),
    "c size": (zeros(B, I), (zeros(B, H), zeros(B, 4))),
    "h alone": (zeros(B, I), zeros(B, H)),
    "h alone, batch 2": (zeros(2, I), zeros(2, H)),
    "h and c in one tensor": (zeros(B, I), zeros(2, B, H)),
    "unbatched h alone": (zeros(I), zeros(H)),
    "hx of none": (zeros(B, I), ()),
    "hx of one": (zeros(B, I), (zeros(B, H),)),
    "hx of three": (zeros(B, I), (zeros(B, H),) * 3),
    "hx a number": (zeros(B, I), 0),
    "hx of another kind": (zeros(B, I), {0: zeros(B, H), 1: zeros(B, H)}.values()),
}


@every_module_route
@pytest.mark.parametrize("name", CELL_CALLS)
def test_the_cell_raises_what_torch_raises(route: Route, name: str) -> None:
    if route.device != "cpu":
        pytest.skip("the calls are of tensors on the CPU")
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)) as theirs:
        module(route, nn.LSTMCell)(*CELL_CALLS[name])
    with pytest.raises(theirs.type) as ours:
        module(route, fastlstm.LSTMCell)(*CELL_CALLS[name])
    assert str(ours.value) == str(theirs.value)


@every_module_route
@pytest.mark.parametrize("name", [name for name in CELL_CALLS if "hx of" not in name])
def test_the_cell_raises_the_same_under_autocast(route: Route, name: str) -> None:
    if route.device != "cpu" or route.engine == "reference":
        pytest.skip("the calls are of tensors on the CPU, for the op")
    x, *hx = CELL_CALLS[name]
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)) as theirs:
            module(route, nn.LSTMCell)(x.bfloat16(), *hx)
        with pytest.raises(theirs.type) as ours:
            module(route, fastlstm.LSTMCell)(x.bfloat16(), *hx)
    assert str(ours.value) == str(theirs.value)


@every_module_route
def test_a_batched_state_beside_an_unbatched_row(route: Route) -> None:
    """nn.LSTMCell may end the process."""
    if route.engine == "torch":
        pytest.skip("nn.LSTMCell's own forward")
    x, h = (t.to(route.device) for t in (zeros(I), zeros(H, H)))
    for hx in ((h, h), (h[0], h), torch.stack([h, h])):
        with pytest.raises(RuntimeError, match="For unbatched 1-D input, hx and cx should also be"):
            module(route, fastlstm.LSTMCell)(x, hx)


@every_module_route
@pytest.mark.parametrize("hx", [zeros(2, 1, B, H), zeros(1, B, H)], ids=["both", "h_0 alone"])
def test_hx_of_the_module_is_no_tensor(route: Route, hx: Tensor) -> None:
    """torch says so too, in a list of signatures."""
    x = zeros(T, B, I).to(route.device)
    call = x if hx.dim() == 4 else pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    for lstm in (module(route, nn.LSTM), module(route)):
        with pytest.raises(TypeError, match="tuple of Tensors"):
            lstm(call, hx.to(route.device))


@every_module_route
@pytest.mark.parametrize("k", [0, 1])
def test_states_for_too_many_layers_are_not_cut(route: Route, k: int) -> None:
    given = arguments(route)
    given["weights"] += [w.new_zeros(20, 5) if w.dim() == 2 else w for w in given["weights"]]
    given |= {"num_layers": 2, "hx": tuple(t.expand(2, -1, -1) for t in given["hx"])}
    functional.lstm(**given)
    state(k, lambda t: torch.cat([t, t]))(given)
    with pytest.raises(RuntimeError, match=r"h_0 and c_0.*= 2, got.*4, 3, 5"):
        functional.lstm(**given)


@every_module_route
def test_errors_under_functional_call_are_about_the_weights_of_the_call(route: Route) -> None:
    lstm = module(route)
    double = {n: p.double() for n, p in lstm.named_parameters()}
    x = torch.zeros(T, B, I + 1, device=route.device).double()
    with pytest.raises(RuntimeError, match="input_size. Expected 2, got 3"):
        torch.func.functional_call(lstm, double, (x,))
    with pytest.raises(ValueError, match=OTHER_DTYPE):
        lstm(x)
