"""Markdown tables, and the sections of a document that commands write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(text: str, path: Path | None, section: str) -> None:
    """Prints what a command found, and puts it into the section of a file if one is given."""
    print(text)
    if path:
        replace_section(path, section, text)


def replace_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- name --> and <!-- /name --> in a file.

    Raises:
        ValueError: the file does not hold the two markers, once each and in this order.
    """
    old = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if old.count(begin) != 1 or old.count(end) != 1 or not pattern.search(old):
        raise ValueError(f"{path.name}: expected one line {begin} and below it one line {end}")
    new = pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(new)
    os.replace(temporary, path)
