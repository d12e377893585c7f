"""Printing: messages stay on one line, progress is readable in a log, a closed pipe is handled."""

import functools
import os
import re
import subprocess
import sys

import pytest

from captioning.console import abbreviate, printable, progress, say
from captioning.errors import CaptioningError


@pytest.mark.parametrize("text, expected", [
    ("plain, é, 猫, 👩‍👧", None),
    ("two\nlines\r\n\ttab", r"two\nlines\r\n\ttab"),
    ("\x1b[2J\x07\x7f\x85", r"\x1b[2J\x07\x7f\x85"),
    ("\u202egpj.exe\u2028", r"\u202egpj.exe\u2028"),
    (os.fsdecode(b"caf\xe9.jpg"), r"caf\udce9.jpg"),
    ("half of \ud83d", r"half of \ud83d"),
])  # fmt: skip
def test_control_characters_are_escaped(text, expected):
    expected = text if expected is None else expected
    assert printable(text) == printable(expected) == expected
    assert str(CaptioningError(text, "second")) == f"{expected}\nsecond"


def test_long_values_are_cut_in_messages():
    deep = functools.reduce(lambda inner, _: [inner], range(10**5), [])
    assert abbreviate(deep) == "a list" and abbreviate(10**10_000) == "a int"
    assert abbreviate({"id": 11}) == "{'id': 11}" and len(abbreviate("x" * 1000)) == 100


def run(*command, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONUNBUFFERED", None)  # with this variable argparse hides the error
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("count", [3, 25, 1000])
def test_progress_in_a_log_is_ten_lines(count, capsys):
    for i in progress(range(count), "work"):
        if i == count // 2:
            say("a message", error=True)
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) < 100 and "\r" not in line for line in lines)
    lines.remove("a message")
    assert len(lines) == min(count, 10)
    assert re.fullmatch(rf"work: {count}/{count} in 00:\d\d, .*it/s", lines[-1])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_prints_and_all_tell_errors(rank, monkeypatch, capsys):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    list(progress(range(5), "work"))
    say("one\ntwo", 3)
    say("an error", error=True)
    out, err = capsys.readouterr()
    assert out == ("" if rank else "one\\ntwo\n3\n")
    assert err.endswith("an error\n") and ("work: 5/5" in err) == (rank == 0)


SAYS = """if True:  # calls `say` in place of a command
    import sys
    import captioning.__main__ as program
    program.run = lambda _: program.importlib.import_module("captioning.console").say("a line")
    sys.exit(program.main())
    """


@pytest.mark.parametrize("arguments", [["-m", "captioning"], ["-c", SAYS]])
def test_a_closed_pipe_gives_no_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    done = run(sys.executable, *arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
