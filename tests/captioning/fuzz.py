"""Damaged files and odd command lines against every command but serve and demo.

Each case is drawn from its seed and runs in a process of its own, which may end in two ways: well,
or with a message. Run by test_fuzz.py; a case that failed, again::

    python tests/captioning/fuzz.py FOLDER SEED 1
"""

import contextlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioning.__main__ import Parser, main, module_of
from captioning.demo import scenes

SECONDS, CPU_SECONDS, BYTES = 300, 60, 8 * 2**30  # that a case may take; BYTES of address space
SIZES = "--hidden-size 8 --embed-size 8 --min-count 1 --epochs 1 --batch-size 10"
COMMANDS = {  # what is called, and the files that it reads
    "caption run/best.pt pictures": ["run/best.pt", "pictures/000001.png", "pictures/3.jpg"],
    "caption run/best.pt pictures --json r.json --method beam": ["run/best.pt"],
    "caption run/best.pt pictures --method sample --json r.json": ["pictures/2.webp"],
    "caption run/best.pt pictures/4.gif pictures/5.tif pictures/6.bmp": [
        *("pictures/4.gif", "pictures/5.tif", "pictures/6.bmp")
    ],
    "caption run/best.pt --annotations train.json --features run/features": [
        *("train.json", "run/features/*.pt", "run/best.pt")
    ],
    "caption attention/best.pt pictures/000001.png --attention a.png": ["attention/best.pt"],
    "caption run/best.pt pictures/000001.png --sheet s.png": ["run/best.pt"],
    f"train --train train.json --val train.json --output new --cnn scenes_cnn {SIZES}": [
        "train.json"
    ],
    "train --train train.json --output run --resume --epochs 2": [
        *("run/last.pt", "run/features/*.pt", "train.json")
    ],
    "train --train train.json --output new --start run/best.pt --self-critical 2 --epochs 1": [
        "run/best.pt"
    ],
    "features train.json --features run/features --cnn scenes_cnn": [
        *("train.json", "run/features/*.pt", "pictures/000001.png")
    ],
    "evaluate results.json --references train.json --json s.json": ["results.json", "train.json"],
    "evaluate results.json --references train.json --report r.html --checkpoint run/best.pt": [
        *("run/best.pt", "run/last.pt", "pictures/000001.png")
    ],
    "prepare captions.csv --images pictures --output new": ["captions.csv"],
    "prepare flickr.txt --images pictures --output new --train-list list.txt": [
        *("flickr.txt", "list.txt")
    ],
    "prepare karpathy.json --images pictures --output new": ["karpathy.json"],
    "prepare pictures --output new": ["pictures/000001.txt", "pictures/000001.png"],
    "import-yunjey --encoder e.ckpt --decoder d.ckpt --vocab v.pkl --output o.pt --cnn alexnet": [
        *("e.ckpt", "d.ckpt", "v.pkl")
    ],
}


# What is damaged --------------------------------------------------------------------------------


def make_files(folder: Path) -> None:
    """A sound file of each kind that a command reads."""
    root = scenes.generate(folder / "scenes", {"train": 6})
    data = json.loads((root / "annotations" / "captions_train.json").read_text())
    shutil.copytree(root / "train", folder / "pictures")
    shutil.rmtree(root)
    for i, kind in enumerate(("webp", "jpg", "gif", "tif", "bmp"), 2):
        Image.open(folder / "pictures" / f"{i:06d}.png").save(folder / "pictures" / f"{i}.{kind}")
    (folder / "pictures" / "000001.txt").write_text("a dog\na cat\n")
    data["info"]["image_folder"] = "pictures"
    (folder / "train.json").write_text(json.dumps(data))
    results = [{"image_id": i["id"], "caption": "a small red circle"} for i in data["images"]]
    (folder / "results.json").write_text(json.dumps(results))
    names = [i["file_name"] for i in data["images"]]
    rows = "".join(f"{name},a dog\n{name},a red cat\n" for name in names)
    (folder / "captions.csv").write_text("image,caption\n" + rows)
    (folder / "flickr.txt").write_text("".join(f"{name}#0\ta dog\n" for name in names))
    (folder / "list.txt").write_text("\n".join(names[:4]))
    images = [
        {"filename": n, "split": "train", "cocoid": i, "sentences": [{"raw": "a dog"}]}
        for i, n in enumerate(names)
    ]
    (folder / "karpathy.json").write_text(json.dumps({"images": images}))
    (folder / "v.pkl").write_bytes(pickle.dumps({"word2idx": {"a": 0}}))
    for name in ("e.ckpt", "d.ckpt"):
        torch.save({"linear.weight": torch.zeros(2, 3)}, folder / name)
    train = f"train --train train.json --cnn scenes_cnn {SIZES} --output"
    imports = "evaluate results.json --references train.json --report r.html"  # what is slow to
    for words in (f"{train} run", f"{train} attention --decoder attention", imports):
        assert main(words.split()) == 0


WORDS = ["", "x", "\ud800", "\0", "../..", "a" * 10_000, "<end>", "caf\udce9\n", "$x^{", "\x1b[2J"]
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**70, 0.5, -0.0, float("nan"), float("inf"), 1e308, True]
VALUES: list[Any] = [*WORDS, *NUMBERS, None, [], {}, [1], ["a"], {"a": 1}, [[[[[]]]]]]


def change_tree(data: Any, rng: random.Random, values: list[Any]) -> Any:
    """Replace, remove, rename or repeat something anywhere in lists and dictionaries."""
    if not isinstance(data, (dict, list)) or not data or rng.random() < 0.1:
        return rng.choice(values)
    key = rng.choice(list(data) if isinstance(data, dict) else range(len(data)))
    if rng.random() < 0.6:
        data[key] = change_tree(data[key], rng, values)
    elif isinstance(data, list):
        data.insert(key, data.pop() if rng.random() < 0.5 else data[key])
    else:
        value = data.pop(key)
        if rng.random() < 0.5:
            data[rng.choice(["x", 5, "id", "loss"])] = value
    return data


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content) + 1)
    end = min(len(content), begin + rng.choice([1, 4, 100, 10**9]))
    return rng.choice(
        [
            lambda: content[:begin],
            lambda: content[:begin] + content[end:],
            lambda: content[:begin] + rng.randbytes(end - begin) + content[end:],
            lambda: content[:begin] + content[begin:end] * 3 + content[end:],
            lambda: bytes(b ^ (rng.random() < 0.001) << rng.randrange(8) for b in content),
            lambda: rng.randbytes(200),
            lambda: b"",
        ]
    )()


def change_json(content: bytes, rng: random.Random) -> bytes:
    data = change_tree(json.loads(content), rng, [*VALUES, "RAW"])
    raw = rng.choice(["[" * 10**6, "7" * 5000, "[" * 900 + "]" * 900, "1e999", "nul"])
    return json.dumps(data).replace('"RAW"', raw).encode()


def change_tensors(content: bytes, rng: random.Random) -> bytes:
    tensors = [
        *(torch.zeros(()), torch.zeros(2, 3), torch.full((8,), torch.nan), torch.zeros(0)),
        *(torch.ones(8, dtype=torch.int8), torch.ones(8, dtype=torch.complex64)),
        *(torch.zeros(1).expand(10**9), torch.eye(8).to_sparse(), torch.zeros(8, 8).T),
    ]
    data = change_tree(torch.load(io.BytesIO(content)), rng, [*VALUES, *tensors])
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


BY_STRUCTURE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": change_json,
    ".pt": change_tensors,
    ".ckpt": change_tensors,
}
KINDS = ["pipe", "folder", "socket", "nothing", "loop", "/dev/zero", "/dev/full", "a stranger"]


def damage(path: Path, rng: random.Random) -> str:
    """Change a file; says how."""
    content = path.read_bytes()
    by_structure = BY_STRUCTURE.get(path.suffix)
    how = rng.choices(["structure", "bytes", "kind"], [5, 3, 1])[0]
    if how == "structure" and by_structure:
        path.write_bytes(by_structure(content, rng))
        return f"{path}: structure"
    if how != "kind":
        path.write_bytes(change_bytes(content, rng))
        return f"{path}: bytes"
    kind = rng.choice(KINDS)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a stranger":
        others = [p for p in Path().rglob("*") if p.is_file()]
        shutil.copy(rng.choice(sorted(others)), path)
    elif kind != "nothing":
        path.symlink_to(path.name if kind == "loop" else kind)
    return f"{path}: {kind}"


ODD = ["", "x", "0", "-1", "1", "2", "3.5", "nan", "inf", "1e400", str(2**31), str(2**70), "٣"]
PATHS = ["none", "pictures", "train.json", "run", "run/best.pt", "/dev/null", "\udce9\n", "a" * 300]
LONG = {"workers", "max_seq_length", "epochs", "device", "warmup"}  # that a large number makes long


def odd_option(command: str, rng: random.Random) -> list[str]:
    """An option that the command has, with a value that it may not like."""
    parser = Parser(add_help=False)
    module_of(command).add(parser)
    actions = [a for a in parser._actions if a.option_strings and a.dest != "meteor"]  # Java's
    action = rng.choice(actions)
    name = action.option_strings[0]
    if action.nargs == 0:
        return [name]
    if action.type is Path:
        return [name, rng.choice(PATHS)]
    if action.choices and rng.random() < 0.7:
        return [name, rng.choice(list(action.choices))]
    if action.dest == "cnn":
        return [name, rng.choice(["scenes_cnn", "alexnet", "deeplabv3_resnet50", "", "x\n"])]
    return [f"{name}={rng.choice(ODD[:5] if action.dest in LONG else ODD)}"]


# Running it -------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[list[str], list[str]]:
    """Damage files in the working folder; returns the command line, and what was done."""
    rng = random.Random(seed)
    command, files = rng.choice(list(COMMANDS.items()))
    words, done = command.split(), []
    if rng.random() < 0.8:
        done.append(damage(rng.choice(sorted(Path().glob(rng.choice(files)))), rng))
    if not done or rng.random() < 0.3:
        words += odd_option(words[0], rng)
    if rng.random() < 0.05:
        words.pop(rng.randrange(len(words)))
    return words, done


def run(words: list[str]) -> tuple[int, str, str]:
    """Exit status (minus the signal that ended it), output and errors of a command."""
    child = os.fork()
    if not child:
        _be_the_command(words)
    end = time.monotonic() + SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(ended[1])
    return status, *(Path(name).read_text(errors="replace") for name in ("../out", "../err"))


def _be_the_command(words: list[str]) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network here")

    code = 70
    try:
        for number, name in ((1, "../out"), (2, "../err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**27, 2**27))
        socket.getaddrinfo = no_network
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


LEFT = re.compile(r"\..*\.new|.*\.lock")  # temporary files, and locks


def complaints(status: int, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended."""
    found = []
    if status not in (0, 1, 2):
        hung = status in (-signal.SIGKILL, -signal.SIGXCPU)
        found.append("it hung" if hung else f"status {status}")
    if "Traceback" in err or "Error:" in err:
        found.append("a traceback")
    if status and not re.search(r"^captioning|; \d+ failed$", err, re.M):
        found.append("no message")
    if re.search("[\0-\x08\x0b-\x1f\x7f-\x9f]", out):
        found.append("control characters")
    left = [str(p) for p in Path().rglob(".*") if LEFT.fullmatch(p.name)]
    return found + [f"it left {name}" for name in left]


def fuzz(folder: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Run cases of `count` seeds; returns those that ended as none may."""
    torch.set_num_threads(1)  # a process that forks must not have had more
    case = folder / "case"  # a cache is found by where its captions are, so all run in one place
    case.mkdir(parents=True)
    os.chdir(case)
    make_files(case)
    shutil.copytree(case, folder / "sound")
    failed, statuses = [], []
    for seed in range(first, first + count):
        os.chdir(folder)
        shutil.rmtree(case)
        shutil.copytree(folder / "sound", case)
        os.chdir(case)
        words, done = draw(seed)
        start = time.monotonic()
        status, out, err = run(words)
        statuses.append(status)
        if found := complaints(status, out, err):
            seconds = round(time.monotonic() - start, 1)
            told = {"seed": seed, "found": found, "words": words, "done": done, "s": seconds}
            failed.append(told | {"err": err[-1500:]})
    print(json.dumps({"statuses": {s: statuses.count(s) for s in set(statuses)}}), file=sys.stderr)
    return failed


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        bad = fuzz(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(bad, indent=1))
