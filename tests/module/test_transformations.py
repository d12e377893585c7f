"""One table of (transformation, call): nn.LSTM and nn.LSTMCell beside ours, converted and not.

Results and gradients are equal, or the errors have the same type. Each exception names its row of
docs/reference/differences.md, and has to occur.
"""

import copy
import io
import pickle
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastlstm
from fastlstm import _build

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "differences.md"
pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="describes torch 2.13"),
    pytest.mark.skipif(not _build.has_kernels("cpu"), reason="no CPU kernels"),
    pytest.mark.filterwarnings("ignore"),  # torch warns of deprecated transformations
]
T, B, I, H = 4, 3, 2, 5
TRANSFORMATIONS = {}
# By transformation: the row of differences.md, and the part of the calls' names that differs.
EXCEPTIONS = {
    "script": ("`torch.jit.script`", ""),
    "vmap": ("`torch.func`: vmap without grad", ""),
    "jvp": ("`torch.func`: jvp, jacfwd, hessian", ""),
    "forward_mode": ("`torch.func`: jvp, jacfwd, hessian", ""),
    "compile_one_graph": ("`torch.compile(fullgraph=True)`", "LSTM "),
    "grad": ("`torch.func`: grad, vmap(grad)", "LSTM packed"),
    "retain_grad_of_c": ("`retain_grad` of a cell's c", "LSTMCell"),
    "autocast": ("float16 or bfloat16 under autocast", "LSTM packed"),
}


def transformation(function):
    """Adds function(module, arguments), which returns results, to the table."""
    TRANSFORMATIONS[function.__name__] = function
    return function


def in_context(name, make):
    def run(module, arguments):
        with make():
            return module(*arguments)

    TRANSFORMATIONS[name] = run


class Overrides(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Sees(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


CONTEXTS = {
    "eager": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly_mode": torch.autograd.detect_anomaly,
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().numpy().copy(), torch.from_numpy
    ),
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "function_mode": Overrides,
    "dispatch_mode": Sees,
    "default_device": lambda: torch.device("cpu"),
}
for each in CONTEXTS.items():
    in_context(*each)


@transformation
def deterministic_mode(module, arguments):
    torch.use_deterministic_algorithms(True)
    try:
        return module(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)


@transformation
def trace(module, arguments):
    return torch.jit.trace(module, tuple(arguments), check_trace=False)(*arguments)


@transformation
def script(module, arguments):
    return torch.jit.script(module)(*arguments)


@transformation
def onnx(module, arguments):
    """The older exporter, of a module inside another; the results are those of onnxruntime."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = nn.Sequential(module.eval())
    torch.onnx.export(model, (arguments[0],), file := io.BytesIO(), dynamo=False)
    session = runtime.InferenceSession(file.getvalue())
    (name,) = [each.name for each in session.get_inputs()]
    return [torch.from_numpy(t) for t in session.run(None, {name: arguments[0].numpy()})]


@transformation
def symbolic_trace(module, arguments):
    return torch.fx.symbolic_trace(nn.Sequential(module))(arguments[0])


@transformation
def export(module, arguments):
    return torch.export.export(module.eval(), tuple(arguments), strict=False).module()(*arguments)


@transformation
def compile(module, arguments):
    torch._dynamo.reset()
    return torch.compile(module, backend="eager")(*arguments)


@transformation
def compile_one_graph(module, arguments):
    torch._dynamo.reset()
    return torch.compile(module, backend="eager", fullgraph=True)(*arguments)


def weights_of(module):
    return {name: weight.detach() for name, weight in module.named_parameters()}


@transformation
def functional_call(module, arguments):
    weights = {name: 2 * weight for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, tuple(arguments))


@transformation
def grad(module, arguments):
    def loss(weights):
        return leaves(torch.func.functional_call(module, weights, tuple(arguments)))[0].sin().sum()

    return torch.func.grad(loss)(weights_of(module))


@transformation
def vmap(module, arguments):
    members = {name: torch.stack([w, 2 * w]) for name, w in weights_of(module).items()}
    run = lambda weights: leaves(torch.func.functional_call(module, weights, tuple(arguments)))
    return torch.func.vmap(run)(members)


@transformation
def jvp(module, arguments):
    weights = weights_of(module)
    run = lambda weights: leaves(torch.func.functional_call(module, weights, tuple(arguments)))
    return torch.func.jvp(run, (weights,), (weights,))


@transformation
def forward_mode(module, arguments):
    with forward_ad.dual_level():
        weights = {k: forward_ad.make_dual(w, w) for k, w in weights_of(module).items()}
        results = leaves(torch.func.functional_call(module, weights, tuple(arguments)))
        return [forward_ad.unpack_dual(result).tangent for result in results]


@transformation
def second_derivatives(module, arguments):
    results = leaves(module(*arguments))
    first = torch.autograd.grad(total(results), [*module.parameters()], create_graph=True)
    return torch.autograd.grad(total(first), [*module.parameters()])


@transformation
def meta_module(module, arguments):
    return [t.shape for t in leaves(module.to("meta")(*moved(arguments, "meta")))]


@transformation
def fake_tensors(module, arguments):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = _pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
        return [t.shape for t in leaves(module(*fake))]


class Tagged(Tensor):
    """A subclass of Tensor without methods of its own."""


@transformation
def tensor_subclass(module, arguments):
    tagged = _pytree.tree_map_only(Tensor, lambda t: t.as_subclass(Tagged), arguments)
    results = leaves(module(*tagged))
    assert {type(result) for result in results} == {Tagged}
    return [result.as_subclass(Tensor) for result in results]


@transformation
def forward_hooks(module, arguments):
    module.register_forward_pre_hook(lambda _, args: tuple(double(args)))
    module.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
    module.register_forward_hook(lambda _, args, result: double(result))
    return module(*arguments)


@transformation
def global_forward_hook(module, arguments):
    handle = nn.modules.module.register_module_forward_hook(lambda _, args, result: double(result))
    try:
        return module(*arguments)
    finally:
        handle.remove()


@transformation
def backward_hooks(module, arguments):
    seen = []
    module.register_full_backward_pre_hook(lambda _, grads: seen.extend(grads))
    module.register_full_backward_hook(lambda _, inputs, outputs: seen.extend(outputs))
    given = [arguments[0].clone().requires_grad_(), *arguments[1:]]
    total(leaves(module(*given))).backward()
    return [gradient for gradient in seen if gradient is not None], given[0].grad


@transformation
def tensor_hooks(module, arguments):
    def double_gradient(weight):
        weight.grad.mul_(2)

    weight = next(module.parameters())
    weight.register_hook(lambda gradient: 3 * gradient)
    weight.register_post_accumulate_grad_hook(double_gradient)
    results = leaves(module(*arguments))
    results[0].register_hook(lambda gradient: 5 * gradient)
    return results


@transformation
def state_dict_hooks(module, arguments):
    module.register_state_dict_post_hook(lambda module, state, *_: state.update(extra=T))
    assert module.state_dict().pop("extra") == T
    module.register_load_state_dict_pre_hook(lambda _, state, *__: state.pop("extra"))
    module.load_state_dict({name: 2 * w for name, w in weights_of(module).items()} | {"extra": T})
    return module(*arguments)


@transformation
def checkpoint_reentrant(module, arguments):
    given = [_pytree.tree_map_only(Tensor, differentiable, a) for a in arguments]
    return checkpoint(module, *given, use_reentrant=True)


@transformation
def checkpoint_not_reentrant(module, arguments):
    return checkpoint(module, *arguments, use_reentrant=False)


@transformation
def data_parallel(module, arguments):
    return nn.DataParallel(module)(*arguments)


@transformation
def shared_memory(module, arguments):
    module.share_memory()
    assert all(weight.is_shared() for weight in module.parameters())
    return module(*arguments)


@transformation
def deepcopied(module, arguments):
    return copy.deepcopy(module)(*arguments)


@transformation
def pickled(module, arguments):
    return [pickle.loads(pickle.dumps(module, protocol))(*arguments) for protocol in (2, 5)]


@transformation
def saved(module, arguments):
    torch.save(module, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)(*arguments)


@transformation
def pickled_by_an_older_torch(module, arguments):
    """Older versions had no proj_size, no references to the weights, and no list of them."""
    _, _, state, *_ = module.__reduce_ex__(2)
    older = {k: v for k, v in state.items() if k not in ("proj_size", "_flat_weights")}
    other = copy.deepcopy(module)
    other.__setstate__({k: v for k, v in older.items() if k != "_flat_weight_refs"})
    return other(*arguments)


@transformation
def parametrized(module, arguments):
    parametrizations.weight_norm(module, next(name for name, _ in module.named_parameters()))
    return module(*arguments)


@transformation
def pruned(module, arguments):
    name = [name for name, _ in module.named_parameters()][1]
    torch.manual_seed(3)
    prune.random_unstructured(module, name, amount=0.5)
    return module(*arguments)


@transformation
def converted_to_float64(module, arguments):
    return module.double()(*moved(arguments, torch.float64))


@transformation
def frozen(module, arguments):
    return module.requires_grad_(False)(*arguments)


@transformation
def partly_frozen(module, arguments):
    next(module.parameters()).requires_grad_(False)
    return module(*arguments)


@transformation
def batched_gradients(module, arguments):
    result = leaves(module(*arguments))[0]
    grads = torch.stack([result.detach(), result.detach() ** 2])
    return torch.autograd.grad(result, [*module.parameters()], grads, is_grads_batched=True)


@transformation
def retain_grad_of_c(module, arguments):
    if isinstance(arguments[0], PackedSequence) or arguments[0].dim() == 3:
        return module(*arguments)
    h, c = module(*arguments)
    c.retain_grad()
    total(module(arguments[0], (h, c))).backward()
    return c.grad


CALLS = {
    "LSTM dense": (nn.LSTM, {}, "dense"),
    "LSTM dense, hx": (nn.LSTM, {"batch_first": True}, "hx"),
    "LSTM packed": (nn.LSTM, {}, "packed"),
    "LSTM packed, two layers and directions": (
        nn.LSTM, {"num_layers": 2, "bidirectional": True}, "packed",
    ),
    "LSTM two layers, no bias": (nn.LSTM, {"num_layers": 2, "bias": False}, "dense"),
    "LSTM proj_size": (nn.LSTM, {"proj_size": 2}, "dense"),
    "LSTMCell": (nn.LSTMCell, {}, "cell"),
    "LSTMCell hx": (nn.LSTMCell, {"bias": False}, "cell, hx"),
}  # fmt: skip


def arguments_of(kind):
    torch.manual_seed(1)
    x, h, c = torch.randn(T, B, I), torch.randn(1, T, H), torch.randn(1, T, H)
    return {
        "dense": lambda: [x],
        "hx": lambda: [x, (h, c)],
        "packed": lambda: [pack_padded_sequence(x, [4, 3, 1])],
        "cell": lambda: [x[0]],
        "cell, hx": lambda: [x[0], (h[0, :B], c[0, :B])],
    }[kind]()


def leaves(results):
    return [
        t for t in _pytree.tree_leaves(results) if isinstance(t, Tensor) and t.is_floating_point()
    ]


def total(tensors):
    return sum(t.sin().sum() for t in leaves(tensors))


def double(value):
    return _pytree.tree_map_only(Tensor, lambda t: 2 * t if t.is_floating_point() else t, value)


def differentiable(tensor):
    return tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor


def moved(arguments, target):
    change = lambda t: t.to(target) if t.is_floating_point() else t
    return _pytree.tree_map_only(Tensor, change, arguments)


def outcome(run, module, kind):
    """Returns results and gradients, or the type of the error."""
    try:
        results = run(module, arguments_of(kind))
        tensors = leaves(results)
        if any(t.requires_grad for t in tensors):
            total(tensors).backward()
    except Exception as error:
        kinds = RuntimeError, TypeError, AttributeError, ValueError, AssertionError, Exception
        return next(kind for kind in kinds if isinstance(error, kind))
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    return [t.detach() for t in tensors] or results, gradients


def modules(cls, options):
    """Returns the module of torch.nn, and ours with the same weights by the way they are made."""
    made = {"torch": cls(I, H, **options), "converted": fastlstm.convert(cls(I, H, **options))}
    made["fastlstm"] = getattr(fastlstm, cls.__name__)(I, H, **options)
    made["no class"] = fastlstm.convert(cls(I, H, **options), keep_class=False)
    for module in made.values():
        module.load_state_dict(made["torch"].state_dict())
    return made


def difference(found, expected, tolerance):
    """Returns how two outcomes differ, or ''."""
    if isinstance(found, type) or isinstance(expected, type):
        return "" if found is expected else f"{found}, torch.nn: {expected}"
    try:
        torch.testing.assert_close(found, expected, **tolerance)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformation(name):
    row, part = EXCEPTIONS.get(name, ("", ""))
    tolerance = {"rtol": 0.05, "atol": 0.05} if name == "autocast" else {"rtol": 1e-4, "atol": 1e-5}
    differences, computed = {}, 0
    for call, (cls, options, kind) in CALLS.items():
        torch.manual_seed(0)
        made = modules(cls, options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes = {way: outcome(TRANSFORMATIONS[name], m, kind) for way, m in made.items()}
        computed += not all(isinstance(each, type) for each in outcomes.values())
        for way in [*outcomes][1:]:
            if problem := difference(outcomes[way], outcomes["torch"], tolerance):
                differences[call, way] = problem
    unexpected = {k: v for k, v in differences.items() if not row or part not in k[0]}
    assert not unexpected
    assert computed, "only errors are compared"
    assert bool(row) == bool(differences), f"no call differs: {row}"


def test_every_exception_has_a_row():
    rows = PAGE.read_text()
    assert EXCEPTIONS.keys() <= TRANSFORMATIONS.keys()
    for row, _ in EXCEPTIONS.values():
        assert f"\n| {row} |" in rows, row
