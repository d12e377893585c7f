"""Programs that train."""

from __future__ import annotations

import logging
import random
import statistics
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import UNCHANGED, Ways, program, training

SENTENCES = 500
PPO_STEPS, PPO_HIDDEN = 2048, 256
FORECAST_STEPS, YEAR = 50, 12  # steps of training; months
# Some words have two tags. Their place in the sentence decides which tag is right.
WORDS = {
    "DET": "the a this every no some",
    "ADJ": "small old red quick quiet heavy late open",
    "NOUN": "dog house river letter engine window garden teacher morning answer",
    "VERB": "sees takes opens finds writes breaks answers windows",
    "ADV": "slowly often never here late",
    "ADP": "in on under near with",
}


def sentence(draw: random.Random) -> str:
    """Returns a sentence of a small grammar, in the format CoNLL-U."""
    phrase = ["DET", "ADJ", "NOUN"]
    tags = [*phrase, "ADV", "VERB", *phrase, *(["ADP", *phrase] * draw.randint(0, 6))]
    tags = [tag for tag in tags if tag not in ("ADJ", "ADV") or draw.random() < 0.5]
    words = [draw.choice(WORDS[tag].split()) for tag in tags]
    rows = (f"{k + 1}\t{word}\t_\t{tags[k]}\t_\t_\t{k}\tdep\t_\t_" for k, word in enumerate(words))
    return "\n".join(rows) + "\n"


@program(
    "stanza, an epoch of its tagger",
    f"{SENTENCES:,} sentences",
    "stanza",
    "mean loss",
    lambda found, expected: f"{found:.3f}",
)
def stanza_tagger(small: bool) -> Ways:
    from stanza.models import tagger
    from stanza.models.pos.trainer import Trainer

    logging.getLogger("stanza").setLevel(logging.ERROR)
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.conllu")
        corpus.write_text("\n".join(sentence(draw) for _ in range(60 if small else SENTENCES)))
        options = tagger.parse_args(["--train_file", str(corpus), "--no_pretrain", "--cpu"])
        options["word_cutoff"] = 1  # the vocabulary is the words of the corpus
        vocab, _, batches = tagger.load_training_data(options, None)

    def run(convert: Any) -> float:
        random.seed(0)
        torch.manual_seed(0)
        trainer = Trainer(args=options, vocab=vocab, device="cpu")
        convert(trainer.model)
        return statistics.mean(trainer.update(batch) for batch in batches)

    return training(run)


@program(
    "sb3-contrib, RecurrentPPO",
    f"{PPO_STEPS:,} steps, {PPO_HIDDEN} units",
    'sb3-contrib "gymnasium[classic-control]"',
    "mean return of the last episodes",
    lambda found, expected: f"{found:.1f}",
)
def sb3_ppo(small: bool) -> Ways:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    import ppo_sb3

    names = {UNCHANGED: "nn.LSTM", "converted": "convert", "reset=": "reset"}
    sizes = (1024, 32) if small else (PPO_STEPS, PPO_HIDDEN)
    return {way: partial(ppo_sb3.train, name, *sizes) for way, name in names.items()}


@program(
    "neuralforecast, its LSTM",
    f"{FORECAST_STEPS} steps, then a forecast",
    "neuralforecast",
    "mean error of a year of air passengers",
    lambda found, expected: f"{found:.1%}",
)
def neuralforecast_lstm(small: bool) -> Ways:
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM
    from neuralforecast.utils import AirPassengersDF

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    options = {"h": YEAR, "input_size": 60, "max_steps": 3 if small else FORECAST_STEPS}
    history, year = AirPassengersDF[:-YEAR], AirPassengersDF["y"].to_numpy()[-YEAR:]

    def run(convert: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = convert(LSTM(**options, accelerator="cpu", **dict.fromkeys(quiet, False)))
            forecast = NeuralForecast([model], freq="ME")
            forecast.fit(history)
            predicted = forecast.predict()["LSTM"].to_numpy()
        return float(np.mean(np.abs(predicted - year) / year))

    return training(run)
