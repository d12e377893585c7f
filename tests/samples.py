"""Sample calls of a layer, and the routes (an engine on a device) that compute each of them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from oracle import oracle
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import _build, reference
from fastlstm.engine.call import LAYOUTS


def reloaded(value: Any, weights_only: bool = False) -> Any:
    """Returns what torch.load makes of the file that torch.save writes."""
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), reloaded]
every_copy = pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "save"])
needs_expecttest = pytest.mark.skipif(not find_spec("expecttest"), reason="opcheck imports it")


@dataclass(frozen=True)
class Route:
    engine: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.engine}-{self.device}"

    def lstm_layer(self, **arguments: Any) -> tuple[Tensor, ...]:
        """Returns output, h_n, c_n and cells of one layer; for cells see `Sample.mask_cells`."""
        if self.engine == "reference":
            return reference.lstm_layer(**arguments)
        run: Callable[..., tuple[Tensor, ...]] = torch.ops.fastlstm.lstm
        return run(**arguments, save_cells=True, engine=self.engine)[:4]


def _op_routes(device: str) -> list[Any]:
    reason = f"no {device} kernels: {_build.unavailable_reason() or 'not built for it'}"
    marks = [pytest.mark.skipif(not _build.has_kernels(device), reason=reason)]
    marks += [pytest.mark.gpu] if device == "cuda" else []
    # "auto" takes the fastest engine that can serve the call.
    routes = [Route(engine, device) for engine in ("stepwise", "auto")]
    return [pytest.param(route, id=str(route), marks=marks) for route in routes]


OP_ROUTES = _op_routes("cpu") + _op_routes("cuda")
ROUTES = [pytest.param(Route("reference"), id="reference"), *OP_ROUTES]
# For tests in which it does not matter which engine of the op computes.
AUTO_ROUTES = [route for route in OP_ROUTES if route.values[0].engine == "auto"]
REFERENCE_AND_AUTO = [ROUTES[0], *AUTO_ROUTES]

every_route = pytest.mark.parametrize("route", ROUTES)
# Engine "torch" computes all layers of a module at once, so it cannot compute a single sample.
TORCH_CUDA = pytest.param(Route("torch", "cuda"), id="torch-cuda", marks=pytest.mark.gpu)
TORCH_ROUTES = [pytest.param(Route("torch"), id="torch"), TORCH_CUDA]
every_module_route = pytest.mark.parametrize("route", [*ROUTES, *TORCH_ROUTES])
every_op_route = pytest.mark.parametrize("route", OP_ROUTES)


@dataclass(frozen=True)
class Sample:
    """Sizes and options of one layer and its call. The values depend on the name and the seed."""

    name: str
    steps: int = 4
    batch: int = 3
    input_size: int = 3
    hidden_size: int = 4
    proj_size: int = 0
    directions: int = 1
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    packed: bool = False  # a PackedSequence of `lengths`, which are sorted
    reset: bool = False
    norms: bool = False  # a layer with layer normalization
    h_mask: bool = False
    zoneout: tuple[str, ...] = ()  # some of the names in ZONEOUT
    expanded: bool = False  # one state for all rows, with a stride of 0
    exact: bool = False  # values are small multiples of 1/128, exact in every dtype
    restride: Callable[[dict[str, Any]], None] | None = None  # changes strides of the arguments
    seed: int = 0

    def padded(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Any]:
        """Returns the arguments for the oracle: a padded input, lengths as a tuple."""
        generator = torch.Generator().manual_seed(len(self.name) * 100 + self.steps + self.seed)

        def draw(*shape: int, divisor: float = 1.0) -> Tensor:
            if self.exact:
                return torch.randint(-64, 65, shape, generator=generator).double() / 128
            return torch.randn(*shape, generator=generator, dtype=torch.float64) / divisor

        H, P = self.hidden_size, self.proj_size or self.hidden_size
        weights: list[Tensor] = []
        for _ in range(self.directions):
            weights += [draw(4 * H, self.input_size, divisor=2), draw(4 * H, P, divisor=H**0.5)]
            weights += [draw(4 * H, divisor=2), draw(4 * H, divisor=2)] if self.bias else []
            weights += [draw(P, H, divisor=H**0.5)] if self.proj_size else []
            if self.norms:
                weights += [1 + draw(size) / 4 for size in (4 * H, 4 * H, H)] + [draw(H) / 4]
        tensors = {
            "input": draw(self.steps, self.batch, self.input_size),
            "h_0": draw(self.directions, self.batch, P),
            "c_0": draw(self.directions, self.batch, H),
        }
        if self.expanded:
            tensors |= {k: tensors[k][:, :1] for k in ("h_0", "c_0")}
        reset = torch.rand(self.steps, self.batch, generator=generator) < 0.4
        tensors = {k: v.to(device, dtype) for k, v in tensors.items()}
        if self.expanded:
            tensors |= {k: tensors[k].expand(-1, self.batch, -1) for k in ("h_0", "c_0")}

        def mask(*shape: int) -> Tensor:  # 0 or 1 as in a drawn mask, or a value between
            values = torch.tensor([0.0, 1.0, 0.25])
            return values[torch.randint(3, shape, generator=generator)].to(device, dtype)

        shape, sizes = (self.directions, self.steps, self.batch), {"zoneout_h": P, "zoneout_c": H}
        return {
            **tensors,
            "weights": [w.to(device, dtype) for w in weights],
            "lengths": self.lengths,
            "reset": reset.to(device) if self.reset else None,
            "h_mask": mask(self.directions, self.batch, P) if self.h_mask else None,
            **{name: mask(*shape, sizes[name]) for name in self.zoneout},
        }

    def arguments(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Any]:
        return self.as_layer(self.padded(dtype, device))

    def as_layer(self, padded: dict[str, Any]) -> dict[str, Any]:
        """Converts the result of `padded` to arguments for `Route.lstm_layer`; differentiable."""
        layout = LAYOUTS[self.bias, self.proj_size > 0, self.norms]
        layer = {**padded, "layout": layout, "batch_sizes": None}
        if self.packed:
            packed = pack_padded_sequence(layer["input"], torch.tensor(self.lengths))
            layer |= {"input": packed.data, "batch_sizes": packed.batch_sizes, "lengths": None}
            for name in self.zoneout:
                layer[name] = self._pack_each(layer[name])
        elif self.lengths is not None:
            layer["lengths"] = torch.tensor(self.lengths, device=layer["input"].device).long()
        if self.restride:
            self.restride(layer)
        return layer

    def oracle(self, padded: dict[str, Any]) -> list[Tensor]:
        """Returns the oracle's results; output and cells are packed if the sample is."""
        output, h_n, c_n, cells = oracle(**padded)
        if self.packed:
            output = pack_padded_sequence(output, torch.tensor(self.lengths)).data
            cells = self._pack_each(cells)
        return [output, h_n, c_n, cells]

    def _pack_each(self, directions: Tensor) -> Tensor:
        """Packs [D,T,B,size] to [D,N,size], where N is the sum of the lengths."""
        lengths = torch.tensor(self.lengths)
        return torch.stack([pack_padded_sequence(each, lengths).data for each in directions])

    def mask_cells(self, results: tuple[Tensor, ...]) -> list[Tensor]:
        """Returns the results with cells set to zero after the end of each row."""
        output, h_n, c_n, cells = results
        if self.lengths is not None and not self.packed:
            lengths = torch.tensor(self.lengths, device=cells.device)
            real = torch.arange(self.steps, device=cells.device)[:, None] < lengths
            cells = torch.where(real[..., None], cells, 0.0)
        return [output, h_n, c_n, cells]


def _batch_first(arguments: dict[str, Any]) -> None:
    arguments["input"] = arguments["input"].transpose(0, 1).contiguous().transpose(0, 1)


def _strided(arguments: dict[str, Any]) -> None:
    """Gives each tensor strides with which no dimension is contiguous."""
    for name in ("input", "h_0", "c_0"):
        arguments[name] = torch.stack([arguments[name]] * 2, -1).select(-1, 1)
    spread = lambda w: torch.stack([w] * 2, -1).select(-1, 0) if w.dim() == 1 else transposed(w)
    transposed = lambda w: w.t().contiguous().t()
    arguments["weights"] = [spread(w) for w in arguments["weights"]]
    if arguments["reset"] is not None:
        arguments["reset"] = transposed(arguments["reset"])


ZONEOUT = ("zoneout_h", "zoneout_c")
RAGGED: Any = {"lengths": (3, 0, 4), "reset": True, "directions": 2, "proj_size": 2}
PACKED: Any = {"lengths": (4, 3, 3), "packed": True, "directions": 2, "proj_size": 2}
SAMPLES = [
    Sample("plain"),
    Sample("one_step", steps=1, batch=1),
    Sample("sizes_of_one", steps=2, batch=2, input_size=1, hidden_size=1),
    Sample("no_bias", bias=False),
    Sample("projection", proj_size=2),
    Sample("bidirectional", directions=2),
    Sample("bidirectional_projection_no_bias", directions=2, proj_size=3, bias=False),
    Sample("lengths", lengths=(2, 4, 0)),
    Sample("lengths_bidirectional_projection", lengths=(3, 0, 4), directions=2, proj_size=2),
    Sample("reset", reset=True),
    Sample("reset_lengths_bidirectional", reset=True, lengths=(4, 1, 3), directions=2),
    Sample("packed", lengths=(4, 2, 1), packed=True),
    Sample("packed_bidirectional_projection", **PACKED),
    Sample("batch_first", restride=_batch_first, directions=2),
    Sample("strided", restride=_strided, reset=True, proj_size=2),
    Sample("vector_tail", steps=2, batch=5, hidden_size=19),
    Sample("h_mask_reset", h_mask=True, reset=True, directions=2),
    Sample("h_mask_lengths", h_mask=True, lengths=(3, 0, 4), reset=True, directions=2),
    Sample("h_mask_packed", h_mask=True, lengths=(4, 2, 1), packed=True, directions=2),
    Sample("norms", norms=True),
    Sample("norms_lengths", norms=True, lengths=(2, 4, 0), directions=2, reset=True),
    Sample("norms_packed_projection", norms=True, **PACKED),
    Sample("norms_h_mask", norms=True, bias=False, h_mask=True, reset=True, directions=2),
    Sample("h_mask_projection_lengths", h_mask=True, **RAGGED),
]
# Only the reference computes zoneout.
ZONEOUT_SAMPLES = [
    Sample("zoneout_h", zoneout=ZONEOUT[:1], directions=2),
    Sample("zoneout_c", zoneout=ZONEOUT[1:], reset=True),
    Sample("zoneout_packed", zoneout=ZONEOUT, lengths=(4, 2, 1), packed=True, directions=2),
    Sample("zoneout_norms", zoneout=ZONEOUT, norms=True, bias=False, reset=True, directions=2),
    Sample("zoneout_h_mask_projection_lengths", zoneout=ZONEOUT, h_mask=True, **RAGGED),
]
# Kernels take their vectorized and parallel paths at these sizes. They are too large for gradcheck.
LARGE_SAMPLES = [
    Sample("large_norms", steps=3, batch=5, hidden_size=67, norms=True, lengths=(3, 0, 3, 1, 2)),
    Sample("large", steps=6, batch=17, input_size=40, hidden_size=67),
    Sample("long", steps=6, batch=5, hidden_size=130, lengths=(6, 0, 3, 1, 5), directions=2),
    Sample("large_packed", steps=5, batch=4, hidden_size=64, lengths=(5, 5, 2, 1), packed=True),
    Sample("large_h_mask", steps=3, batch=5, hidden_size=130, h_mask=True, lengths=(3, 0, 3, 1, 2)),
    Sample("one_step_reset", steps=1, batch=30, hidden_size=20, reset=True, directions=2),
    Sample("expanded", expanded=True),
    Sample("empty_batch", batch=0, directions=2),
    Sample("empty_batch_lengths", batch=0, lengths=(), reset=True),
    Sample("empty_batch_projection", batch=0, proj_size=3),
]

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
ALL_SAMPLES = SAMPLES + LARGE_SAMPLES
every_sample_and_large = pytest.mark.parametrize("sample", ALL_SAMPLES, ids=lambda s: s.name)


def draw(route: Route, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(route.device)


def make(route: Route, cls: Any = fastlstm.LSTM, **options: Any) -> Any:
    torch.manual_seed(0)
    layer = cls(3, 4, **{"dtype": torch.float64, "device": route.device, **options})
    layer.engine = route.engine
    return layer


def with_gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Returns the results, and the gradients of a weighted sum of all their values."""
    loss = sum((r * torch.arange(r.numel()).view_as(r).to(r).cos()).sum() for r in results)
    return [*results, *torch.autograd.grad(loss, leaves)]


def floating(arguments: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors that have gradients: input, h_0, c_0, then the weights."""
    return [arguments["input"], arguments["h_0"], arguments["c_0"], *arguments["weights"]]


def with_leaves(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with new leaves for the gradients; values and strides stay."""
    return with_floating(arguments, [t.detach().requires_grad_() for t in floating(arguments)])


def with_floating(arguments: dict[str, Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    input, h_0, c_0, *weights = tensors
    return {**arguments, "input": input, "h_0": h_0, "c_0": c_0, "weights": list(weights)}
