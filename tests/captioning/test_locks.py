"""One run at a time writes a folder or a file; tested with processes of their own."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.errors import CaptioningError
from captioning.files.atomic import write_text
from captioning.files.locks import lock_files, lock_folder

HOLD = """if True:
    import sys, time
    from captioning.files.locks import lock_files, lock_folder
    with lock_folder(sys.argv[1]) if sys.argv[2] == "folder" else lock_files(sys.argv[1]):
        print("locked", flush=True)
        {then}
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def hold():
    """Starts a process that holds a lock until it is killed."""
    running = []

    def begin(path: Path, kind: str = "folder", then: str = "time.sleep(600)"):
        process = start(HOLD.format(then=then), path, kind)
        running.append(process)
        assert process.stdout.readline() == "locked\n", process.communicate()[1]
        return process

    yield begin
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it forked
        process.communicate()


def test_the_second_is_told(hold, tmp_path):
    hold(tmp_path)
    told = f"{tmp_path} is being written by another process"
    with pytest.raises(CaptioningError, match=told), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path.parent), lock_folder(tmp_path / "inner"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(hold, tmp_path, number):
    process = hold(tmp_path)
    process.send_signal(number)
    process.wait()
    with lock_folder(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_what_it_forked_does_not_hold_it_either(hold, tmp_path):
    """As processes that load pictures do, which end seconds after the one that started them."""
    then = "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(600)"
    process = hold(tmp_path, then=then)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with lock_folder(tmp_path):
        os.kill(child, 0)  # it is there


def test_it_may_be_locked_again_within(tmp_path):
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        process = start(HOLD.format(then="pass"), tmp_path, "folder")
        assert "is being written by" in process.communicate()[1]


def test_every_one_that_waits_gets_it_alone(tmp_path):
    """Lock files come and go: whoever waited for one that is gone must not write with others."""
    code = """if True:
        import sys
        from pathlib import Path
        from captioning.files.locks import lock_files
        path = Path(sys.argv[1])
        for _ in range(50):
            with lock_files(path, wait=True):
                path.write_text(str(int(path.read_text()) + 1))
        """
    path = tmp_path / "count"
    path.write_text("0")
    processes = [start(code, path) for _ in range(4)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert path.read_text() == "200"
    assert list(tmp_path.iterdir()) == [path]
    lines = "".join(errors).splitlines()
    assert set(lines) == {f"waiting for another process, which writes {path}"}


def test_what_a_killed_save_left_is_replaced_by_the_next(tmp_path):
    code = """if True:
        import os, signal, sys
        from captioning.files.atomic import write_text
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_text(sys.argv[1], "a longer text")
        """
    path = tmp_path / "last.pt"
    path.write_text("old")
    assert start(code, path).wait() == -signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_what_cannot_be_written_is_known_before_the_work(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("")
        path = path / "y"
    before = set(tmp_path.iterdir())
    told = f"cannot write {path}: (Not a regular file|File exists)"
    for write in (lambda: lock_files(path).__enter__(), lambda: write_text(path, "text")):
        with pytest.raises(CaptioningError, match=told):
            write()
    assert set(tmp_path.iterdir()) == before


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "file")
    for text in ("one", "two"):
        with lock_files(link):
            write_text(link, text)
        assert link.is_symlink() and (tmp_path / "disk" / "file").read_text() == text


def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock_folder(tmp_path), lock_files(tmp_path / "file", wait=True):
        write_text(tmp_path / "file", "text")
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
