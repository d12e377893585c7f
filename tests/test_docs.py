"""The documents: their Python runs, and the files, commands and options that they name exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import fastlstm.__main__

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from markdown import replace_section  # noqa: E402
from summary import summary  # noqa: E402

DOCS = [ROOT / "README.md", ROOT / "csrc" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FOLDERS = ("csrc", "fastlstm", "captioning", "benchmarks", "tests", "docs", "examples")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

every_doc = pytest.mark.parametrize("doc", DOCS, ids=lambda d: str(d.relative_to(ROOT)))


def code(doc: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(doc.read_text()) if name == language]


def commands(doc: Path) -> list[list[str]]:
    """The words of each `python ...` or `captioning ...` command, in plain blocks and the text."""
    text = doc.read_text()
    blocks = "\n".join(body for name, body in FENCE.findall(text) if name in ("", "sh", "bash"))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|captioning) [^`]+)`", FENCE.sub("", text))
    lines = [re.sub(r"^captioning ", "python -m captioning ", line) for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


@every_doc
def test_python_runs(doc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets of a document, in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": doc.stem}
    for k, snippet in enumerate(code(doc, "python")):
        exec(compile(snippet, f"{doc.name}, snippet {k + 1}", "exec"), namespace)


@every_doc
def test_links_lead_somewhere(doc: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", doc.read_text()))
    missing = [x for x in links if "://" not in x and not (doc.parent / x).exists()]
    assert not missing


@every_doc
def test_files_that_are_named_exist(doc: Path) -> None:
    text = FENCE.sub("", doc.read_text())
    names = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]+\w", text)
    missing = [name for name in names if not any(ROOT.glob(name))]
    assert not missing


def test_the_map_of_csrc_is_complete() -> None:
    text = (ROOT / "csrc" / "README.md").read_text().split("## Every file")[1]
    listed = re.findall(r"`([\w/]+\.(?:h|cpp|cu))`", "\n".join(re.findall(r"^\|.*?\|", text, re.M)))
    there = [
        path.relative_to(ROOT / "csrc").as_posix()
        for suffix in ("h", "cpp", "cu")
        for path in (ROOT / "csrc").rglob(f"*.{suffix}")
    ]
    assert sorted(listed) == sorted(there)


def options_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> set[str] | None:
    """The options that a command takes, or None if it is a program of somebody else."""
    if words[0] != "-m":
        source = (ROOT / words[0]).read_text()
        return set(re.findall(r'"(--[a-z-]+)"', source)) | {"--help"}
    if words[1] == "fastlstm":
        main = fastlstm.__main__.main
    elif words[1] == "captioning":
        main = pytest.importorskip("captioning.__main__").main
    else:
        return None
    # COMMAND is a placeholder.
    command = [word for word in words[2:3] if not word.startswith("-") and not word.isupper()]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0, f"no command {' '.join(words)}"
    return set(OPTION.findall(capsys.readouterr().out))


@every_doc
def test_commands_and_their_options_exist(doc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(doc):
        known = options_of(words[1:], capsys)
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert known is None or used <= known, f"{' '.join(words)}: {used - known}"


@pytest.mark.parametrize(
    ("doc", "section"), [("README.md", "benchmark"), ("docs/numerics.md", "numerics")]
)
def test_a_command_can_write_its_section(doc: str, section: str, tmp_path: Path) -> None:
    path, old = tmp_path / "copy.md", (ROOT / doc).read_text()
    path.write_text(old)
    replace_section(path, section, "first")
    replace_section(path, section, r"a \1 table")  # no group of a pattern
    before, _, rest = old.partition(f"<!-- {section} -->")
    after = rest.partition(f"<!-- /{section} -->")[2]
    assert path.read_text() == (
        f"{before}<!-- {section} -->\na \\1 table\n<!-- /{section} -->{after}"
    )


@pytest.mark.parametrize("text", ["", "<!-- x -->", "<!-- /x --> <!-- x -->", "<!-- x -->" * 2])
def test_a_document_without_its_section_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="doc.md: expected one line <!-- x -->"):
        replace_section(path, "x", "new")
    assert path.read_text() == text


def test_summary_says_what_was_missed_and_what_failed() -> None:
    def verdict(name: str, measured: float, limit: float, at_least: bool = True) -> dict:
        met = measured >= limit if at_least else measured <= limit
        return {"name": name, "measured": measured, "limit": limit, "at_least": at_least} | {
            "met": met
        }

    dense = {
        "title": "dense",
        "results": [{"ratio": 1.0}, {"ratio": 4.0}, {"error": "RuntimeError: no"}],
        "verdicts": [
            verdict("failed cases", 1, 0, at_least=False),
            verdict("geometric mean", 2.0, 1.4),
            verdict("worst", 1.0, 1.05),
        ],
    }
    record = {
        "machine": {"cpu": "a CPU", "capability": "AVX2"},
        "threads": 2,
        "versions": {"torch": "2.13.0"},
        "git": {"commit": "0123456789", "dirty": True},
        "date": "2026-01-02T03:04:05+00:00",
        "gemm_peak": {"float32": 5.3e11},
        "quick": False,
        "complete": False,
        "command": "python bench",
        "groups": [dense, {"title": "nothing", "results": [], "verdicts": []}],
    }
    assert summary(record).splitlines() == [
        "a CPU, 2 threads, AVX2; torch 2.13.0; commit 0123456 with changes; 2026-01-02; "
        "GEMM peak in GFLOP/s: float32 530; stopped before the end. `python bench`",
        "",
        "| torch.nn / fastlstm | cases | geometric mean | worst | best | also measured |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dense | 3 | 2.00 (>= 1.4) | 1.00 (>= 1.05, missed) | 4.00 | "
        "failed cases 1.00 (<= 0, missed) |",
        "| nothing | 0 | - | - | - |  |",
    ]
