"""Locks, so that only one run at a time writes a folder or a file.

A second run is refused, with the name of the process that holds the lock, or it waits. The lock is
a file next to what it guards. The kernel releases it when its process ends, however that happens.
Unlike a lock of `flock`, it is not inherited by forked processes.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from captioning.console import say
from captioning.errors import CaptioningError
from captioning.files.atomic import check_output, remove_stale, writing

if sys.platform != "win32":  # there nothing is locked
    import fcntl

_held: set[Path] = set()  # by this process; closing another descriptor would release it


@contextlib.contextmanager
def lock_folder(folder: str | Path, *names: str) -> Iterator[None]:
    """Lock `folder`, and remove the temporary files that killed runs left of its files `names`.

    The same process may lock it again inside.

    Raises:
        CaptioningError: another process holds the lock.
    """
    folder = Path(folder)
    with _locked(folder / ".lock", folder, wait=False):
        for name in names:
            remove_stale(folder / name)
        yield


@contextlib.contextmanager
def lock_files(*paths: Path | None, wait: bool = False) -> Iterator[None]:
    """Lock files, and check that they can be written before there is work to lose.

    Args:
        paths: the files; None is ignored.
        wait: wait for another process that holds a lock.

    Raises:
        CaptioningError: one cannot be written, or another process holds its lock and `wait` is
            False.
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
    created = not path.parent.exists()
    with writing(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, what, wait)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):  # the folder may be gone
            path.unlink()  # while this process holds it
        if created:
            with contextlib.suppress(OSError):  # unless it has files now
                path.parent.rmdir()
        os.close(descriptor)


def _acquire(path: Path, what: Path, wait: bool) -> int:
    """Lock a file and write into it who holds it; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, what, wait)
            if _is_at(path, descriptor):
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
                os.truncate(descriptor, 0)
                os.write(descriptor, holder.encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file


def _take(descriptor: int, what: Path, wait: bool) -> None:
    if sys.platform == "win32":
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
