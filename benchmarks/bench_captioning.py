"""Measures a captioner in captions per second, with fastlstm.LSTM and with torch.nn.LSTM.

The first table shows training and decoding. The two captioners differ only in their LSTM. They run
alternately in one process, on the same random captions (with lengths as in COCO) and on random
image features. The second table shows the vocabulary projection with its cross-entropy and its
gradients: time and peak memory, computed in blocks and computed in one piece. ::

    python benchmarks/bench_captioning.py
    python benchmarks/bench_captioning.py --autocast bfloat16
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from memory import allocated
from report import write_json

from captioning.cnn.pretrained import CNNConfig
from captioning.data.vocabulary import SPECIAL, Vocabulary
from captioning.model.captioner import Captioner
from captioning.model.checkpoint import Checkpoint
from captioning.model.loss import BLOCK, linear_cross_entropy
from captioning.search.generate import decode_batch
from captioning.settings import DecodeConfig, ModelConfig


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each run. The runs take turns, as in `timing.alternate`."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first round only warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def training(vocab: int, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Returns a training step on one batch of random captions, for each of the two LSTMs."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 17, (args.batch,), generator=generator).sort(descending=True).values
    captions = torch.randint(4, vocab, (args.batch, 16), generator=generator)
    captions[torch.arange(16) >= lengths.unsqueeze(1)] = 0
    features, rows = torch.randn(args.batch, args.features), torch.arange(args.batch)

    def make(lstm: str) -> Callable[[], object]:
        torch.manual_seed(0)
        model = Captioner(ModelConfig(args.features, vocab, args.embed, args.hidden), lstm)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, args.autocast == "bfloat16"):
                loss, _ = model(features, rows, captions, lengths)
            (loss / int((lengths - 1).sum())).backward()
            optimizer.step()

        return step

    return {lstm: make(lstm) for lstm in ("fastlstm", "torch")}


def vocabulary_projection(vocab: int, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Returns two functions that compute the vocabulary projection of a batch.

    Each function computes the scores of all tokens, their cross-entropy and the gradients: one in
    blocks of tokens, the other in one piece.
    """
    tokens = 12 * args.batch
    linear = torch.nn.Linear(args.hidden, vocab)
    hidden = torch.randn(tokens, args.hidden, requires_grad=True)
    targets, weights = torch.randint(vocab, (tokens,)), torch.ones(tokens)

    def make(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, args.autocast == "bfloat16"):
                value = loss()
            value.backward()
            # Without old gradients, every run has the peak memory of a first run.
            hidden.grad = linear.weight.grad = linear.bias.grad = None

        return run

    blockwise = lambda: linear_cross_entropy(hidden, linear, targets, weights, 0.0)[0]
    return {
        f"blocks of {BLOCK}": make(blockwise),
        "F.cross_entropy": make(lambda: F.cross_entropy(linear(hidden), targets, reduction="sum")),
    }


def decoding(method: str, vocab: int, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Returns a function that captions one batch by a search method, for each of the two LSTMs."""
    features = torch.randn(args.batch, args.features)

    def make(lstm: str) -> Callable[[], object]:
        torch.manual_seed(0)
        sizes = ModelConfig(args.features, vocab, args.embed, args.hidden)
        model = Captioner(sizes, lstm).eval()
        model.decoder.linear.bias.data[2] = -1e9  # no caption ends early, so 20 steps are timed
        words = Vocabulary([*SPECIAL, *map(str, range(vocab - len(SPECIAL)))])
        checkpoint = Checkpoint([model], words, CNNConfig())
        return lambda: decode_batch(checkpoint, features, DecodeConfig(method))

    return {lstm: make(lstm) for lstm in ("fastlstm", "torch")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--batch", type=int, default=128)
    add("--embed", type=int, default=256)
    add("--hidden", type=int, default=512)
    add("--features", type=int, default=2048)
    add("--vocab", type=int, nargs="+", default=[3000, 10000])
    text = "autocast dtype during training; default: none"
    add("--autocast", choices=("none", "bfloat16"), default="none", help=text)
    add("--repeats", type=int, default=7)
    add("--json", type=Path, help="also write the numbers to this JSON file")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch}")
    print(f"{'':28}{'fastlstm':>12}{'torch':>12}{'ratio':>8}   captions/s")
    rows = []
    cases = [(f"train, {v:,} words", training(v, args)) for v in args.vocab]
    for method in ("greedy", "beam"):
        name = f"{method} search, {args.vocab[0]:,} words"
        cases.append((name, decoding(method, args.vocab[0], args)))
    for name, runs in cases:
        times = median_seconds(runs, args.repeats)
        rate = {lstm: args.batch / value for lstm, value in times.items()}
        ratio = rate["fastlstm"] / rate["torch"]
        print(f"{name:28}{rate['fastlstm']:12,.0f}{rate['torch']:12,.0f}{ratio:8.2f}", flush=True)
        rows.append({"case": name, **rate, "ratio": ratio})
    print(f"\n{'projection and cross-entropy':40}{'ms':>8}{'peak MB':>10}")
    for vocab in args.vocab:
        runs = vocabulary_projection(vocab, args)
        for name, seconds in median_seconds(runs, args.repeats).items():
            peak = allocated(runs[name])
            print(f"{f'{vocab:,} words, {name}':40}{seconds * 1e3:8.1f}{peak / 1e6:10.1f}")
            rows.append({"case": f"{vocab} words, {name}", "seconds": seconds, "peak": peak})
    if args.json:
        write_json(args.json, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
