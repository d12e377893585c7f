"""One run at a time writes a folder or a file; another one is told who does, or waits.

The lock is a file beside what it guards. The kernel lets it go when its process ends, however that
happens, and unlike the lock of `flock` no process that was forked from it goes on holding it.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from captioning.console import say
from captioning.errors import CaptioningError
from captioning.files import check_output, remove_stale, writing

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

_held: set[Path] = set()  # by this process: closing a lock file a second time would let it go


@contextlib.contextmanager
def lock_folder(folder: str | Path, *names: str) -> Iterator[None]:
    """Write to `folder` alone, beginning without what killed runs left of its files `names`.

    It may be locked again within.

    Raises:
        CaptioningError: another process writes to it.
    """
    folder = Path(folder)
    with _locked(folder / ".lock", folder, wait=False):
        for name in names:
            remove_stale(folder / name)
        yield


@contextlib.contextmanager
def lock_files(*paths: Path | None, wait: bool = False) -> Iterator[None]:
    """Write these files alone. That they can be written is known before there is work to lose.

    Args:
        paths: the files; None for one that nobody asked for.
        wait: for another process that writes one of them.

    Raises:
        CaptioningError: one cannot be written, or another process writes it and `wait` is False.
    """
    with contextlib.ExitStack() as stack:
        for path in filter(None, paths):
            with writing(path):
                check_output(path)
            path = Path(os.path.realpath(path))
            stack.enter_context(_locked(path.with_name(f".{path.name}.lock"), path, wait))
            remove_stale(path)
        yield


@contextlib.contextmanager
def _locked(path: Path, what: Path, wait: bool) -> Iterator[None]:
    path = path.absolute()
    if path in _held:
        yield
        return
    made = not path.parent.exists()
    with writing(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, what, wait)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):  # the folder may be gone
            path.unlink()  # while it is ours
        if made:
            with contextlib.suppress(OSError):  # there is something in it now
                path.parent.rmdir()
        os.close(descriptor)


def _acquire(path: Path, what: Path, wait: bool) -> int:
    """An open lock file that says who holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, what, wait)
            if _is_at(path, descriptor):
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                who = f"process {os.getpid()} on {socket.gethostname()} since {since}"
                os.truncate(descriptor, 0)
                os.write(descriptor, who.encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its holder removed meanwhile


def _take(descriptor: int, what: Path, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # some network disks have no locks
            say(f"{what} cannot be locked ({error.strerror}): start no second run", error=True)
            return
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        if not wait:
            raise CaptioningError(f"{what} is being written by {holder}") from error
        say(f"waiting for {holder}, which writes {what}", error=True)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
