"""The one exception that the command line turns into a message instead of a traceback."""


class CaptioningError(Exception):
    """Bad input from the user; the message says what was expected and what came."""
