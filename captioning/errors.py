"""The one exception that the command line turns into a message instead of a traceback."""

from collections.abc import Mapping, Sequence


class CaptioningError(Exception):
    """Bad input from the user; the message says what was expected and what came."""


def list_reasons(found: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each reason, such as "7 x empty caption: annotation 1, annotation 2, ..."."""
    return [
        f"{len(names)} x {reason}: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
        for reason, names in found.items()
    ]
