"""From a request for training to a captioner that was validated and tested."""

import contextlib
import copy
import time
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

from captioning.cnn import FeatureTable
from captioning.config import SMALL_SET, BeamConfig, TrainConfig
from captioning.console import progress, say
from captioning.data import Vocabulary
from captioning.errors import CaptioningError
from captioning.files import lock_folder
from captioning.model import Checkpoint, CiderD, Neighbors, freeze, load_checkpoint, load_ensemble
from captioning.results import score_captions
from captioning.search import DecodeConfig, best_captions, decode_batch
from captioning.training.preparation import prepare_training
from captioning.training.processes import Process, distributed
from captioning.training.request import TrainingRequest
from captioning.training.run import new_trainer, train

# What beam search on --val tries; the first of the best is taken.
BEAM_SIZES, LENGTH_PENALTIES = (5, 20), (0.7, 0.5, 0.9, 1.1)
NEIGHBOR_WEIGHTS = (0, 1, 2, 4, 6, 8, 12, 16)
MAX_TRIED = 2000  # pictures of --val
FIRST_STAGE = "cross-entropy"  # the folder of the stage before self-critical training
OF_SECOND = "self_critical epochs batch_size learning_rate".split()  # settings of this one alone
LEGEND = {
    "loss": "loss: nats per word, given the words before it, on --train with dropout and on --val",
    "reward": "reward: mean CIDEr-D of captions drawn for pictures of --train",
}
SCORES = "CIDEr-D, BLEU-4: of the captions that greedy search writes for --val"


def train_captioner(request: TrainingRequest) -> list[dict[str, float]]:
    """Train as requested: writes last.pt and best.pt to `request.output`.

    Several members are in its folders 1, 2 and so on. Self-critical training without a captioner to
    start from first trains one in the folder cross-entropy. Under torchrun, every process calls
    this with the same request.

    Returns:
        What happened in each epoch (of the last run, if there are several): its loss or reward and,
        with `val`, the scores.

    Raises:
        CaptioningError: the request contradicts itself, its files, or the captioner that it
            continues with.
    """
    runs, output = runs_of(request), request.output
    with (
        distributed(request.extraction.device) as process,
        lock_folder(output) if process.is_first else contextlib.nullcontext(),
    ):
        for run in runs:
            if (run.output / "last.pt").exists() and not run.resume:
                raise CaptioningError(
                    f"{run.output} holds a captioner already: --resume, or another --output"
                )
        no_neighbors = False  # not even if one run was resumed without saying so again
        for i, run in enumerate(runs):
            history, config, tables = _train(run, process, runs if i == 0 else [])
            no_neighbors |= config.no_neighbors
        if process.is_first:
            stages = {run.start for run in runs} - {request.start}
            files = [run.output / "best.pt" for run in runs]
            last = [file for file in files if file not in stages]
            finish(last, request.lstm, process, tables, no_neighbors)
    return history


def runs_of(request: TrainingRequest) -> list[TrainingRequest]:
    """The runs that a request stands for: of each member, and of both stages."""
    request.config(0, None)  # finds errors of the second stage before the first
    runs = []
    for i in range(request.members):
        run = request
        if request.members > 1:
            run = replace(
                request,
                output=request.output / str(i + 1),
                features=request.features or request.output / "features",
                settings={**request.settings, "seed": request.settings.get("seed", 0) + i},
            )
        resumes = run.resume and (run.output / "last.pt").exists()
        if run.settings.get("self_critical") and not run.start and not resumes:
            kept = {name: v for name, v in run.settings.items() if name not in OF_SECOND}
            run = replace(run, features=run.features or run.output / "features")
            first = replace(run, output=run.output / FIRST_STAGE, settings=kept)
            runs.append(first)
            run = replace(run, start=first.output / "best.pt")
        runs.append(run)
    return runs


def _train(
    request: TrainingRequest, process: Process, runs: list[TrainingRequest]
) -> tuple[list[dict[str, float]], TrainConfig, dict[str, FeatureTable]]:
    """One run; it says how long `runs` will take, if they are several."""
    if not process.is_first:  # until the first has encoded the pictures
        dist.barrier()
    checkpoint, config, tables = prepare_training(request)
    if process.is_first and process.world_size > 1:
        dist.barrier()
    table, val = tables["train"], tables.get("val")
    if len(runs) > 1:
        say(forecast(checkpoint, table, runs, process))
    unit = "pictures" if config.self_critical else "captions"
    say(
        f"{len(table.images):,} pictures, {len(checkpoint.vocabulary):,} words; "
        f"{config.epochs} epochs, batches of {config.batch_size} {unit}, "
        f"learning rate {config.learning_rate}",
        LEGEND["reward" if config.self_critical else "loss"],
        SCORES,
    )
    resume = "trainer" in checkpoint.training
    history = train(checkpoint, config, table, val, request.output, resume, process)
    if process.is_first:
        say(summary(history, request.output / "best.pt"))
    return history, config, tables


def finish(
    paths: list[Path],
    lstm: str,
    process: Process,
    tables: dict[str, FeatureTable],
    no_neighbors: bool,
) -> None:
    """Chooses one search for the captioners that were trained, saves it in each, and tests them."""
    table, val = tables["train"], tables.get("val")
    several = len(paths) > 1
    if "test" in tables or all(path.exists() for path in paths):
        found = load_ensemble(paths, lstm, process.device)
        freeze(found.model)
        who = f"all {len(paths)} together: " if several else ""
        had, found.model.neighbors = found.model.neighbors, None  # of the run that is resumed
        if val:
            similar = len(table.images) < SMALL_SET and not no_neighbors
            say(who + choose_search(found, val, table if similar else None))
        for path in paths if val or had else ():
            one = load_checkpoint(path, lstm)
            one.model.beam, one.model.neighbors = found.model.beam, found.model.neighbors
            one.save(path)
        if "test" in tables:
            say(who + test(found, tables["test"]))
    best = paths[0].parents[1] / "*" / "best.pt" if several else paths[0]
    say(f"next: python -m captioning caption {best} PICTURE --method beam")


def forecast(
    checkpoint: Checkpoint, table: FeatureTable, runs: list[TrainingRequest], process: Process
) -> str:
    """One line on how long runs take from their beginning, by three steps of each on a copy."""
    minutes: dict[str, float] = defaultdict(float)
    for run in runs:
        config = replace(run.config(len(table.images), None), consensus=0.0)
        trainer = new_trainer(copy.deepcopy(checkpoint), config, table, process)
        batches, seconds = trainer.batches(0), []
        for indices in batches[:3]:
            start = time.perf_counter()
            trainer.train_step(indices, len(batches))
            seconds.append(time.perf_counter() - start)
        stage = "self-critical training" if config.self_critical else "cross-entropy"
        minutes[stage] += min(seconds) * len(batches) * config.epochs / 60
    parts = [f"{number:.0f} of {stage}" for stage, number in minutes.items()]
    return f"about {sum(minutes.values()):.0f} minutes, without validation: {', '.join(parts)}"


def summary(history: list[dict[str, float]], best: Path) -> str:
    """Which epoch is the best, and where it is."""
    validated = [entry for entry in history if "CIDEr-D" in entry]
    if not validated:
        return f"{best} holds epoch {len(history)}, the last (no --val to choose by)"
    entry = max(validated, key=lambda entry: entry["CIDEr-D"])
    return (
        f"best of {len(history)} epochs: {entry['epoch']:.0f}, CIDEr-D {entry['CIDEr-D']:.3f}, "
        f"BLEU-4 {entry['BLEU-4']:.3f} on --val: {best}"
    )


def choose_search(
    checkpoint: Checkpoint, val: FeatureTable, table: FeatureTable | None = None
) -> str:
    """Gives a captioner the beam search that has the best CIDEr-D on `val`; says what it has.

    If the captions of the training pictures in `table` help to rank, it keeps them.
    """
    model, words = checkpoint.model, checkpoint.vocabulary
    neighbors = Neighbors.of(table, words) if table else None
    weights = NEIGHBOR_WEIGHTS if table else (0,)
    # All words count, as they do in `score_captions`, also those that the captioner does not know.
    every = Vocabulary.build(caption for image in val.images for caption in image.captions)
    tokens = lambda caption: every.encode(caption)[1:-1]
    reward = CiderD([[*map(tokens, image.captions)] for image in val.images])
    device = next(model.parameters()).device
    parts = torch.arange(len(val.images))[:MAX_TRIED].split(128)
    cider: dict[tuple[int, float, float], float] = defaultdict(float)
    for size, pictures in progress([*product(BEAM_SIZES, parts)], "try beams on --val"):
        features = val.read(pictures)
        how = DecodeConfig("beam", size, LENGTH_PENALTIES[0], neighbors=0.0)
        groups = decode_batch(model, features.to(device), how)
        found = [[h.tokens for h in group] for group in groups]
        none = [[0.0] * len(group) for group in groups]
        agreed = neighbors.agreement(features, found) if neighbors else none
        for picture, group, row in zip(pictures.tolist(), groups, agreed, strict=True):
            scores = reward.scores(picture, [tokens(words.decode(h.tokens)) for h in group])
            scored = [(h.score, len(h.tokens), a) for h, a in zip(group, row, strict=True)]
            for penalty, weight in product(LENGTH_PENALTIES, weights):
                more = penalty - LENGTH_PENALTIES[0]  # than the scores have
                ranks = [score / n**more + weight * a for score, n, a in scored]
                cider[size, penalty, weight] += scores[ranks.index(max(ranks))]
    best = max(cider, key=cider.__getitem__)
    told = f"beam search on --val: CIDEr-D {cider[best] / len(torch.cat(parts)):.3f}"
    model.beam = BeamConfig(*best[:2])
    if neighbors and best[2]:
        model.neighbors = replace(neighbors, weight=best[2])
        told += " with the captions of similar training pictures"
    return f"{told}, {best[0]} beams, length penalty {best[1]}"


def test(checkpoint: Checkpoint, table: FeatureTable) -> str:
    """One line of scores on pictures that had no part in training."""
    parts, model = [], checkpoint.model
    for config in (DecodeConfig("greedy"), DecodeConfig("beam")):
        words = checkpoint.vocabulary
        written = best_captions(model, words, table.read(), table.ids, config=config)
        scores = score_captions(written, table.references).overall
        name = f"beam of {model.beam.beam_size}" if config.method == "beam" else config.method
        parts.append(f"{name} CIDEr-D {scores['CIDEr-D']:.3f}, BLEU-4 {scores['BLEU-4']:.3f}")
    return f"test, {len(table.images):,} pictures: {'; '.join(parts)}"
