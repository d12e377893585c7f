"""The CUDA implementation of the ops, with the kernels in the emulator of tests/simt."""

import ctypes
import functools
import os
import sys
from pathlib import Path

import op_call
import pytest
import torch
from fuzzed_calls import Draw
from native_programs import ROOT, make, missing, run
from torch.utils import cpp_extension

from fastlstm import _build

ENGINES = "stepwise", "persistent"
LIBRARY = ROOT / "build/simt/emulated_op.so"

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"not on PATH: {', '.join(missing())}"),
    pytest.mark.skipif(not _build.extension_available(), reason="no extension"),
]


@functools.cache
def ops():
    """Builds torch.ops.fastlstm_emulated with the kernels of tests/simt, and returns it."""
    import fastlstm._C as extension

    folder = Path(torch.__file__).parent
    flags = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    flags += [f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    make("simt", LIBRARY.parent, f"TORCH={folder}", f"TORCH_FLAGS={' '.join(flags)}", str(LIBRARY))
    ctypes.CDLL(extension.__file__, mode=ctypes.RTLD_GLOBAL)  # csrc/op is in it
    torch.ops.load_library(str(LIBRARY))
    return torch.ops.fastlstm_emulated


def Call(kind, *args, **options):
    return op_call.Call(kind, *args, ops=ops(), **options)


MASKED = {"h_mask": True, **op_call.RAGGED}
STEPWISE_OPTIONS = [{}, op_call.PACKED, op_call.RAGGED, MASKED, {"norms": True, **MASKED}]


@pytest.mark.parametrize("options", [*STEPWISE_OPTIONS, {"proj_size": 4, **MASKED}], ids=str)
def test_events_of_a_step(kind, options):
    """A step is a product of ATen and a kernel of ours; with a projection, two of each."""

    def counted(run_it):
        ops().take_events()
        with torch.profiler.profile() as trace:
            result = run_it()
        names = [event.name for event in trace.events() if event.name.startswith("aten::")]
        products = sum(name.startswith(("aten::mm", "aten::addmm")) for name in names)
        return result, (len(ops().take_events()), products, len(names))

    def events(steps):
        call = Call(kind, steps=steps, **options)
        saved, forward = counted(lambda: call.forward("stepwise"))
        _, backward = counted(lambda: call.backward(saved, "stepwise"))
        return torch.tensor([forward, backward])

    steps, products_per_step = options.get("directions", 1) * 10, 2 if "proj_size" in options else 1
    forward, backward = ((events(20) - events(10)) / steps).tolist()
    assert forward[:2] == backward[:2] == [products_per_step, products_per_step]
    assert forward[2] <= 4 * products_per_step and backward[2] <= 5 * products_per_step


@pytest.mark.parametrize("engine, options", op_call.GPU_CALLS, ids=str)
@pytest.mark.parametrize("kind", [*op_call.KINDS, "float64"], indirect=True)
def test_engine(kind, engine, options):
    if kind != "float64" or engine == "stepwise":
        Call(kind, **options).check(engine)


def test_auto_is_stepwise(kind):
    call = Call(kind, hidden_size=64)
    auto, stepwise, persistent = (call.forward(e)[0] for e in ("auto", "stepwise", "persistent"))
    assert torch.equal(auto, stepwise) and not torch.equal(auto, persistent)


def test_recurrent_dropout_is_stepwise(kind):
    call = Call(kind, h_mask=True)
    saved = call.forward("stepwise")
    for run_it in (call.forward, lambda engine: call.backward(saved, engine)):
        with pytest.raises(RuntimeError, match="without .* recurrent dropout, .* got .* with rec"):
            run_it("persistent")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
def test_h_0_that_is_not_aligned(kind):
    call = Call(kind, directions=2)
    storage = call.h_0.new_empty(call.h_0.numel() + 1)
    call.h_0 = storage[1:].view_as(call.h_0).copy_(call.h_0)
    assert call.h_0.data_ptr() % 16 != 0
    call.check("persistent")


@pytest.mark.parametrize("engine, options", op_call.GPU_CALLS, ids=str)
def test_any_strides(kind, engine, options):
    for seed in range(4 if options.get("batch", 5) == 5 else 1):  # more rows take longer
        call, restride = Call(kind, **options), Draw(seed).restride
        for name, value in vars(call).items():
            if isinstance(value, torch.Tensor) and name != "real":
                setattr(call, name, restride(value))
        call.weights, call.grads = ([restride(t) for t in ts] for ts in (call.weights, call.grads))
        call.check(engine)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("forward, backward", [ENGINES, ENGINES[::-1]])
def test_either_backward_takes_either_forward(kind, forward, backward):
    call = Call(kind, "lengths", directions=2)
    call.check_backward(call.backward(call.forward(forward), backward))


@pytest.mark.parametrize("form", ["packed", "lengths"])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_gates(kind, form, engine):
    call = Call(kind, form, directions=2, reset=form == "lengths")
    saved = call.forward(engine)
    d_weights, d_gates = (call.backward(saved, engine, return_d_gates=b)[3] for b in (False, True))
    d_biases = d_weights[2::3]  # each direction has three: of W_ih, of W_hh, and of both biases
    for gates, d_z, d_bias in zip(saved[4], d_gates, d_biases, strict=True):
        assert d_z.shape == gates.shape and d_z.is_contiguous()
        torch.testing.assert_close(d_z.flatten(0, -2).sum(0), d_bias)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
@pytest.mark.parametrize("engine", ENGINES)
def test_padding_may_hold_anything(kind, engine):
    call = Call(kind, "lengths", directions=2)
    call.input = call.input.masked_fill(~call.real[..., None], float("nan"))
    call.grads[0] = call.grads[0].masked_fill(~call.real[..., None], float("nan"))
    call.check(engine)


SMS = 24  # of the emulated device
MEMSET, LAUNCH, COOPERATIVE_LAUNCH = range(3)  # kinds of events


@pytest.fixture
def device():
    """The emulated device, which has its usual settings again after a test."""
    yield ops()
    ops().set_device_and_stream(0, 0)
    ops().refuse_larger_launches(SMS, 720)
    ops().set_capability(90)


LARGE = [dict(hidden_size=200), dict(batch=40, hidden_size=64)]


@pytest.mark.parametrize("options", [{}, op_call.PACKED, op_call.RAGGED, *LARGE], ids=str)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
def test_launches(kind, options, device):
    """Kernels run on the call's stream, after the memory for exchanged values is cleared."""
    call = Call(kind, **options)
    device.set_device_and_stream(1, 7)
    device.take_events()
    saved = call.forward("persistent")
    forward = device.take_events()
    call.backward(saved, "persistent")
    for events, values_per_unit in ((forward, 1), (device.take_events(), 4)):
        assert {(index, stream) for _, index, stream, _, _ in events} == {(1, 7)}
        kinds = [kind for kind, *_ in events]
        first = kinds.index(COOPERATIVE_LAUNCH)
        assert kinds[first - 1] == MEMSET and MEMSET not in kinds[first:]
        exchanged = values_per_unit * saved[0].numel() * saved[0].element_size()
        assert sum(size for kind, _, _, size, _ in events if kind == MEMSET) >= exchanged
        assert all(blocks <= SMS for kind, *_, blocks in events if kind == COOPERATIVE_LAUNCH)


@pytest.mark.parametrize("options", [{}, dict(form="lengths", directions=2, reset=True)], ids=str)
@pytest.mark.parametrize("kind", ["float64", "bfloat16"], indirect=True)
def test_one_step_from_c_0_of_either_dtype(kind, options):
    call = Call(kind, steps=1, **options)
    state_dtype = torch.float64 if kind == "float64" else torch.float32
    for c_0 in (call.c_0, call.c_0.to(state_dtype)):
        call.c_0, call.grads[2] = c_0, call.grads[2].to(c_0.dtype)
        assert call.forward("auto")[2].dtype == c_0.dtype
        call.check("auto")


# cudaErrorInvalidConfiguration, ...LaunchOutOfResources, ...CooperativeLaunchTooLarge,
# ...NotPermitted, ...NotSupported, ...IllegalAddress
@pytest.mark.parametrize("code", [9, 701, 720, 800, 801, 700])
def test_a_refused_launch_is_an_error(kind, code, device):
    call = Call(kind, directions=2)
    saved = call.forward("persistent")
    device.refuse_larger_launches(1, code)
    expected = "launch of the persistent engine with .* failed: .*FASTLSTM_FREE_SMS=N leaves"
    for run_it in (call.forward, lambda engine: call.backward(saved, engine)):
        with pytest.raises(RuntimeError, match=expected):
            run_it("persistent")
    call.check_forward(call.forward("stepwise"))


def test_code_for_older_gpus_is_stepwise(kind, device):
    call, expected = Call(kind), Call(kind).forward("stepwise")
    assert device.cuda_device(0) == (SMS, 90, "")
    device.set_capability(75)
    assert device.cuda_device(0) == (SMS, 75, "")
    assert torch.equal(call.forward("auto")[0], expected[0])
    with pytest.raises(RuntimeError, match="on sm_75 with 24 SMs"):
        call.forward("persistent")
    device.set_capability(0)
    assert device.cuda_device(0) == (SMS, 0, "")


RUN_ON_4_SMS = """
import sys; sys.path[:0] = sys.argv[1:]
import test_cuda_op
call = test_cuda_op.Call("float32", hidden_size=64)
call.forward("persistent")
blocks = [event[4] for event in test_cuda_op.ops().take_events() if event[0] == 2]
assert max(blocks) <= 4, blocks
test_cuda_op.Call("float32", hidden_size=256).forward("persistent")  # fails: it needs more SMs
"""


def test_variables_of_the_environment():
    """With FASTLSTM_FREE_SMS a launch has fewer blocks. A bad value of a variable is an error."""
    ops()
    folders = str(ROOT / "tests"), str(ROOT / "tests/cuda")
    environment = os.environ | {"FASTLSTM_FREE_SMS": "20", "FASTLSTM_WAIT_SECONDS": ""}
    done = run(sys.executable, "-c", RUN_ON_4_SMS, *folders, env=environment)
    assert "with 4 SMs, and 20 left free by FASTLSTM_FREE_SMS" in done.stdout, done.stdout
    free, wait = ("FREE_SMS", "multiprocessors", 0), ("WAIT_SECONDS", "seconds", 1)
    for (variable, unit, least), value in ((free, "x"), (free, "-1"), (wait, "0"), (wait, "2.5")):
        name = f"FASTLSTM_{variable}"
        done = run(sys.executable, "-c", RUN_ON_4_SMS, *folders, env=environment | {name: value})
        assert f'{name}: expected a number of {unit}, {least} or more, got "{value}"' in done.stdout


def test_bits_do_not_depend_on_the_batch(kind):
    call = Call(kind, batch=9)
    # With multiples of 1/8, ATen's product with W_ih is exact, however many rows it has.
    call.input = (call.input * 8).round() / 8
    call.weights = [(w * 8).round() / 8 for w in call.weights]
    whole = call.forward("persistent")[0]
    call.input, call.h_0, call.c_0 = call.input[:, 3:5], call.h_0[:, 3:5], call.c_0[:, 3:5]
    assert torch.equal(call.forward("persistent")[0], whole[:, 3:5])


def test_float32_is_multiplied_as_torch_backends_cuda_matmul_says(kind):
    """The setting for cuDNN does not matter, and settings of other threads do not change."""
    call = Call(kind, hidden_size=64)

    def bits(matmul, cudnn):
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn
        output = call.forward("persistent")[0]
        assert torch.backends.cuda.matmul.allow_tf32 == matmul
        return output

    ieee = bits(False, True)
    assert torch.equal(ieee, bits(False, False))
    tf32 = bits(True, False)
    assert not torch.equal(ieee, tf32) and torch.equal(tf32, bits(True, True))


def test_engines_that_are_refused():
    for engine in ("fast", "tiled"):
        with pytest.raises(RuntimeError, match='expected engine to be "auto", "stepwise"'):
            Call("float32").forward(engine)
    with pytest.raises(RuntimeError, match='the engine "persistent" takes'):
        Call("float64").forward("persistent")
