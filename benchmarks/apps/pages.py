"""Programs that read a page of text, which is drawn with the font of Pillow."""

from __future__ import annotations

import json
import random
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from . import TIME_ONLY, Ways, inference, program

WIDTH, HEIGHT, LINE = 1240, 1754, 48  # A4 at 150 dots an inch; pixels from line to line
ENGLISH = {"input_channel": 1, "output_channel": 256, "hidden_size": 256}  # sizes of english_g2


class Word(NamedTuple):
    """A word and its box on the page: left, top, right, bottom."""

    text: str
    box: tuple[int, int, int, int]


def page(small: bool) -> tuple[Image.Image, list[list[Word]]]:
    """Draws a page; returns it with the words of each line. It is the same every time."""
    rng = random.Random(0)
    words = sorted(set(re.findall(r"\b[a-z]{3,8}\b", nn.LSTM.__doc__ or "")))
    image, font = Image.new("L", (WIDTH, HEIGHT), 255), ImageFont.load_default(24)
    canvas, lines = ImageDraw.Draw(image), []
    for top in range(LINE, LINE * (3 if small else 19), LINE):
        line, left = [], LINE
        while left < WIDTH - 4 * LINE:
            text = rng.choice(words)
            right = left + int(font.getlength(text)) + 16
            canvas.text((left + 8, top + LINE // 2), text, 0, font, anchor="lm")
            line.append(Word(text, (left, top + 6, right, top + LINE - 6)))
            left = right
        lines.append(line)
    return image, lines


def edits(a: str, b: str) -> int:
    """Returns the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@program(
    "nano-ocr, word by word",
    "18 lines of a page",
    "nano-ocr",
    "wrong characters",
    lambda found, expected: f"{found:.1%}",
)
def nano_ocr_page(small: bool) -> Ways:
    from nano_ocr import NanoOCR

    image, lines = page(small)
    words = [word for line in lines for word in line]
    crops = [image.crop(word.box) for word in words]
    ocr = NanoOCR(device="cpu")

    def run(model: nn.Module) -> float:
        ocr.model = model
        wrong = sum(
            edits(w.text, text) for w, text in zip(words, ocr.read_batch(crops), strict=True)
        )
        return wrong / sum(len(word.text) for word in words)

    return inference(ocr.model, run)


@program(
    "EasyOCR, its recognizer line by line",
    "18 lines of a page",
    "easyocr",
    TIME_ONLY,
    lambda found, expected: f"{sum(map(str.__eq__, found, expected))} of {len(expected)}",
)
def easyocr_page(small: bool) -> Ways:
    import easyocr
    from easyocr.config import recognition_models
    from easyocr.model.vgg_model import Model

    image, lines = page(small)
    boxes = [[ln[0].box[0], ln[-1].box[2], ln[0].box[1], ln[0].box[3]] for ln in lines]
    characters = recognition_models["gen2"]["english_g2"]["characters"]
    # EasyOCR verifies checksums of its own networks, so this one is given as a user's network.
    network = {"network_params": ENGLISH, "imgH": 64, "lang_list": ["en"]}
    torch.manual_seed(0)
    weights = Model(**ENGLISH, num_class=len(characters) + 1).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(network | {"character_list": characters})
        Path(folder, "untrained.yaml").write_text(text)
        Path(folder, "untrained.py").write_text("from easyocr.model.vgg_model import Model\n")
        torch.save({f"module.{k}": v for k, v in weights.items()}, f"{folder}/untrained.pth")
        options: dict[str, Any] = {
            "model_storage_directory": folder,
            "user_network_directory": folder,
        }
        options |= {"recog_network": "untrained", "gpu": False, "detector": False}
        options |= {"verbose": False}
        reader, quantized = (easyocr.Reader(["en"], **options, quantize=q) for q in (False, True))

    def run(model: nn.Module) -> Any:
        reader.recognizer = model
        return reader.recognize(np.array(image), boxes, [], detail=0)

    offered = {"quantize=True": partial(run, quantized.recognizer)}
    return inference(reader.recognizer, run) | offered
