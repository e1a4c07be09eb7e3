"""Files are written whole, added to, removed and named so that the disk knows; what keeps them from it is one line."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from budgetnet import files
from budgetnet.errors import ConfigError, WriteError
from budgetnet.files import append, atomic_write, clear_parts, make_folder, remove, require_apart


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def synced(monkeypatch):
    """The folders and files that were synced, in order."""
    found: list[Path] = []
    real = files.flush
    monkeypatch.setattr(files, "flush", lambda path: (real(path), found.append(path)))
    return found


def test_the_file_that_is_replaced_stays_under_another_name_where_that_is_wanted(tmp_path):
    path = tmp_path / "last"
    for content in (b"1", b"2", b"3"):
        atomic_write(path, content, keep="previous")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"last": b"3", "previous": b"2"}


def test_both_files_stay_as_they_were_when_the_new_one_does_not_reach_the_disk(tmp_path, monkeypatch):
    for content in (b"1", b"2"):
        atomic_write(tmp_path / "last", content, keep="previous")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WriteError):
        atomic_write(tmp_path / "last", b"3", keep="previous")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"last": b"2", "previous": b"1"}


def test_a_full_disk_is_told_by_file_and_folder_and_by_what_is_left(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    told = rf"cannot write {tmp_path}/file: No space left on device, [\d.,]+ MB left there; free some .* of {tmp_path}$"
    with pytest.raises(WriteError, match=told):
        atomic_write(tmp_path / "file", b"new")
    with pytest.raises(WriteError, match=told):
        append(tmp_path / "file", b"new")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path, monkeypatch, code):
    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), os.fspath(path))

    monkeypatch.setattr(os, "open", refuse)
    told = rf"cannot write .*file: {os.strerror(code)}; make it writable or choose"
    with pytest.raises(WriteError, match=told), files.replacing(tmp_path / "file"):
        raise AssertionError("the block was entered")


def test_a_folder_that_is_removed_during_the_work_is_one_error_too(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    told = r"cannot write .*file: No such file or directory"
    with pytest.raises(WriteError, match=told), files.replacing(folder / "file"):
        shutil.rmtree(folder)


def test_append_adds_to_a_file_that_is_there_and_makes_none(tmp_path):
    (tmp_path / "file").write_bytes(b"one\n")
    append(tmp_path / "file", b"two\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"
    with pytest.raises(WriteError, match=r"cannot write .*none: No such file or directory"):
        append(tmp_path / "none", b"two\n")
    assert not (tmp_path / "none").exists()


def test_removing_is_on_the_disk_and_what_is_not_there_needs_none(tmp_path, synced):
    (tmp_path / "file").touch()
    remove(tmp_path / "file")
    remove(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert synced == [tmp_path]


def test_the_names_of_new_folders_are_on_the_disk(tmp_path, synced):
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_only_what_dead_writers_left_is_cleared(tmp_path):
    kept = {".lock", "x.part", ".tiny.part", "last.ckpt"}
    for name in (*kept, ".0123456789abcdef.part"):
        (tmp_path / name).touch()
    clear_parts(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == kept


def test_a_file_is_told_from_another_under_all_its_names_there_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("read", "other"):
        Path(name).write_text(name)
    Path("symbolic").symlink_to("read")
    Path("hard").hardlink_to("read")
    for name in ("read", "./read", "folder/../read", str(tmp_path / "read"), "symbolic", "hard"):
        with pytest.raises(ConfigError, match=r"cannot write .*: it is read, which is needed; choose another --output"):
            require_apart([Path("other"), Path(name)], [Path("gone"), Path("read")])
    with pytest.raises(ConfigError, match="it is gone"):
        require_apart([Path("folder/../gone")], [Path("gone")])
    require_apart([Path("other"), Path("folder/read")], [Path("read"), Path("gone"), Path("folder")])
