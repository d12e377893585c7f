"""Whole programs of other projects that `programs.py` runs.

Each program runs in several ways: with its model unchanged, converted and prepacked, and with
faster models that the project itself offers.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

import fastlstm

UNCHANGED = "unchanged"
# The `measure` of a program with untrained weights, whose results are not shown.
TIME_ONLY = "the same lines, with weights of no training"  # also in benchmarks/results
Ways = dict[str, Callable[[], Any]]  # by name; each runs the whole program and returns its result


class Program(NamedTuple):
    """A row of the table.

    Attributes:
        make: returns the ways, `UNCHANGED` first. Its argument is True for a small amount of work,
            for tests.
        title: what the program does.
        work: what one run of it does, at full size.
        install: arguments of `pip install`; the first that is no option is the program's package.
        measure: what `judge` returns, in words.
        judge: compares a result with the result of the unchanged program; returns a text.
    """

    make: Callable[[bool], Ways]
    title: str
    work: str
    install: str
    measure: str
    judge: Callable[[Any, Any], str]

    def version(self) -> str | None:
        """Returns the installed version, or None if the package is not installed."""
        package = next(word for word in self.install.split() if word[0] != "-")
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None


PROGRAMS: dict[str, Program] = {}


def program(
    title: str, work: str, install: str, measure: str, judge: Callable[[Any, Any], str]
) -> Callable[[Callable[[bool], Ways]], Callable[[bool], Ways]]:
    """Adds the decorated function to PROGRAMS, as `Program.make`."""

    def add(make: Callable[[bool], Ways]) -> Callable[[bool], Ways]:
        PROGRAMS[make.__name__] = Program(make, title, work, install, measure, judge)
        return make

    return add


def inference(model: nn.Module, run: Callable[[Any], Any]) -> Ways:
    """Returns the ways to run a trained model: unchanged, converted, prepacked in each dtype."""
    models = {UNCHANGED: model.eval(), "converted": fastlstm.convert(copy.deepcopy(model))}
    for dtype in (None, torch.bfloat16, torch.int8):
        name = f"{dtype or 'prepacked'}".removeprefix("torch.")
        models[name] = fastlstm.prepack(copy.deepcopy(model), dtype, convert=True)
    return {name: partial(run, each) for name, each in models.items()}


def training(run: Callable[[Callable[[Any], Any]], Any]) -> Ways:
    """Returns the ways to run a training. `run` takes a function that may convert its model."""
    return {UNCHANGED: partial(run, nn.Identity()), "converted": partial(run, fastlstm.convert)}


from . import speech, pages, trainings  # noqa: E402, F401, I001 - fill PROGRAMS, in this order
