"""The exception for bad input. The command line prints its message without a traceback."""

from collections.abc import Mapping, Sequence

from captioning.console import printable


class CaptioningError(Exception):
    """Bad input from the user. The `lines` of the message say what was expected and what came."""

    def __init__(self, *lines: object) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def list_reasons(names_by_reason: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a line for each reason, such as "7 x missing picture: val/1.png, val/2.png, ...".

    `names_by_reason` names what was skipped or refused. A line shows at most five names.
    """
    show = lambda names: ", ".join([*names[:5], "..."] if len(names) > 5 else names)
    return [f"{len(names)} x {reason}: {show(names)}" for reason, names in names_by_reason.items()]
