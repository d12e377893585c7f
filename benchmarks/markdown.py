"""Formats Markdown tables, and writes them into marked sections of a document."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[str]], notes: int = 0) -> str:
    """Returns a table: the first column and the last `notes` are text, the others are numbers."""
    numbers = len(header) - 1 - notes
    lines = [header, ["---", *["---:"] * numbers, *["---"] * notes], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(text: str, path: Path | None, section: str) -> None:
    """Prints the text, and if `path` is given also puts it into that section of the file."""
    print(text)
    if path:
        replace_section(path, section, text)


def replace_section(path: Path, name: str, text: str) -> None:
    """Replaces the text between <!-- name --> and <!-- /name --> in a file.

    Raises:
        ValueError: the file does not have each of the two markers exactly once and in this order.
    """
    old = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if old.count(begin) != 1 or old.count(end) != 1 or not pattern.search(old):
        raise ValueError(f"{path.name}: expected one {begin} and after it one {end}")
    new = pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(new)
    os.replace(temporary, path)
