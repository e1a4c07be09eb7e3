"""Files are written whole, added to, removed and named so that the disk knows; what keeps them from it is one line."""

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from budgetnet import files
from budgetnet.errors import ConfigError, WriteError
from budgetnet.files import append, atomic_write, clear_parts, flush, is_part, make_folder, remove, require_apart


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def synced(monkeypatch):
    """The folders and files that were synced, in order."""
    found: list[Path] = []
    real = files.flush
    monkeypatch.setattr(files, "flush", lambda path: (real(path), found.append(path)))
    return found


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def links(request, monkeypatch):
    """Whether the file system has hard links."""

    def refuse(source, target, **_):
        raise OSError(errno.EPERM, "Operation not permitted", source, None, target)

    if not request.param:
        monkeypatch.setattr(os, "link", refuse)
    return request.param


def content(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_the_file_that_is_replaced_stays_under_another_name_where_that_is_wanted(links, tmp_path):
    path = tmp_path / "last"
    for data in (b"1", b"2", b"3"):
        atomic_write(path, data, keep="previous")
    assert content(tmp_path) == {"last": b"3", "previous": b"2"}
    assert all(entry.stat().st_nlink == 1 for entry in tmp_path.iterdir())


def test_at_every_moment_the_file_is_there_the_old_one_or_the_new(tmp_path, monkeypatch):
    seen = []

    def watched(how):
        def do(*arguments, **options):
            seen.append((tmp_path / "last").read_bytes())
            how(*arguments, **options)
            seen.append((tmp_path / "last").read_bytes())

        return do

    for data in (b"1", b"2"):
        atomic_write(tmp_path / "last", data, keep="previous")
    for name in ("link", "replace", "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    atomic_write(tmp_path / "last", b"3", keep="previous")
    assert seen[:5] == [b"2"] * 5
    assert set(seen[5:]) == {b"2", b"3"}


def test_a_crash_that_left_both_names_on_one_file_keeps_it_once(tmp_path):
    (tmp_path / "last").write_bytes(b"1")
    os.link(tmp_path / "last", tmp_path / "previous")
    atomic_write(tmp_path / "last", b"2", keep="previous")
    assert content(tmp_path) == {"last": b"2", "previous": b"1"}


def test_a_name_that_the_old_file_cannot_get_is_one_error_and_it_stays(links, tmp_path):
    (tmp_path / "last").write_bytes(b"1")
    (tmp_path / "previous").mkdir()
    with pytest.raises(
        WriteError, match=rf"cannot write {tmp_path}/last: .*; make it writable or choose another folder"
    ):
        atomic_write(tmp_path / "last", b"2", keep="previous")
    assert (tmp_path / "last").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["last", "previous"]


def test_both_files_stay_as_they_were_when_the_new_one_does_not_reach_the_disk(tmp_path, monkeypatch):
    for data in (b"1", b"2"):
        atomic_write(tmp_path / "last", data, keep="previous")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WriteError):
        atomic_write(tmp_path / "last", b"3", keep="previous")
    assert content(tmp_path) == {"last": b"2", "previous": b"1"}


def test_a_new_file_takes_the_place_of_the_old_one_once_it_is_on_the_disk_and_so_does_its_name(tmp_path, synced):
    (tmp_path / "file").write_bytes(b"old")
    with files.replacing(tmp_path / "file") as temporary:
        assert is_part(temporary)
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
    assert content(tmp_path) == {"file": b"new"}
    assert synced == [temporary, tmp_path]


def test_a_new_file_may_be_read_by_whom_the_process_lets(tmp_path):
    before = os.umask(0o012)
    try:
        atomic_write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o664


def test_what_is_no_place_for_a_file_is_told_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(
            WriteError, match=rf"^cannot write {tmp_path}/no/file: there is no folder {tmp_path}/no; create it"
        ),
        files.replacing(tmp_path / "no" / "file"),
    ):
        raise AssertionError("the block was entered")
    with (
        pytest.raises(
            WriteError, match=rf"^cannot write {tmp_path}/folder: it is there and is no file; choose another"
        ),
        files.replacing(tmp_path / "folder"),
    ):
        raise AssertionError("the block was entered")


@pytest.mark.parametrize("error", [ValueError("no number"), FileNotFoundError(errno.ENOENT, "not there", "other")])
def test_an_error_of_the_work_itself_stays_what_it_is_and_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.replacing(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert content(tmp_path) == {}


def told_of(error, write, path, monkeypatch):
    """What is said where the disk refuses what is written."""

    def refuse(handle):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(WriteError) as caught:
            write(path, b"new")
    return str(caught.value)


def test_a_full_disk_is_told_by_file_and_folder_and_by_what_is_left(tmp_path, monkeypatch):
    path, full = tmp_path / "file", OSError(errno.ENOSPC, "No space left on device")

    def usage(folder):
        assert [*content(folder)] == ["file"], "what was written does not take room any more"
        return SimpleNamespace(free=1_234_567_000_000)

    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", usage)
    left = ", 1,234,567.0 MB left there"
    told = f"cannot write {path}: No space left on device{left}; free some space on the disk of {tmp_path}"
    assert told_of(full, atomic_write, path, monkeypatch) == told
    assert told_of(full, append, path, monkeypatch) == told
    monkeypatch.setattr(shutil, "disk_usage", no_space)
    assert told_of(full, atomic_write, path, monkeypatch) == told.replace(left, "")


def test_whatever_else_keeps_a_file_from_being_written_is_told_with_what_helps(tmp_path, monkeypatch):
    path = tmp_path / "file"
    assert told_of(OSError(errno.EFBIG, "File too large"), atomic_write, path, monkeypatch) == (
        f"cannot write {path}: File too large; raise the limit of this process (ulimit -f) or choose another disk"
    )
    for error in (OSError(errno.EIO, "odd"), OSError("odd")):
        told = f"cannot write {path}: odd; make it writable or choose another folder"
        assert told_of(error, atomic_write, path, monkeypatch) == told


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


def test_a_folder_that_a_file_replaces_during_the_work_is_one_error_too(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def become_a_file():
        shutil.rmtree(folder)
        folder.touch()

    told = r"cannot write .*file: Not a directory"
    with pytest.raises(WriteError, match=told), files.replacing(folder / "file"):
        become_a_file()


def test_what_is_added_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"one\n")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((tmp_path / "file").read_bytes()))
    append(tmp_path / "file", b"two\n")
    assert seen == [b"one\ntwo\n"]


def lowest_handle():
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    return handle


def test_files_and_the_names_in_folders_are_flushed_and_no_handle_stays(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_ino))
    (tmp_path / "file").touch()
    before = lowest_handle()
    for path in (tmp_path, tmp_path / "file"):
        flush(path)
    assert seen == [path.stat().st_ino for path in (tmp_path, tmp_path / "file")]
    assert lowest_handle() == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_only_a_folder_that_cannot_be_flushed_by_its_nature_is_let_be(tmp_path, monkeypatch, code):
    def refuse(handle):
        raise OSError(code, "refused")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="refused"):
        flush(tmp_path / "file")
    with pytest.raises(OSError, match="refused") if code == errno.EIO else nullcontext():
        flush(tmp_path)


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
    kept = {".lock", "x.part", ".tiny.part", ".0123456789abcdef.par", "last.ckpt"}
    for name in (*kept, ".0123456789abcdef.part"):
        (tmp_path / name).touch()
    clear_parts(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == kept


def test_what_goes_by_itself_while_it_is_cleared_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / ".0123456789abcdef.part"]))
    clear_parts(tmp_path)


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
    with pytest.raises(ConfigError, match=r"cannot write read: "):
        require_apart([Path("other"), Path("read")], iter([Path("read")]))
    with pytest.raises(ConfigError, match="it is gone"):
        require_apart([Path("folder/../gone")], [Path("gone")])
    require_apart([Path("other"), Path("folder/read")], [Path("read"), Path("gone"), Path("folder")])
