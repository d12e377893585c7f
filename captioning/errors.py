"""The exception for bad input. The command line prints its message without a traceback."""

from collections.abc import Mapping, Sequence

from captioning.console import printable


class CaptioningError(Exception):
    """Bad input from the user. The `lines` of the message say what was expected and what came."""

    def __init__(self, *lines: object) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def list_reasons(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each reason, such as "7 x missing picture: val/1.png, val/2.png, ...".

    `found` has the names of what was skipped or refused, by reason. A line has at most five names.
    """
    listed = lambda names: ", ".join([*names[:5], "..."] if len(names) > 5 else names)
    return [f"{len(names)} x {reason}: {listed(names)}" for reason, names in found.items()]
