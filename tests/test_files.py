"""A file has its name when it is whole; before, and after an error, the old one has it."""

import os
from contextlib import suppress

import pytest

from utils.files import (
    LOCK,
    OWNER,
    check_writable,
    new_folders,
    only_writer,
    remove_partial,
    whole_file,
)


def test_a_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def broken_off(path, error) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_as_it_was(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error):
        broken_off(path, error)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "none" / "a"
    with pytest.raises(FileNotFoundError) as error, whole_file(path):
        pass
    assert error.value.filename == str(path)


@pytest.mark.parametrize("name", ["a", "a/b/c", f"a/{'x' * 300}"])
def test_new_folders_stay_only_with_something_in_them(tmp_path, name):
    with suppress(OSError), new_folders(tmp_path / name):  # the last name is too long
        pass
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyError), new_folders(tmp_path / "a/b/c"):
        raise KeyError
    assert [str(path) for path in tmp_path.rglob("*")] == [str(tmp_path / "a")]  # as before
    with new_folders(tmp_path / "a/b/c"):
        (tmp_path / "a/b/file").write_text("")
    assert os.listdir(tmp_path / "a/b") == ["file"]  # control


def test_only_what_is_half_written_is_removed(tmp_path):
    for name in (".a.123.partial", "a", ".hidden", "b.partial"):
        (tmp_path / name).write_text("")
    remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a", "b.partial"]


def test_whether_a_folder_can_be_written_is_found_out_without_a_trace(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(OSError, match=r"exists|directory"):
            check_writable(path)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_checked_last_keeps_the_old_file(tmp_path):
    path, seen = tmp_path / "a", []
    path.write_bytes(b"old")

    def refuse() -> None:
        seen.append((path.read_bytes(), len(os.listdir(tmp_path))))
        raise OSError(5, "not any more")

    with pytest.raises(OSError, match="not any more"), whole_file(path, refuse) as file:
        file.write(b"new")
    assert seen == [(b"old", 2)]  # the new one was written, under another name
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_that_names_the_writer_is_written_again_in_its_own_folder_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with only_writer(tmp_path / "a") as claim:
        (tmp_path / "a" / OWNER).unlink()
        claim.check()
        assert (tmp_path / "a" / OWNER).read_text() == claim.owner
        (tmp_path / "a" / LOCK).unlink()
        (tmp_path / "a" / OWNER).unlink()
        (tmp_path / "a").rmdir()
        with pytest.raises(OSError, match=f"{OWNER}: No such file"):
            claim.check()
        for _ in range(20):  # a file system gives a number again, where nobody holds it
            (tmp_path / "a").mkdir()
            with pytest.raises(OSError, match=f"{OWNER}: No such file"):
                claim.check()
            assert os.listdir(tmp_path / "a") == []
            (tmp_path / "a").rmdir()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / OWNER).write_text("process 1 on another")
        with pytest.raises(OSError, match=f"{OWNER}: now the folder of process 1 on another"):
            claim.check()
    assert os.listdir(tmp_path / "a") == [OWNER]  # the other's stays
