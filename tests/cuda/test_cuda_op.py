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
from native_programs import ROOT, check, make, missing
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


def refuses(call, engine, message, saved=None):
    """Checks that forward and backward raise an error."""
    saved = saved or call.forward("stepwise")
    for run_it in (call.forward, lambda engine: call.backward(saved, engine)):
        with pytest.raises(RuntimeError, match=message):
            run_it(engine)


def test_engines_that_are_refused():
    for engine in ("fast", "tiled"):
        refuses(Call("float32"), engine, 'expected engine to be "auto", "stepwise"')
    refuses(Call("float64"), "persistent", 'the engine "persistent" takes')
    message = "without .* recurrent dropout, .* got .* with rec"
    refuses(Call("bfloat16", h_mask=True), "persistent", message)


@pytest.mark.parametrize("engine", ENGINES)
def test_arguments_that_are_refused(engine):
    call = Call("float32", "lengths")
    saved = call.forward(engine)
    with pytest.raises(RuntimeError, match="expected grad_output"):
        call.backward(saved, engine, [call.grads[0][1:], *call.grads[1:]])
    call.lengths = call.lengths + 1
    refuses(call, engine, "expected lengths between 0 and .* 5, got 6", saved)


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
    ops().set_kernels(90, 0)
    ops().set_sms(SMS)


SIZES = [dict(hidden_size=13), dict(hidden_size=200), dict(batch=40, hidden_size=64)]


@pytest.mark.parametrize("options", [{}, op_call.PACKED, op_call.RAGGED, *SIZES], ids=str)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"], indirect=True)
def test_launches(kind, options, device):
    """Kernels run on the call's stream, after the memory for exchanged values is cleared."""
    call = Call(kind, **options)
    device.set_device_and_stream(1, 7)
    device.take_events()
    saved = call.forward("persistent")
    forward = device.take_events()
    call.backward(saved, "persistent")
    hidden_size, item = call.h_0.shape[-1], call.h_0.element_size()
    # The bytes of a row that blocks exchange: h in forward, four gates in backward.
    row_bytes = -(-hidden_size * item // 16) * 16, -(-hidden_size * item // 4) * 16
    for events, size in zip((forward, device.take_events()), row_bytes, strict=True):
        assert {(index, stream) for _, index, stream, _, _ in events} == {(1, 7)}
        kinds = [kind for kind, *_ in events]
        first = kinds.index(COOPERATIVE_LAUNCH)
        assert kinds[first - 1] == MEMSET and MEMSET not in kinds[first:]
        cleared = [size for kind, _, _, size, _ in events if kind == MEMSET]
        assert cleared == [saved[0].numel() // hidden_size * size]
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
    refuses(call, "persistent", expected, saved)
    call.check_forward(call.forward("stepwise"))


def test_auto_is_stepwise(kind, device):
    call = Call(kind, hidden_size=64)
    auto, stepwise, persistent = (call.forward(e)[0] for e in ("auto", "stepwise", "persistent"))
    assert torch.equal(auto, stepwise) and not torch.equal(auto, persistent)
    device.set_kernels(75, 0)  # code for older GPUs
    assert torch.equal(call.forward("auto")[0], stepwise)
    refuses(call, "persistent", "on sm_75 with 24 SMs")


def test_properties_of_a_device(device):
    # Errors: 98 cudaErrorInvalidDeviceFunction, 209 cudaErrorNoKernelImageForDevice
    for compiled, error, found in [(79, 0, 79), (80, 0, 90), (90, 98, 0), (90, 209, 0)]:
        device.set_kernels(compiled, error)
        assert device.cuda_device(1) == (SMS, found, "")
    device.set_kernels(90, 700)
    *nothing, message = device.cuda_device(0)
    assert nothing == [0, 0] and message.startswith("lstm: cudaFuncGetAttributes failed: an error")


def test_one_multiprocessor(kind, device):
    """Each direction has a launch. Its block has several passes, with rows sorted by length."""
    device.set_sms(1)
    device.take_events()
    Call(kind, "lengths", directions=2, batch=17, steps=3).check("persistent")
    launches = [(kind, blocks) for kind, *_, blocks in device.take_events()]
    assert launches == 2 * [(MEMSET, 0), (COOPERATIVE_LAUNCH, 1), (COOPERATIVE_LAUNCH, 1)]


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_saved(engine):
    call = Call("bfloat16", "lengths", directions=2)
    saved, alone = call.forward(engine), ops().lstm(*call.arguments(), False, False, engine)
    assert all(map(torch.equal, alone[:3], saved)) and not any(t.numel() for t in alone[3:])


TOO_FEW = "with {} SMs, and {} left free by FASTLSTM_FREE_SMS"
NO_SMS = 'FASTLSTM_FREE_SMS: expected a number of multiprocessors, 0 or more, got "{}"'
NO_TIME = 'FASTLSTM_WAIT_SECONDS: expected a number of seconds, 1 or more, got "{}"'
SETTINGS = [  # FASTLSTM_FREE_SMS, FASTLSTM_WAIT_SECONDS in s and in ms, the error of a large call
    ("20", "", 60_000, TOO_FEW.format(4, 20)),
    ("0", "1", 1000, TOO_FEW.format(24, 0)),
    ("99", "200000", 100_000_000, TOO_FEW.format(0, 99)),
    *((value, "1", 1000, NO_SMS.format(value)) for value in ("x", "-1")),
    *(("", value, None, NO_TIME.format(value)) for value in ("0", "2.5")),
]


def check_setting(free, wait, milliseconds, message):
    os.environ |= {"FASTLSTM_FREE_SMS": free, "FASTLSTM_WAIT_SECONDS": wait}
    try:
        assert ops().wait_limit() == milliseconds
        Call("float32", hidden_size=800, steps=1).forward("persistent")
    except RuntimeError as error:
        assert message in str(error)
    else:
        raise AssertionError(f"expected an error: {message}")


def test_variables_of_the_environment():
    """Each setting needs a new process, because the library reads a variable once."""
    ops()
    pool = 'multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)'
    code = f"{pool}.starmap(test_cuda_op.check_setting, test_cuda_op.SETTINGS, chunksize=1)"
    folders = ROOT / "tests", ROOT / "tests/cuda"
    start = "import multiprocessing, sys; sys.path[:0] = sys.argv[1:]; import test_cuda_op"
    check(sys.executable, "-c", f"{start}; test_cuda_op.ops(); {code}", *folders)


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
