"""Programs that hear speech, which espeak-ng makes: `apt-get install espeak-ng`."""

from __future__ import annotations

import random
import re
import subprocess
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import Ways, inference, program

WORK = "a minute of speech"
RATE, ESPEAK_RATE = 16_000, 22_050  # samples a second
CONTEXT, FRAME = 64, 512  # sizes of silero-vad, in samples
BLOCK = 512  # frames that are processed at once


def utterance(text: str, voice: str, pitch: int) -> Tensor:
    """Returns the samples of a sentence."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-p", str(pitch), text]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples = torch.from_numpy(np.frombuffer(wav[44:], np.int16).astype(np.float32) / 2**15)
    length = len(samples) * RATE // ESPEAK_RATE
    return nn.functional.interpolate(samples[None, None], length, mode="linear")[0, 0]


def speech(small: bool) -> Tensor:
    """Returns sentences of several voices with pauses and a little noise; the same every time."""
    length, draw = RATE * (20 if small else 60), random.Random(0)
    words = sorted(set(re.findall(r"\b[a-z]{2,9}\b", nn.LSTM.__doc__ or "")))
    parts: list[Tensor] = []
    while sum(map(len, parts)) < length:
        sentence = " ".join(draw.choices(words, k=draw.randint(3, 20)))
        voice = draw.choice(["en-us", "en-gb", "en-gb-scotland"])
        parts.append(utterance(sentence, voice, draw.randint(20, 80)))
        parts.append(torch.zeros(int(draw.uniform(0.3, 3) * RATE)))
    noise = torch.randn(length, generator=torch.Generator().manual_seed(0))
    return torch.cat(parts)[:length] + 1e-3 * noise


def same_segments(found: list[Any], expected: list[Any]) -> str:
    """Returns how many segments were found with the same begin and end."""
    return f"{len(set(found) & set(expected))} of {len(expected)}"


segments = partial(program, measure="segments with the same ends", judge=same_segments)


@segments(
    "whisperX, voice activity detection",
    WORK,
    "--no-deps whisperx && pip install pyannote.audio omegaconf pandas",
)
def whisperx_vad(small: bool) -> Ways:
    from whisperx.vads.pyannote import Binarize, load_vad_model

    audio = {"waveform": speech(small)[None], "sample_rate": RATE}
    detector = load_vad_model("cpu")
    to_segments = Binarize(max_duration=30, onset=0.5, offset=0.363)  # whisperX's defaults

    def run(model: nn.Module) -> list[Any]:
        detector._segmentation.model = model
        return [(turn.start, turn.end) for turn in to_segments(detector(audio)).get_timeline()]

    return inference(detector._segmentation.model, run)


class Silero(nn.Module):
    """The network of silero-vad for 16 kHz, one frame a call.

    The wheel holds it as TorchScript and ONNX, which `convert` does not take. So its layers are
    built here, and take the weights of the TorchScript.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 258, 256, 128, bias=False)
        sizes = (129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)
        layers = ([nn.Conv1d(i, o, 3, stride, 1), nn.ReLU()] for i, o, stride in sizes)
        self.encoder = nn.Sequential(*(layer for pair in layers for layer in pair))
        self.cell = nn.LSTMCell(128, 128)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, 1), nn.Sigmoid())
        theirs = (value for name, value in weights.items() if name.startswith("_model."))
        for mine, value in zip(self.state_dict().values(), theirs, strict=True):
            mine.copy_(value.view_as(mine))
        self.reset_states()

    def reset_states(self) -> None:
        self.state: tuple[Tensor, Tensor] | None = None
        self.context = torch.zeros(CONTEXT)

    def encode(self, frames: Tensor) -> Tensor:
        """Turns frames [N, CONTEXT + FRAME] into features [N,128]."""
        padded = nn.functional.pad(frames[:, None], (0, 64), "reflect")
        real, imaginary = self.spectrum(padded).split(129, 1)
        features: Tensor = self.encoder((real**2 + imaginary**2).sqrt())
        return features.squeeze(-1)

    def forward(self, frame: Tensor, rate: int) -> Any:
        """Returns the probability of speech in the next frame of a stream, [1,1]."""
        x = torch.cat([self.context, frame])
        self.context = x[-CONTEXT:]
        self.state = self.cell(self.encode(x[None]), self.state)
        return self.head(self.state[0])


class SileroFile(Silero):
    """A `Silero` whose LSTM takes all frames of a file; the LSTM has the weights of the cell."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights)
        self.lstm = nn.LSTM(128, 128)
        cell = self.cell.state_dict().items()
        self.lstm.load_state_dict({f"{name}_l0": value for name, value in cell})

    def audio_forward(self, audio: np.ndarray, **options: Any) -> np.ndarray:
        """Returns the probability of speech in each frame, [frames]."""
        samples = torch.from_numpy(audio)
        padded = nn.functional.pad(samples, (CONTEXT, -len(samples) % FRAME))
        probabilities, state = [], None
        for frames in padded.unfold(0, CONTEXT + FRAME, FRAME).split(BLOCK):
            output, state = self.lstm(self.encode(frames), state)
            probabilities.append(self.head(output))
        return torch.cat(probabilities).flatten().numpy()


silero = partial(segments, work=WORK, install="silero-vad onnxruntime")


@silero("silero-vad, a stream frame by frame")
def silero_stream(small: bool) -> Ways:
    from silero_vad import get_speech_timestamps, load_silero_vad

    scripted, audio = load_silero_vad(), speech(small)

    def run(model: Any) -> list[Any]:
        with torch.inference_mode():
            return [(s["start"], s["end"]) for s in get_speech_timestamps(audio, model)]

    ways = inference(Silero(scripted.state_dict()), run)
    published = {"its TorchScript": scripted, "its ONNX": load_silero_vad(onnx=True)}
    return ways | {way: partial(run, model) for way, model in published.items()}


@silero("silero-vad, a file in blocks")
def silero_file(small: bool) -> Ways:
    from silero_vad import load_silero_vad
    from silero_vad.sequence_vad import get_speech_timestamps_sequence

    theirs, audio = load_silero_vad(sequence=True), speech(small)

    def run(model: Any) -> list[Any]:
        with torch.inference_mode():
            return [(s["start"], s["end"]) for s in get_speech_timestamps_sequence(audio, model)]

    ways = inference(SileroFile(load_silero_vad().state_dict()), run)
    return ways | {"its ONNX": partial(run, theirs)}


@program(
    "Resemblyzer, embedding of a voice",
    WORK,
    "--no-deps resemblyzer && pip install librosa webrtcvad-wheels",
    "cosine with the embedding of nn.LSTM",
    lambda found, expected: f"{found @ expected:.4f}",
)
def resemblyzer_voice(small: bool) -> Ways:
    from resemblyzer import VoiceEncoder

    wav = speech(small).numpy()
    encoder = VoiceEncoder("cpu", verbose=False)
    return inference(encoder, lambda model: model.embed_utterance(wav))
