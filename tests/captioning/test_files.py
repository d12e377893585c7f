"""Files are written whole or not at all, whatever else writes them at the same time."""

import stat

import pytest

from captioning.files import write_atomically


def test_a_second_writer_of_one_file_leaves_no_half_file(tmp_path):
    """The second writer begins and ends while the first one has written half of its file."""
    path = tmp_path / "results.json"

    def first(file):
        file.write(b"first, ")
        file.flush()
        write_atomically(path, lambda file: file.write(b"second"))
        assert path.read_bytes() == b"second"
        file.write(b"whole")

    write_atomically(path, first)
    assert path.read_bytes() == b"first, whole" and [*tmp_path.iterdir()] == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    write_atomically(tmp_path / "new", lambda file: file.write(b"x"))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "other")]
    assert modes[0] == modes[1]
