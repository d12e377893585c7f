"""Per-sample gradients and ensembles under torch.func, against the reference and against a loop.

Ratios of times, taken in alternation in one process; above 1 the op under vmap is faster::

    python benchmarks/bench_vmap.py
    python benchmarks/bench_vmap.py --samples 32 --members 4 --hidden 256

"per sample" is vmap(grad(loss)) over single sequences with shared weights. "ensemble" is the same
over members with weights of their own, on one batch of 32. The loop calls grad for each in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from markdown import table
from timing import CLOCKS, Effort, alternate, settle_malloc
from torch import Tensor
from torch.func import functional_call, grad, vmap

import fastlstm

Gradients = dict[str, Tensor]


def cases(
    kind: str, count: int, hidden: int, args: argparse.Namespace
) -> dict[str, Callable[[], Gradients]]:
    """By route, the function that computes every gradient [count, ...]."""
    torch.manual_seed(0)
    lstm = fastlstm.LSTM(args.input, hidden, device=args.device)
    weights = {n: p.detach() for n, p in lstm.named_parameters()}
    if kind == "per sample":
        x = torch.randn(count, args.steps, args.input, device=args.device)
        in_dims: tuple[int | None, ...] = (None, 0)
    else:
        x = torch.randn(args.steps, 32, args.input, device=args.device)
        weights = {n: w + 0.01 * torch.randn(count, *w.shape).to(w) for n, w in weights.items()}
        in_dims = (0, None)

    def loss(weights: Gradients, x: Tensor) -> Tensor:
        return functional_call(lstm, weights, (x,))[0].square().sum()

    def mapped(engine: str) -> Gradients:
        lstm.engine = engine
        return vmap(grad(loss), in_dims=in_dims)(weights, x)

    def loop() -> Gradients:
        lstm.engine = "auto"
        each = [
            grad(loss)(weights, x[k])
            if kind == "per sample"
            else grad(loss)({n: w[k] for n, w in weights.items()}, x)
            for k in range(count)
        ]
        return {n: torch.stack([g[n] for g in each]) for n in weights}

    return {"vmap": lambda: mapped("auto"), "reference": lambda: mapped("reference"), "loop": loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--members", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--seconds", type=float, default=3, help="for each ratio")
    args = parser.parse_args()
    settle_malloc()
    clock, effort = CLOCKS[args.device], Effort(args.seconds, min_pairs=5)
    rows = []
    sizes = [("per sample", n) for n in args.samples] + [("ensemble", n) for n in args.members]
    for hidden in args.hidden:
        for kind, count in sizes:
            routes = cases(kind, count, hidden, args)
            found = routes["vmap"]()
            ratios = []
            for other in ("reference", "loop"):
                for name, gradient in routes[other]().items():
                    torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3)
                pairs = alternate(routes[other], routes["vmap"], clock, effort)
                ratios.append(f"{pairs.ratio:.2f}")
            milliseconds = min(pairs.candidate) * 1000
            rows.append([kind, str(count), str(hidden), f"{milliseconds:.1f}", *ratios])
            print(*rows[-1], flush=True)
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else "cuda"
    print(f"\ntorch {torch.__version__}, {threads}, T {args.steps}, I {args.input}\n")
    print(table(["", "count", "H", "vmap, ms", "reference / vmap", "loop / vmap"], rows))


if __name__ == "__main__":
    main()
