"""Locks, so that only one run at a time writes a folder or a file.

A second run is refused, or it waits. The lock is a file next to what it guards. The kernel releases
it when its process ends, however that happens, and processes that it forked do not hold it.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from captioning.console import say
from captioning.errors import CaptioningError
from captioning.files.atomic import check_output, writing


def lock_folder(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Lock `folder`; if another process holds the lock, it is a CaptioningError.

    The same process may lock it again inside.
    """
    return _locked(Path(folder, ".lock"), Path(folder), wait=False)


@contextlib.contextmanager
def lock_files(*paths: Path | None, wait: bool = False) -> Iterator[None]:
    """Lock files, None among them ignored, and check that they can be written, before the work.

    It is a CaptioningError if another process holds the lock of one, unless `wait` is True.
    """
    with contextlib.ExitStack() as stack:
        for path in filter(None, paths):
            with writing(path):
                check_output(path)
            path = Path(os.path.realpath(path))
            stack.enter_context(_locked(path.with_name(f".{path.name}.lock"), path, wait))
        yield


@contextlib.contextmanager
def _locked(path: Path, what: Path, wait: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout  # not at the top: `captioning --help` locks nothing

    created = not path.parent.exists()
    with writing(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.absolute(), is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            if not wait:
                raise CaptioningError(f"{what} is being written by another process") from error
            say(f"waiting for another process, which writes {what}", error=True)
            lock.acquire()
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # as some network disks
                raise
            say(f"{what} cannot be locked ({error.strerror}): start no second run", error=True)
    try:
        yield
    finally:
        if lock.lock_counter <= 1:
            with contextlib.suppress(OSError):  # the folder may be gone
                path.unlink()  # while this process holds it
        lock.release()
        if created:
            with contextlib.suppress(OSError):  # unless it has files now
                path.parent.rmdir()
