"""The CUDA side of the ops on the CPU: csrc/cuda/lstm_cuda.cpp and its kernels under the emulator.

tests/simt checks the kernels; here everything around them runs too: the choice of the engine,
tables, GEMMs, the layout of what is saved and the gradients of the weights.
"""

import ctypes
import functools
import os
import re
import shutil
import sys
from pathlib import Path

import op_call
import pytest
import torch
from native import CXX, ROOT, check, run
from torch.utils import cpp_extension

from fastlstm import _build, engines
from fastlstm._call import Call as StackCall

SIMT = ROOT / "tests/simt"
LIBRARY = ROOT / "build/simt/emulated_op.so"

pytestmark = [
    pytest.mark.skipif(not shutil.which(CXX[0]), reason=f"{CXX[0]} is not on PATH"),
    pytest.mark.skipif(not _build.extension_available(), reason="no extension"),
]


@functools.cache
def ops():
    """torch.ops.fastlstm_emulated, built if it is older than what it is made of."""
    import fastlstm._C as extension

    sources = [
        *ROOT.glob("csrc/**/*.h"),
        *ROOT.glob("csrc/cuda/*"),
        *SIMT.glob("*.h"),
        *SIMT.glob("op/**/*.*"),
        Path(torch.__file__),
    ]
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        fresh = LIBRARY.with_suffix(".new")
        flags = "-std=c++20 -O1 -w -fPIC -shared -U_FORTIFY_SOURCE -DFASTLSTM_EMULATOR".split()
        if sys.platform == "linux":  # not the kernels of an extension that was built for a GPU
            flags.append("-Wl,-Bsymbolic")
        own = SIMT, SIMT / "op", ROOT / "csrc/cuda", ROOT / "csrc"
        include = [f"-I{folder}" for folder in own]
        include += [f"-isystem{folder}" for folder in cpp_extension.include_paths()]
        kernels = map(str, sorted(ROOT.glob("csrc/cuda/*.cu")))
        source = str(SIMT / "op/emulated_op.cpp"), "-x", "c++", *kernels
        torch_lib = f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"
        check(*CXX, *flags, *include, *source, "-o", str(fresh), *torch_lib)
        os.replace(fresh, LIBRARY)
    ctypes.CDLL(extension.__file__, mode=ctypes.RTLD_GLOBAL)  # check_layer and the rest
    torch.ops.load_library(str(LIBRARY))
    return torch.ops.fastlstm_emulated


def Call(kind, *args, **options):
    return op_call.Call(kind, *args, ops=ops(), **options)


def without_memory(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


KINDS = ["float32", "tf32", "bfloat16", "float16"]
ENGINES = ["stepwise", "persistent", "persistent:16x8x2"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_engine(kind, form, engine):
    call = Call(kind, form, directions=2)
    saved = call.forward(engine)
    call.check_forward(saved)
    call.check_backward(call.backward(saved, engine))


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_auto_is_stepwise(kind):
    call = Call(kind, hidden_size=64)
    auto, stepwise, persistent = (
        call.forward(engine)[0] for engine in ("auto", "stepwise", "persistent")
    )
    assert torch.equal(auto, stepwise) and not torch.equal(auto, persistent)


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("kind", [*KINDS, "float64"], indirect=True)
def test_recurrent_dropout(kind, form):
    """By the stepwise engine alone."""
    call = Call(kind, form, directions=2, reset=form != "packed", h_mask=True)
    saved = call.forward("stepwise")
    call.check_forward(saved)
    call.check_backward(call.backward(saved, "stepwise"))
    expected = "without .* recurrent dropout, .* got .* with recurrent dropout"
    with pytest.raises(RuntimeError, match=expected):
        call.forward("persistent")
    with pytest.raises(RuntimeError, match=expected):
        call.backward(saved, "persistent")


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("hidden_size", [10, 13])
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_rows_that_do_not_fill_pieces_of_16_bytes(kind, hidden_size, form):
    """Blocks exchange padded rows; what is returned and saved has none, nor have gradients."""
    call = Call(kind, form, directions=2, hidden_size=hidden_size)
    saved = call.forward("persistent")
    call.check_forward(saved)
    call.check_backward(call.backward(saved, "persistent"))
    call.check_backward(call.backward(saved, "stepwise"))
    for per_direction in call.backward(saved, "persistent", per_row=True)[3]:
        assert per_direction.shape[-1] == 4 * hidden_size and per_direction.is_contiguous()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
def test_h_0_that_starts_anywhere(kind):
    call = Call(kind, directions=2)
    storage = call.h_0.new_empty(call.h_0.numel() + 1)
    call.h_0 = storage[1:].view_as(call.h_0).copy_(call.h_0)
    assert call.h_0.data_ptr() % 16 != 0
    saved = call.forward("persistent")
    call.check_forward(saved)
    call.check_backward(call.backward(saved, "persistent"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(form="packed", directions=2),
        dict(form="lengths", reset=True, directions=2),
        dict(h_mask=True, reset=True, bias=False),
        dict(hidden_size=70, steps=2, batch=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float64"], indirect=True)
def test_layer_norm(kind, options):
    call = Call(kind, norms=True, **options)
    saved = call.forward("auto")
    call.check_forward(saved)
    call.check_backward(call.backward(saved, "auto"))


@pytest.mark.parametrize("kind", ["float64"], indirect=True)
@pytest.mark.parametrize("engine", ["stepwise", "auto"])
def test_float64(kind, engine):
    call = Call(kind, "packed")
    saved = call.forward(engine)
    call.check_forward(saved)
    call.check_backward(call.backward(saved, engine))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        dict(reset=True),
        dict(reset=True, form="lengths", directions=2),
        dict(bias=False),
        dict(hidden_size=13),
        dict(steps=1),
        dict(batch=1),
        dict(batch=21, form="lengths", steps=3),
        dict(batch=21, form="packed", steps=3, directions=2),
    ],
    ids=str,
)
def test_options(kind, options):
    call = Call(kind, **options)
    saved = call.forward("persistent")
    call.check_forward(saved)
    call.check_backward(call.backward(saved, "persistent"))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize(
    "forward, backward", [("stepwise", "persistent"), ("persistent", "stepwise")]
)
def test_either_backward_takes_either_forward(kind, forward, backward):
    call = Call(kind, "lengths", directions=2)
    call.check_backward(call.backward(call.forward(forward), backward))


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
@pytest.mark.parametrize("form", ["packed", "lengths"])
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
def test_gradients_per_row(kind, form, engine):
    """The gates' gradients in place of the weights': dL/db_ih is their sum."""
    call = Call(kind, form, directions=2, reset=form == "lengths")
    saved = call.forward(engine)
    weights, d_gates = (call.backward(saved, engine, per_row=b)[3] for b in (False, True))
    assert len(d_gates) == 2
    for d in range(2):
        assert d_gates[d].shape == saved[4][d].shape
        torch.testing.assert_close(d_gates[d].flatten(0, -2).sum(0), weights[3 * d + 2])


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
def test_missing_gradients_are_zero(kind, engine):
    call = Call(kind, directions=2)
    saved = call.forward(engine)
    zeros = call.backward(saved, engine, [torch.zeros_like(g) for g in call.grads[:3]] + [None])
    for i in range(3):
        grads = [None] * 4
        grads[i] = call.grads[i]
        others = [torch.zeros_like(g) for g in call.grads]
        others[i] = call.grads[i]
        for got, expected in zip(
            call.backward(saved, engine, grads)[:3],
            call.backward(saved, engine, others)[:3],
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert all(not g.any() for g in zeros[:3])


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
def test_gradient_of_the_state_is_not_made_for_nobody(kind, form, engine):
    call = Call(kind, form, directions=2)
    saved = call.forward(engine)
    grad_input, grad_h_0, _, grad_weights = call.backward(saved, engine)
    sparing = call.backward(saved, engine, state_needs_grad=False)
    assert torch.equal(sparing[0], grad_input)
    assert all(torch.equal(a, b) for a, b in zip(sparing[3], grad_weights, strict=True))
    assert not torch.equal(sparing[1], grad_h_0)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
def test_padding_may_hold_anything(kind, engine):
    call = Call(kind, "lengths", directions=2)
    call.input = call.input.masked_fill(~call.live[..., None], float("nan"))
    call.grads[0] = call.grads[0].masked_fill(~call.live[..., None], float("nan"))
    saved = call.forward(engine)
    call.check_forward(saved)
    call.check_backward(call.backward(saved, engine))


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_inputs_are_left_alone_and_may_be_strided(kind):
    call = Call(kind, directions=2)
    saved = call.forward("persistent")
    kept = [t.clone() for t in (*saved, *call.grads, call.input, call.h_0, call.c_0)]
    first = call.backward(saved, "persistent")
    second = call.backward(saved, "persistent")
    for before, after in zip(
        kept, (*saved, *call.grads, call.input, call.h_0, call.c_0), strict=True
    ):
        assert torch.equal(before, after)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    call.input = call.input.transpose(0, 1).contiguous().transpose(0, 1)
    call.weights = [w.t().contiguous().t() if w.dim() == 2 else w for w in call.weights]
    again = call.forward("persistent")
    assert all(torch.equal(a, b) for a, b in zip(saved, again, strict=True))


SMS = 24  # of the emulated device
MEMSET, LAUNCH, COOPERATIVE_LAUNCH = range(3)  # kinds of events


@pytest.fixture
def use():
    """use(device, stream): the current ones."""
    yield lambda device, stream: ops().use(device, stream)
    ops().use(0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(form="packed", directions=2),
        dict(form="lengths", reset=True, directions=2),
        dict(hidden_size=200),
        dict(batch=40, hidden_size=64),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
def test_launches(kind, options, use):
    """All on the call's stream; the exchange is marked as unwritten before anybody reads it."""
    call = Call(kind, **options)
    use(1, 7)
    ops().take_events()
    saved = call.forward("persistent")
    forward = ops().take_events()
    call.backward(saved, "persistent")
    for events, rows in ((forward, 1), (ops().take_events(), 4)):
        assert {(device, stream) for _, device, stream, _, _ in events} == {(1, 7)}
        kinds = [kind for kind, *_ in events]
        first = kinds.index(COOPERATIVE_LAUNCH)
        assert kinds[first - 1] == MEMSET and MEMSET not in kinds[first:]
        exchanged = rows * saved[0].numel() * saved[0].element_size()
        assert sum(size for kind, _, _, size, _ in events if kind == MEMSET) >= exchanged
        assert all(blocks <= SMS for kind, *_, blocks in events if kind == COOPERATIVE_LAUNCH)


# Operators of ATen that launch no kernel.
QUIET = re.compile(
    r"aten::(empty|view|t$|transpose|select|narrow|slice|as_strided|resolve_|to$|unsqueeze)"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(reset=True),
        dict(form="lengths", directions=2, reset=True, batch=7),
        dict(form="packed"),
        dict(bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "float16"], indirect=True)
def test_one_step(kind, options):
    """Two products and one kernel, as nn.LSTMCell has them, whatever the dtype of c_0."""
    call = Call(kind, steps=1, **options)
    if call.lengths is not None:
        assert 0 in call.lengths
    state_dtype = torch.float64 if kind == "float64" else torch.float32
    for given_c_0 in (call.c_0, call.c_0.to(state_dtype)):
        call.c_0, call.grads[2] = given_c_0, call.grads[2].to(given_c_0.dtype)
        ops().take_events()
        with torch.profiler.profile() as profile:
            saved = call.forward("auto")
        directions = len(call.c_0)
        assert [kind for kind, *_ in ops().take_events()] == [LAUNCH] * directions
        called = [e.name for e in profile.events() if e.name.startswith("aten::")]
        expected = ["aten::mm"] * 2 * directions
        assert sorted(name for name in called if not QUIET.match(name)) == sorted(expected)
        assert saved[2].dtype == given_c_0.dtype
        call.check_forward(saved)
        call.check_backward(call.backward(saved, "stepwise"))


@pytest.mark.parametrize("form", ["dense", "packed", "lengths"])
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("kind", ["bfloat16"], indirect=True)
def test_nothing_waits_for_the_device(kind, engine, form):
    """The runtime's own calls that wait are errors of the emulator; here are ATen's."""
    call = Call(kind, form, directions=2, h_mask=engine == "stepwise")
    with torch.profiler.profile() as profile:
        call.backward(call.forward(engine), engine)
    called = {event.name for event in profile.events()}
    assert "aten::mm" in called
    waiting = {
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::nonzero",
        "aten::equal",
        "aten::masked_select",
        "aten::unique_dim",
        "aten::_unique2",
    }
    assert not waiting & called


@pytest.fixture
def refuse():
    """refuse(code): the device refuses persistent launches with this error of CUDA."""
    yield lambda code: ops().refuse(1, code)
    ops().refuse(SMS, 720)


# cudaErrorInvalidConfiguration, LaunchOutOfResources, CooperativeLaunchTooLarge, NotPermitted,
# NotSupported; IllegalAddress
@pytest.mark.parametrize("code", [9, 701, 720, 800, 801, 700])
@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_a_refused_launch_is_an_error(kind, code, refuse):
    call = Call(kind, directions=2)
    saved = call.forward("persistent")
    refuse(code)
    expected = "launch of the persistent engine with .* failed: .*FASTLSTM_FREE_SMS=N leaves"
    with pytest.raises(RuntimeError, match=expected):
        call.forward("persistent")
    with pytest.raises(RuntimeError, match=expected):
        call.backward(saved, "persistent")
    call.check_forward(call.forward("stepwise"))


@pytest.fixture
def compiled_for():
    """compiled_for(capability): what the device's code was compiled for; 0 if there is none."""

    def set_code(capability):
        ops().set_code(capability)

    yield set_code
    set_code(90)
    ops().set_driver_error(0)


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_code_for_older_gpus_is_stepwise(kind, compiled_for):
    call, expected = Call(kind), Call(kind).forward("stepwise")
    assert ops().cuda_device(0) == (SMS, 90, "")
    compiled_for(75)
    assert ops().cuda_device(0) == (SMS, 75, "")
    assert torch.equal(call.forward("auto")[0], expected[0])
    with pytest.raises(RuntimeError, match="on sm_75 with 24 SMs"):
        call.forward("persistent")
    compiled_for(0)
    assert ops().cuda_device(0) == (SMS, 0, "")


@pytest.mark.parametrize("error", [35, 100, 999])
def test_an_old_driver_means_no_code(error, compiled_for, monkeypatch):
    """Too old for the runtime, no device, or anything: plain calls are nn.LSTM's, and one warns."""
    ops().set_driver_error(error)
    sms, capability, text = ops().cuda_device(0)
    assert (sms, capability) == (0, 0) and "failed: an error of the emulator" in text
    monkeypatch.setattr(_build, "gpu", lambda index: ops().cuda_device(index or 0))
    monkeypatch.setattr(_build, "build_record", lambda: {"note": None})
    monkeypatch.setattr(_build, "kinds", ("cpu", "cuda"))
    _build.warn_of_no_cuda_kernels.cache_clear(), _build._why_not_this_gpu.cache_clear()
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(4, 2, 3, device="cuda")
        plain = StackCall(x, None, [x.new_empty(20, 3), x.new_empty(20, 5)], "")
    calls = plain, plain._replace(return_cell_states=True), plain
    with pytest.warns(RuntimeWarning, match="no CUDA kernels: .* failed: an error") as caught:
        chosen = [engines.choose(call).name for call in calls]
    _build.warn_of_no_cuda_kernels.cache_clear(), _build._why_not_this_gpu.cache_clear()
    assert chosen == ["torch", "reference", "torch"] and len(caught) == 1


FREE_SMS = """
import sys; sys.path[:0] = sys.argv[1:]
import torch, test_cuda_op
call = test_cuda_op.Call("float32", hidden_size=64)
for engine in ("persistent", "persistent:8x8x1"):
    try:
        call.forward(engine)
    except (RuntimeError, ValueError) as error:
        print(engine, str(error).splitlines()[0])
blocks = [event[4] for event in test_cuda_op.ops().take_events() if event[0] == 2]
print("at most", max(blocks, default=0), "blocks")
"""


@pytest.mark.parametrize(
    "free, told",
    [
        (
            "20",
            [
                "at most 4 blocks",
                "persistent:8x8x1 lstm: the engine",
                "with 4 SMs beside those of FASTLSTM_FREE_SMS",
            ],
        ),
        (
            "24",
            [
                "at most 0 blocks",
                "persistent lstm: the engine",
                "with 0 SMs beside those",
            ],
        ),
    ],
)
def test_free_multiprocessors(free, told):
    """Of the SMS that the emulated device has."""
    ops()
    environment = os.environ | {"FASTLSTM_FREE_SMS": free}
    done = run(
        sys.executable,
        "-c",
        FREE_SMS,
        str(ROOT / "tests"),
        str(ROOT / "tests/cuda"),
        env=environment,
    )
    for text in told:
        assert text in done.stdout, done.stdout


@pytest.mark.parametrize(
    "bad",
    [
        lambda t: t.flatten(),
        lambda t: t[..., :-1],
        lambda t: t.transpose(0, 1),
        lambda t: t.half(),
        lambda t: t.to("meta"),
        without_memory,
    ],
    ids=["flat", "size", "transposed", "dtype", "meta", "memory"],
)
@pytest.mark.parametrize("engine", ["stepwise", "persistent"])
@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_bad_saved_tensors_and_gradients_are_named(kind, engine, bad):
    call = Call(kind, directions=2, batch=3)
    saved = list(call.forward(engine))
    for k, name in ((0, "output"), (3, "cells"), (4, "gates")):
        damaged = [bad(t) if i == k else t for i, t in enumerate(saved)]
        for per_row in (False, True):
            with pytest.raises(RuntimeError, match=f"lstm: expected the saved {name} "):
                call.backward(damaged, engine, per_row=per_row)
    for k, name in enumerate(("output", "h_n", "c_n", "cells")):
        grads = [bad(g) if i == k else g for i, g in enumerate(call.grads)]
        with pytest.raises(RuntimeError, match=f"lstm: expected grad_{name} "):
            call.backward(saved, engine, grads)


@pytest.mark.parametrize("kind", ["float32"], indirect=True)
def test_bits_do_not_depend_on_the_batch(kind):
    call = Call(kind, batch=9)
    # Eighths: the host's product with W_ih is then exact, whose order of summation, unlike the
    # kernel's, depends on the number of rows.
    call.input = (call.input * 8).round() / 8
    call.weights = [(w * 8).round() / 8 for w in call.weights]
    whole = call.forward("persistent:8x8x2")[0]
    call.input, call.h_0, call.c_0 = call.input[:, 3:5], call.h_0[:, 3:5], call.c_0[:, 3:5]
    assert torch.equal(call.forward("persistent:16x8x1")[0], whole[:, 3:5])


@pytest.mark.parametrize("kind", ["float32"], indirect=True)  # which puts the settings back
def test_float32_is_multiplied_as_torch_backends_cuda_matmul_says(kind):
    """Whatever is set for cuDNN; and nothing that other threads see is changed."""
    call = Call(kind, hidden_size=64)

    def bits(matmul, cudnn):
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn
        found = call.forward("persistent")[0]
        assert torch.backends.cuda.matmul.allow_tf32 == matmul
        return found

    ieee = bits(False, True)
    assert torch.equal(ieee, bits(False, False))
    tf32 = bits(True, False)
    assert not torch.equal(ieee, tf32) and torch.equal(tf32, bits(True, True))


@pytest.mark.parametrize(
    "engine",
    [
        "fast",
        "persistent:8x8",
        "persistent:8x8x1x",
        "tiled",
        "persistent:0x8x1",
        "persistent:8x8x-1",
        "persistent:",
    ],
)
def test_unknown_engine(engine):
    with pytest.raises(RuntimeError, match='expected engine to be "auto", "stepwise"'):
        Call("float32").forward(engine)


@pytest.mark.parametrize(
    "engine, options",
    [
        ("persistent", dict(kind="float64")),
        ("persistent:12x8x1", dict(kind="bfloat16")),
        ("persistent:8x8x40", dict(kind="bfloat16")),
        ("persistent", dict(kind="bfloat16", batch=0)),
    ],
    ids=str,
)
def test_engine_that_does_not_take_the_call(engine, options):
    if options.pop("batch", 5) == 0:
        call = Call(**options)
        call.input, call.h_0, call.c_0 = call.input[:, :0], call.h_0[:, :0], call.c_0[:, :0]
    else:
        call = Call(**options)
    with pytest.raises(RuntimeError, match=f'the engine "{engine}" takes'):
        call.forward(engine)
