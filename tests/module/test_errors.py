"""Messages of errors for bad input: each names the argument, with every engine."""

import functools
from importlib.util import find_spec

import pytest
import torch
from samples import REFERENCE_AND_AUTO, Route, Sample, every_module_route, every_route
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import functional, reference
from fastlstm.engine.call import LstmCall
from fastlstm.engine.checks import check_layer

T, B, I, H = 4, 3, 2, 5
zeros, library = torch.zeros, fastlstm._build.library
needs_kernels = pytest.mark.skipif(not fastlstm.has_kernels("cpu"), reason="no CPU kernels")
# The messages of newer and of older versions of torch.
OTHER_DTYPE = r"input dtype \(.*64\) .* weight dtype|type torch.float32, got type torch\..*64"


def arguments(route):
    weights = [p.detach() for p in nn.LSTM(I, H, device=route.device).parameters()]
    hx = tuple(zeros(2, 1, B, H, device=route.device))
    x = torch.randn(T, B, I, device=route.device)
    return {"input": x, "hx": hx, "weights": weights, "engine": route.engine}


def packed_input(sizes, **more):
    return lambda x, w: {"input": x.new_zeros(8, I), "batch_sizes": torch.tensor(sizes), **more}


def two_layers(weights, h_0, c_0):
    return {"num_layers": 2, "weights": [*weights, weights[1], *weights[1:]], "hx": (h_0, c_0)}


X, ROW, BACKWARD = zeros(T, B, I), zeros(B, I), [*[None] * 8, *[zeros(T, B, I)] * 3, True, True]
STATE, TWO, THREE = (zeros(n, B, H) for n in (1, 2, 3))
short_W_hh = lambda W_ih, W_hh, *rest: {"weights": [W_ih, W_hh[:, :4], *rest], "hx": None}
LENGTHS, TWO_0, RESET = torch.ones(3).long(), torch.tensor([2, 0, 0]), torch.ones(3, 3).bool()
# For each name: a function that returns bad arguments, and a pattern of the message.
BAD = {
    "1-D without state": (lambda x, w: {"input": x[0, 0], "hx": None}, r"input.*\(2,?\)"),
    "W_hh": (lambda x, w: short_W_hh(*w), "W_hh.*20, 4"),
    "W_hh, lengths": (lambda x, w: short_W_hh(*w[:2]) | {"lengths": LENGTHS}, "W_hh.*20, 4"),
    "no steps": (lambda x, w: {"input": x[:0]}, r"sequence length to be larger than 0"),
    "h_0 layers": (lambda x, w: two_layers(w, THREE.to(x), TWO.to(x)), r"h_0.*3, 3, 5"),
    "c_0 layers": (lambda x, w: two_layers(w, TWO.to(x), THREE.to(x)), r"c_0.*3, 3, 5"),
    "weights: ten": (lambda x, w: {"weights": [*w, *w, *w[:2]]}, r"each of 1 layer.*10 tensors"),
    "weights: none": (lambda x, w: {"weights": []}, r"weights.*0 tensors"),
    "layout": (lambda x, w: {"layout": "bias projection"}, r"weights.*4 tensors"),
    "lengths negative": (lambda x, w: {"lengths": LENGTHS - TWO_0}, r"lengths.*between 0.*4.*-1"),
    "lengths: two": (lambda x, w: {"lengths": LENGTHS[:2]}, r"lengths of shape .*3.*, got .*2"),
    "lengths too long": (lambda x, w: {"lengths": 3 + TWO_0.flip(0)}, r"lengths.*between 0.*4.*5"),
    "batch_sizes grow": (packed_input([3, 2, 3]), r"batch_sizes.*never to grow"),
    "batch_sizes zero": (packed_input([3, 3, 2, 0]), r"batch_sizes.*fall below 1"),
    "batch_sizes sum": (packed_input([3, 3, 1]), r"batch_sizes to sum to.*8.*7"),
    "batch_sizes first": (packed_input([2, 2, 2, 2]), r"batch_sizes.*3"),
    "packed with lengths": (packed_input([3, 3, 2], lengths=LENGTHS), r"lengths.*batch_sizes"),
    "packed with reset": (packed_input([3, 3, 2], reset=RESET), r"reset.*batch_sizes"),
}  # fmt: skip


@every_module_route
@pytest.mark.parametrize("name", BAD)
def test_bad_argument_of_functional(route, name):
    change, message = BAD[name]
    given = arguments(route)
    functional.lstm(**given)
    if route.engine == "torch":  # this engine first refuses options that it lacks
        message = f"({message})|PyTorch's own LSTM has no (reset|layer normalization)"
    with pytest.raises(RuntimeError, match=message):
        functional.lstm(**{**given, **change(given["input"], given["weights"])})


def with_w_ih(change):
    return lambda call: {"weights": [change(call.weights[0]), *call.weights[1:]]}


def packed_as(batch_sizes):
    return lambda call: {"input": call.input[0], "batch_sizes": batch_sizes}


BAD_LAYERS = [
    (lambda call: {"weights": call.weights[:3]}, "weights .*W_ih, W_hh, b_ih, b_hh,.* 3 tensors"),
    (lambda call: {"weights": [*call.weights, STATE]}, "weights .* 5 tensors"),
    (with_w_ih(lambda weight: weight[0]), r"W_ih of shape \(4 \* hidden.* got .2,?.$"),
    (with_w_ih(lambda weight: weight[1:]), r"W_ih of shape \(4 \* hidden.* got .19, 2.$"),
    (with_w_ih(lambda weight: weight.sum()), r"W_ih of shape \(4 \* hidden"),
    (lambda call: {"input": call.input[0]}, r"input of shape \(steps, batch, .* got .3, 2.$"),
    (lambda call: {"input": call.input.long()}, "input of dtype float32, .*float16, got .*(L|64)"),
    (lambda call: {"h_0": THREE}, "h_0 of shape .1 or 2 directions, .* got .3, 3, 5.$"),
    (lambda call: {"h_0": STATE[0]}, "h_0 of shape .1 or 2 directions, .* got .3, 5.$"),
    (packed_as(torch.tensor([[B]])), "batch_sizes of shape .steps., dtype int64.* got .1, 1"),
    (packed_as(torch.tensor([B]).float()), "batch_sizes of shape .steps., dtype int64.* got .1"),
    (lambda call: {"h_mask": STATE[0]}, "h_mask of shape .*1, 3, 5.* got .3, 5.$"),
    (lambda call: {"h_0": STATE.double()}, "h_0 of dtype [^ ]+ like input, got .*([Dd]ouble|64)"),
    (lambda call: {"lengths": call.input.new_ones(B)}, "lengths of dtype [^ ]+, got .*([Ff]loat)"),
    (lambda call: {"reset": RESET}, "reset of shape .*4, 3.* got .3, 3.$"),
    (lambda call: {"c_0": STATE.to("meta")}, "c_0 on .* like input, got meta$"),
]


@pytest.mark.parametrize("route", REFERENCE_AND_AUTO)
@pytest.mark.parametrize(("change", "message"), BAD_LAYERS)
def test_the_op_and_the_reference_raise_the_same_errors(route, change, message):
    def check(call):
        check_layer(call) if route.engine == "reference" else torch.ops.fastlstm.lstm(*call)

    given = arguments(route)
    call = LstmCall(given["input"], *given["hx"], given["weights"])
    check(call)
    with pytest.raises(RuntimeError, match=f"^lstm: expected {message}"):
        check(call._replace(**change(call)))


@every_route
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_reset_of_numbers_is_true_where_not_zero(route, batch_first):
    lstm = module(route, batch_first=batch_first)
    x = torch.randn(T, T, I, device=route.device)
    done = (torch.rand(T, T, device=route.device) < 0.4).index_fill(0, torch.tensor(1), True)
    expected = lstm(x, reset=done)[0]
    for numbers in (done.float(), -0.5 * done, done.long(), done.to(torch.uint8)):
        assert torch.equal(lstm(x, reset=numbers)[0], expected)
    assert not torch.equal(lstm(x)[0], expected)


def lstm(engine="auto", **attributes):
    vars(built := module(Route(engine))).update(attributes)
    return built


def cell(prepacks=False):
    built = fastlstm.LSTMCell(I, H)
    return fastlstm.prepack(built.eval()) if prepacks else built


def prepacked_op(x=X, norms=(), **options):
    lstm = fastlstm.prepack(fastlstm.LSTM(I, H).eval())
    layout = lstm._layout.replace("bias", "bias layer_norm") if norms else lstm._layout
    weights = [*lstm._op_weights(), *norms]
    return torch.ops.fastlstm.lstm_prepacked(x, STATE, STATE, weights, layout, **options)


NORMED, first = fastlstm.LayerNormLSTM(I, H), fastlstm.LSTM(I, H, batch_first=True)
NORMS, WEIGHTS = ([p.detach() for p in layer.parameters()] for layer in (NORMED, first))
CALL = [X, STATE, STATE, WEIGHTS, "bias", None, None, None, None, False, "auto"]
OPTIONS = Sample("options", norms=True, h_mask=True, proj_size=2).arguments() | {"engine": "tiled"}
nest = functools.partial(torch.nested.nested_tensor, layout=torch.jagged)
JAGGED, FLAT = nest([zeros(2, I), zeros(3, I)]), nest([zeros(2), zeros(3)])
NESTED = JAGGED, torch.nested.nested_tensor([zeros(I)])
from_jagged = torch.nested.nested_tensor_from_jagged
OVERLAP = from_jagged(zeros(5, I), torch.tensor([0, 2, 5]), torch.tensor([3, 2]))
IN_NESTED = {"lengths": LENGTHS[:2], "reset": zeros(3, 2), "return_cell_states": True}
# Mistakes of users: for each type of error, calls and patterns of the message.
MISTAKES = {
    AttributeError: [
        (lambda: lstm()(X.numpy()), "^input: .*tensor, got ndarray"),
        *((lambda p=p: cell(p)(ROW.numpy()), "^input: .*tensor, got ndarray") for p in (0, 1)),
    ],
    TypeError: [
        (lambda: fastlstm.LSTM(I, H, typo=1), r"^LSTM.__init__\(\) got .* 'typo'$"),
        (lambda: functional.lstm(X, None, [None]), r"^weights\[0\]: .*tensor, got NoneType$"),
        (lambda: functional.lstm(X[0], None, [], batch_sizes=[B]), "^batch_sizes: .* got list$"),
        (lambda: lstm(hidden_size=H + 0.5)(X), "tuple of ints, ?but got float"),  # C++ reads it
        *((lambda x=x: lstm()(x), "nested tensor of layout torch.jagged and .*, got")
          for x in (torch.nested.nested_tensor([ROW]), JAGGED.transpose(1, 2), FLAT)),
        (lambda: lstm()(X, zeros(2, 1, B, H)), "tuple of Tensors"),
        (lambda: fastlstm.compare(torch.jit.script(nn.LSTM(I, H)), X), "is scripted"),
        (lambda: lstm()(X, None, LENGTHS), "from 2 to 3 positional arguments but 4 were given$"),
        (lambda: lstm()(X, reset=zeros(T, B) + 1j), "^reset: .*bool or numbers, got .*complex64$"),
        (lambda: lstm()(X, reset=[[0]]), "^reset: expected a tensor, got list$"),
        *((lambda n=n: lstm()(X, lengths=n), f"^lengths: .*tensor of integers, got {got}")
          for n, got in (([1], "list"), (X, ".*float32"), (RESET, ".*bool"), (X + 1j, ".*compl"))),
    ],
    ValueError: [
        *((lambda bad=bad: functional.lstm(**arguments(Route("auto")), layout=bad),
           f"layout: expected a selection of the words bias, .*, in this order, got {bad!r}$")
          for bad in ("projection bias", "bias bias", "biases", "bias int8", 4)),
        (lambda: functional.lstm(X, None, [], num_layers=0), "^num_layers: .*positive .*, got 0$"),
        (lambda: reference.lstm_layer(X, STATE, STATE, [zeros(4 * H, I)] * 3), "2 is shorter"),
        (lambda: fastlstm.convert(nn.GRU(I, H)), "GRUs are not supported"),
        (lambda: fastlstm.convert(cell(True)), r"prepacked; fastlstm.unpack\(model\) turns them b"),
        (lambda: fastlstm.unpack(lstm()), "without prepacked layers"),
        (lambda: fastlstm.convert(cell(), "haste"), "^to: .*'fastlstm' or 'torch', got 'haste'$"),
        (lambda: fastlstm.compare(cell(True)), "whose LSTMs are prepacked"),
        (lambda: fastlstm.compare(nn.GRU(I, H), X), "expected a model with an LSTM or LSTMCell"),
        (lambda: fastlstm.compare(NORMED, X), "^compare: .* LayerNormLSTM .* torch.nn does not"),
    ],
    RuntimeError: [
        (lambda: lstm("persistent")(X), "'persistent' .*; use one of auto, torch, .*tiled$"),
        (lambda: lstm()(X, reset=zeros(B, T)), r"reset .* = \(4, 3\), got \(3, 4\) t.* on cpu$"),
        (lambda: cell()(ROW.double()), "same dtype, but got Double and Float"),
        (lambda: lstm()(X.to_sparse()), "not implemented for sparse tensors"),
        (lambda: fastlstm.has_kernels("gpu"), "gpu"),
        (lambda: lstm()(X, lengths=LENGTHS.to("meta")), "lengths with values, .* on cpu, .* meta$"),
        *((lambda name=name: lstm()(JAGGED, **{name: IN_NESTED[name]}),
           f"{name}.* cannot be combined with a nested tensor") for name in IN_NESTED),
        (lambda: lstm()(from_jagged(zeros(0, I), torch.tensor([0]))), "^input: .*with rows, got o"),
        (lambda: lstm()(OVERLAP), "^input: .* whose rows do not overlap$"),
        (lambda: torch.ops.fastlstm.lstm(**OPTIONS), "proj_size, recurrent .*, layer normaliz.*$"),
        (lambda: library.lstm(*CALL[:-1], "persistent"), 'be .* on the CPU, .* got "persistent"$'),
        (lambda: first(X, reset=RESET[0]), "reset of shape .* = .4, 3., got .3,"),
        (lambda: first(X, reset=zeros(B, T)), r"reset of shape .batch, steps. = .4, 3.*\(3, 4\)"),
        (lambda: first(X[0], reset=LENGTHS[:, None]), r"reset of shape \(3,\) for unbatched input"),
        (lambda: first(X[0], lengths=LENGTHS[:1]), r"lengths of shape \(\) for unbatched input"),
        (lambda: functional.lstm(X[0], None, WEIGHTS, batch_first=True), "shape .batch, steps, in"),
        *((lambda f=make: f()(X, reset=zeros(T, B).half() / 0), "false, or of numbers, got NaN$")
          for make in (lstm, lambda: NORMED, lambda: fastlstm.prepack(lstm().eval()))),
        (lambda: torch.ops.fastlstm.lstm(*CALL[:3], [*first.parameters()], save_gates=True)[4].sum()
         .backward(), "got a gradient of gates, which is not differentiable$"),
        (lambda: prepacked_op(X.clone().requires_grad_())[0].sum().backward(), "not implemented"),
        (lambda: torch.ops.fastlstm.lstm_backward(*(t.to("meta") for t in CALL[:3]),
          [w.to("meta") for w in WEIGHTS], "bias", *BACKWARD), "the saved output of shape .* = "),
        (lambda: torch.ops.fastlstm.lstm_backward(*CALL[:6], -LENGTHS, *BACKWARD[2:]), "lengths"),
        (lambda: prepacked_op(h_mask=STATE), "neither layer norm.*, recurrent dropout nor .*step"),
        (lambda: prepacked_op(engine="stepwise"), "neither layer normalization, recurrent dropout"),
        (lambda: prepacked_op(norms=NORMS[4:]), "neither layer normalization, recurrent dropout"),
        (lambda: torch.ops.fastlstm.lstm_backward(X, STATE, STATE, [], "int8", *BACKWARD),
         'layout to be of the words bias, projection, layer_norm, in this order, got "int8"$'),
        (lambda: library.pack_weight(ROW, None, "int8", 0), "with scales, got .*without scales$"),
    ],
}  # fmt: skip
MISTAKES = [(error, *each) for error, calls in MISTAKES.items() for each in calls]


@needs_kernels
@pytest.mark.parametrize("error, call, message", MISTAKES)
def test_mistakes_of_users(error, call, message):
    with pytest.raises(error, match=message):
        call()


@needs_kernels
def test_arguments_of_the_extension():
    """A wrong argument is named by its index. Cells that are not saved are None."""
    run = library.lstm
    for x in (X, X.clone().requires_grad_()):
        assert run(x, *CALL[1:])[3] is None and run(x, *CALL[1:-2], True, "auto")[3] is not None
    kinds = ["Tensor", "Tensor", "Tensor", "list of Tensors", "str", *["Tensor"] * 4, "bool", "str"]
    for k, kind in enumerate(kinds):
        with pytest.raises(TypeError, match=f"^argument {k}: expected a {kind}, got int$"):
            run(*CALL[:k], 3, *CALL[k + 1 :])
    for function, count in ((run, 10), (library.have_names_and_shapes, 3)):
        with pytest.raises(TypeError, match=f"^expected {count + 1} arguments, got {count}$"):
            function(*CALL[:count])
    for weights in (WEIGHTS[:1], [WEIGHTS[0], WEIGHTS[1][0]]):
        with pytest.raises(RuntimeError, match="weights that begin with W_ih and W_hh"):
            run(X, None, None, weights, "", *CALL[5:])


@needs_kernels
def test_answers_of_the_planners():
    names = "input_size", "hidden_size", "batch", "steps", "threads", "l2_cache_bytes", "directions"
    options = {"dtype": "float32", "training": True, "backward": True}
    plan = lambda **given: library.plan_cpu(**dict.fromkeys(names, 1) | options | given)
    for wrong in (*({name: 0} for name in names), {"directions": 3}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match='or 2, and no number below 1$|dtype: .* got "int8"$'):
            plan(**wrong)
    large = {"input_size": 8, "hidden_size": 512, "batch": 64, "steps": 100, "directions": 2}
    plans = [plan(**large | {"threads": n}) for n in (1, 4)]
    one, four = (p["unit_groups"] * p["row_groups"] * p["directions"] for p in plans)
    assert (one, plans[0]["engine"], plans[0]["steps_ahead"]) == (1, "tiled", 0) and 1 < four <= 4
    assert [plan(hidden_size=512, backward=b)["steps_ahead"] for b in (False, True)] == [0, 1]
    fits = lambda *given: library.persistent_engine_fits(given[0], 64, 9, 2, *given[1:], 132, 90)
    found = [fits(H, dtype, H > 99) for H in (64, 9000) for dtype in ("float32", "bfloat16")]
    assert found == [True, True, False, False] and not fits(64, "float64", True)


def test_has_kernels_takes_any_name_of_a_device():
    devices = "cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)
    assert {*map(fastlstm.has_kernels, devices)} == {find_spec("fastlstm._C") is not None}
    assert fastlstm.has_kernels("cuda:1") == fastlstm.has_kernels("cuda")
    assert not fastlstm.has_kernels("meta")


@every_module_route
def test_bad_input_raises_under_no_grad_too(route):
    given = arguments(route)
    given["hx"] = given["hx"][0][..., :4], given["hx"][1]
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast(route.device)):
        with mode, pytest.raises(RuntimeError, match="h_0"):
            functional.lstm(**given)


@every_module_route
def test_functional_cell(route):
    x, h = (torch.randn(B, size, device=route.device) for size in (I, H))
    w_ih, w_hh, b_ih, b_hh = arguments(route)["weights"]
    cell = functools.partial(functional.lstm_cell, x, engine=route.engine)
    for weights in ((w_ih, w_hh), (w_ih, w_hh, b_ih, b_hh)):
        torch.testing.assert_close(cell((h, -h), *weights), torch.lstm_cell(x, (h, -h), *weights))
    with pytest.raises(RuntimeError, match="b_ih and b_hh"):
        cell((h, h), w_ih, w_hh, b_ih)
    assert cell(None, w_ih, w_hh)[1].shape == (B, H)
    with pytest.raises(RuntimeError, match="c_0.*1, 3, 5"):
        cell((h, h[:2]), w_ih, w_hh)
    with pytest.raises(TypeError, match=r"hx: expected a pair \(h_0, c_0\), got 1 items"):
        cell((h,), w_ih, w_hh)


def module(route, cls=fastlstm.LSTM, **options):
    built = cls(I, H, **options, device=route.device)
    if isinstance(built, (fastlstm.LSTM, fastlstm.LSTMCell)):
        built.engine = route.engine
    return built


def calls_of(x, *states):
    """Returns calls with an input of the shape x and each state; a state is a tuple of shapes."""
    return [(zeros(*x), tuple(zeros(*shape) for shape in state)) for state in states]


SEQUENCE, FITS, THREE_STATES = (T, B, I), (1, B, H), ((1, B, H),) * 3
MODULE_CALLS = [
    *((zeros(*x),) for x in [(I,), (1, T, B, I), (T, B, I + 1), (T, I + 1), (0, B, I), (0, I)]),
    (X.double(),),
    *((X, hx) for hx in (zeros(*FITS), (None,))),  # h_0 only
    (pack_padded_sequence(X, [4, 2, 1]), (STATE,) * 3),
    *calls_of(SEQUENCE, ((1, H), (1, H)), ((1, 2, H), FITS), ((2, B, H), FITS), ((1, B, 4), FITS)),
    *calls_of(SEQUENCE, (FITS, (1, B, 4)), (FITS, (3, B, H)), (FITS,), THREE_STATES),
    *calls_of((T, I), ((1, 1, H), (1, 1, H))),
]


@pytest.mark.parametrize("sizes", [(I + 1, H), (I, H + 1)])
@pytest.mark.parametrize("compiles", [False, True])
def test_replaced_weights_that_do_not_fit_the_module(sizes, compiles):
    """The weights fit each other, the input and the state, but not the module."""
    x, hx = zeros(T, B, sizes[0]), (zeros(1, B, sizes[1]),) * 2
    messages = []
    for cls in (nn.LSTM, fastlstm.LSTM):
        lstm = cls(I, H)
        for name, weight in nn.LSTM(*sizes).named_parameters():
            setattr(lstm, name, nn.Parameter(weight.detach()))
        run = torch.compile(lstm, backend="eager") if compiles else lstm
        with pytest.raises(RuntimeError) as error:
            run(x, hx)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@every_module_route
def test_the_module_compares_input_with_its_parameters(route):
    built, x = module(route), torch.zeros(T, B, I, device=route.device)
    message = "not at the same device, found input tensor at {} and {} tensor at {}"
    here = str(x.device)
    odd, flat = module(route).double(), module(route).double()
    odd.weight_ih_l0 = flat._flat_weights[0] = nn.Parameter(odd.weight_ih_l0.float())
    for run, other in ((built, x.long()), *((run, x.double()) for run in (built, odd, flat))):
        with pytest.raises(ValueError, match=OTHER_DTYPE):
            run(other)
    with pytest.raises(RuntimeError, match=message.format("meta", "parameter", here)):
        built(x.to("meta"))
    h, c = zeros(2, 1, B, H, device=route.device)
    for hx in ((h.to("meta"), c), (h, c.to("meta"))):
        with pytest.raises(RuntimeError, match=message.format(here, "hidden", "meta")):
            built(x, hx)
    built.weight_ih_l0 = nn.Parameter(built.weight_ih_l0.to("meta"))
    with pytest.raises(RuntimeError, match=message.format(here, "parameter", "meta")):
        built(x)


@every_module_route
def test_a_cell_compares_input_with_its_parameters(route):
    cell, x = module(route, fastlstm.LSTMCell), torch.zeros(B, I, device=route.device)
    for other, message in ((x.double(), "dtype.*[dD]ouble|float64"), (x.long(), "int64|Long")):
        with pytest.raises(RuntimeError, match=message):
            cell(other)
    for other in (cell, module(route, fastlstm.LSTMCell).to("meta")):
        with pytest.raises(RuntimeError, match="meta"):
            other(x.to("meta") if other is cell else x)


@every_module_route
def test_packed_sequences_of_the_wrong_size(route):
    lstm = module(route)
    packed = pack_padded_sequence(torch.zeros(T, B, I + 1), [4, 2, 1]).to(route.device)
    with pytest.raises(RuntimeError, match="input_size. Expected 2, got 3"):
        lstm(packed)
    good = pack_padded_sequence(torch.zeros(T, B, I), [4, 2, 1]).to(route.device)
    for shape in ((1, B + 1, H), (1, H), ()):  # nn.LSTM raises IndexError for the last two
        hx = torch.zeros(shape, device=route.device)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 5\), got"):
            lstm(good, (hx, hx))
    with pytest.raises(RuntimeError, match="lengths cannot be combined"):
        lstm(good, lengths=torch.tensor([1, 2, 3]))
    weights, other = dict(lstm.named_parameters()), module(route).double()
    replaced = lambda packed: torch.func.functional_call(other, weights, (packed,))
    for run in (lstm, replaced):
        with pytest.raises(RuntimeError, match="dtype"):
            run(good.to(torch.float64))
    forged = PackedSequence(good.data, torch.tensor([3, 3, 3]))
    message = "batch_sizes to sum to|invalid for input|exceeds dimension"
    with pytest.raises(RuntimeError, match=message):
        lstm(forged)


ROW_STATE = (B, H)
CELL_CALLS = [
    *((zeros(*x),) for x in [(1, B, I), (B, I + 1), (I + 1,)]),
    *((zeros(*x), zeros(*h)) for x, h in [((B, I), (B, H)), ((2, I), (2, H)), ((I,), (H,))]),
    *((ROW, hx) for hx in (zeros(2, B, H), 0, {0: zeros(B, H), 1: zeros(B, H)}.values())),
    *calls_of((B, I), ((1, B, H), ROW_STATE), (ROW_STATE, (1, B, H)), ((2, H), ROW_STATE)),
    *calls_of((B, I), ((B, 4), ROW_STATE), (ROW_STATE, (2, H)), (ROW_STATE, (B, 4))),
    *calls_of((B, I), (), (ROW_STATE,), (ROW_STATE,) * 3),
]
CALLS = [("LSTM", call) for call in MODULE_CALLS] + [("LSTMCell", call) for call in CELL_CALLS]


@every_module_route
@pytest.mark.parametrize("cls, given", CALLS)
def test_a_module_raises_what_torch_raises(route, cls, given):
    if route.device != "cpu":
        pytest.skip("the calls have tensors on the CPU")
    with pytest.raises(Exception) as theirs:
        module(route, getattr(nn, cls))(*given)
    with pytest.raises(theirs.type) as ours:
        module(route, getattr(fastlstm, cls))(*given)
    assert str(ours.value) == str(theirs.value)


IN_ITSELF = []
IN_ITSELF.append(IN_ITSELF)
NO_STATES = {
    "tuple and tuple": ((STATE[0],), (STATE[0],)),
    "list and list": (IN_ITSELF, IN_ITSELF),
    "list and Tensor": [IN_ITSELF, STATE],
    "NoneType and NoneType": (None, None),
    "int and str": (1, "2"),
}


@every_module_route
@pytest.mark.parametrize("prepack", [False, True])
@pytest.mark.parametrize("kinds", NO_STATES)
def test_a_state_of_other_things_than_tensors(route, prepack, kinds):
    if route.device != "cpu":
        pytest.skip("the calls are of tensors on the CPU")
    dense = zeros(T, B, I)
    inputs = {"LSTM": [dense, dense[:, 0], pack_padded_sequence(dense, [4, 2, 1])]}
    for name, arguments in {**inputs, "LSTMCell": [dense[0], dense[0, 0]]}.items():
        ours = module(route, getattr(fastlstm, name)).eval()
        for x in arguments:
            hx = NO_STATES[kinds]
            with pytest.raises(Exception) as theirs:
                getattr(nn, name)(I, H)(x, hx)
            with pytest.raises(theirs.type, match=rf"^hx: .* pair of tensors .*, got {kinds}$"):
                (fastlstm.prepack(ours) if prepack and fastlstm.has_kernels("cpu") else ours)(x, hx)


@every_module_route
def test_a_batched_state_with_an_unbatched_input(route):
    """fastlstm raises an error; nn.LSTMCell may crash."""
    if route.engine == "torch":
        pytest.skip("engine 'torch' calls nn.LSTMCell.forward")
    x, h = (t.to(route.device) for t in (zeros(I), zeros(H, H)))
    for hx in ((h, h), (h[0], h), torch.stack([h, h])):
        with pytest.raises(RuntimeError, match="For unbatched 1-D input, hx and cx should also be"):
            module(route, fastlstm.LSTMCell)(x, hx)
