"""Carries out a request for training, from the pictures to a captioner that is tested."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from filelock import FileLock, Timeout

from captioning.cnn.features import FeatureTable
from captioning.console import say
from captioning.errors import CaptioningError
from captioning.files import check_folder
from captioning.model.checkpoint import Checkpoint, load_checkpoint, load_ensemble
from captioning.model.layers import LSTMS, prepack_lstms
from captioning.model.neighbors import Neighbors
from captioning.results.metrics import brief
from captioning.search.tune import choose_search
from captioning.settings import SMALL_SET, DecodeConfig, choose_device, describe_device
from captioning.training.loop import score_table, train
from captioning.training.processes import Process, distributed
from captioning.training.request import TrainingRequest, select
from captioning.training.setup import Setup, set_up

FIRST_STAGE = "cross-entropy"  # the folder of the stage before self-critical training
# These settings of a request apply only to the self-critical stage.
SECOND_STAGE_SETTINGS = {"self_critical", "epochs", "batch_size", "learning_rate"}
LEGEND = {  # by the unit of `batch_size`
    "captions": "loss: cross-entropy in nats per word; dropout is active on --train, not on --val",
    "pictures": "reward: mean CIDEr-D of captions drawn for pictures of --train",
}


def train_captioner(request: TrainingRequest) -> list[dict[str, float]]:
    """Trains as requested, and writes last.pt and best.pt into `request.output`.

    Several members are written into the folders 1, 2 and so on of `request.output`. Self-critical
    training without a captioner to start from first trains one by cross-entropy, in the folder
    cross-entropy. Under torchrun every process calls this function with the same request.

    Returns:
        An entry for each epoch: its loss or reward, and with `request.val` the scores. If there
        are several runs (members or stages), the entries are those of the last run.

    Raises:
        CaptioningError: the request, or a file that it names, is wrong.
    """
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(distributed(choose_device(request.device)))
        if process.is_first:
            stack.enter_context(locked(request.output))
        return train_locked(request, process)


def train_locked(request: TrainingRequest, process: Process) -> list[dict[str, float]]:
    """Does the work of `train_captioner`, for a caller that holds the lock of the output folder."""
    check_members(request)
    runs = runs_of(request)
    say(describe_device(process.device))
    for folder in (run.output for run in runs if not run.resume):
        if (folder / "last.pt").exists():
            hint = "--resume, or another --output"
            raise CaptioningError(f"{folder} holds a captioner already: {hint}")
    # If a run has `no_neighbors`, no best.pt gets neighbors. Resumed runs may have it from last.pt.
    no_neighbors = False
    for run in runs:
        setup, history = _do_run(run, process)
        no_neighbors |= setup.config.no_neighbors
    if process.is_first:
        first_stage_files = {run.start for run in runs} - {request.start}
        files = [run.output / "best.pt" for run in runs]
        final_files = [file for file in files if file not in first_stage_files]
        finish(final_files, request.lstm, process.device, setup, no_neighbors)
    return history


def check_members(request: TrainingRequest) -> None:
    """Refuses to resume with fewer members than the folder holds."""
    # If last.pt is in the folder itself, one member was trained, so only one can be resumed.
    folder, members = request.output, request.members
    is_single, saved_members = (folder / "last.pt").exists(), len([*folder.glob("[0-9]*/last.pt")])
    if request.resume and (members > 1 if is_single else members < saved_members):
        expected = "1" if is_single else f"at least {saved_members}"
        raise CaptioningError(f"members: expected {expected}, as in {folder}, got {members}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and holds its lock; refuses a folder that another process has locked."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            try:
                yield
            finally:
                if len([*folder.iterdir()]) == 1:  # only the lock
                    shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise CaptioningError(f"{folder} is being written by another process") from error


def runs_of(request: TrainingRequest) -> list[TrainingRequest]:
    """Splits a request into one request for each member and each stage."""
    runs = []
    for i in range(request.members):
        run = request
        if request.members > 1:
            features = request.features or request.output / "features"
            settings = {**request.settings, "seed": request.settings.get("seed", 0) + i}
            output = request.output / str(i + 1)
            run = replace(request, output=output, features=features, settings=settings)
        resumes = run.resume and (run.output / "last.pt").exists()
        if run.settings.get("self_critical") and not run.start and not resumes:
            first_settings = select(run.settings.keys() - SECOND_STAGE_SETTINGS, run.settings)
            run = replace(run, features=run.features or run.output / "features")
            first = replace(run, output=run.output / FIRST_STAGE, settings=first_settings)
            runs.append(first)
            # The second stage reads the sizes of the captioner from the first stage.
            run = replace(run, start=first.output / "best.pt")
        runs.append(run)
    return runs


def _do_run(request: TrainingRequest, process: Process) -> tuple[Setup, list[dict[str, float]]]:
    """Does one run of `runs_of`; returns its setup and an entry for each epoch."""
    if not process.is_first:  # wait until the first process has encoded the pictures
        dist.barrier()
    setup = set_up(request, process.device)
    if process.is_first and process.world_size > 1:
        dist.barrier()
    config, images = setup.config, setup.tables["train"].images
    unit = "pictures" if config.self_critical else "captions"
    counts = f"{len(images):,} pictures, {len(setup.checkpoint.vocabulary):,} words"
    batches = f"{config.epochs} epochs, batches of {config.batch_size} {unit}"
    say(f"{counts}; {batches}, learning rate {config.learning_rate}", LEGEND[unit])
    say("CIDEr-D, BLEU-4: of the captions that greedy search writes for --val")
    history = train(setup, request.output, process)
    if process.is_first:
        say(summary(history, request.output / "best.pt"))
    return setup, history


def finish(paths: list[Path], lstm: str, device: str, setup: Setup, no_neighbors: bool) -> None:
    """Chooses the search of the captioner or ensemble in `paths`, saves it there, and tests it.

    `setup` is the setup of any one run. Only its feature tables are used.
    """
    tables, is_ensemble = setup.tables, len(paths) > 1
    ensemble = load_ensemble(paths, lstm, device)
    for model in ensemble.models:
        prepack_lstms(model)
    prefix = f"ensemble of {len(paths)}: " if is_ensemble else ""
    # If a resumed run has not written best.pt again, best.pt has the neighbors of the earlier run.
    ensemble.neighbors = None
    if "val" in tables:
        keeps = len(tables["train"].images) < SMALL_SET and not no_neighbors
        neighbors = Neighbors.from_table(tables["train"], ensemble.vocabulary) if keeps else None
        say(prefix + choose_search(ensemble, tables["val"], neighbors))
    for path in paths:
        member = load_checkpoint(path, lstm)
        replace(member, search=ensemble.search, neighbors=ensemble.neighbors).save(path)
    if "test" in tables:
        say(prefix + describe_scores(ensemble, tables["test"]))
    pattern = paths[0].parents[1] / "*" / "best.pt" if is_ensemble else paths[0]
    own_lstm = "" if lstm in LSTMS else f" --lstm {lstm}"
    say(f"next: captioning caption {pattern} PICTURE{own_lstm}")


def summary(history: list[dict[str, float]], best: Path) -> str:
    """Returns a line for the user: which epoch is in best.pt, and its scores."""
    validated = [entry for entry in history if "CIDEr-D" in entry]
    if not validated:
        return f"{best} holds epoch {len(history)}, the last (no --val to choose by)"
    entry = max(validated, key=lambda entry: entry["CIDEr-D"])
    return f"best of {len(history)} epochs: {entry['epoch']:.0f}, {brief(entry)} on --val: {best}"


def describe_scores(checkpoint: Checkpoint, table: FeatureTable) -> str:
    """Returns a line with the scores on the test pictures, by greedy and by the chosen search."""
    searches = DecodeConfig("greedy"), checkpoint.search
    all_scores = [score_table(checkpoint, table, config, "test").overall for config in searches]
    parts = [f"{s.method} {brief(scores)}" for s, scores in zip(searches, all_scores, strict=True)]
    return f"test, {len(table.images):,} pictures: {'; '.join(parts)}"
