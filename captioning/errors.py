"""The one exception that the command line turns into a message instead of a traceback."""

from collections.abc import Mapping, Sequence

from captioning.console import printable


class CaptioningError(Exception):
    """Bad input from the user; the message, in lines, says what was expected and what was given."""

    def __init__(self, *lines: object) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def list_reasons(found: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each reason, such as "7 x empty caption: annotation 1, annotation 2, ..."."""
    return [
        f"{len(names)} x {reason}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
        for reason, names in found.items()
    ]
