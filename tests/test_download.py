"""The specification of budgetnet.download, against a real server that misbehaves."""

import contextlib
import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
import tracemalloc

import pytest
from samples import refused, write_cifar100, write_python_batches

from budgetnet import data, download


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`, and breaks off the answers to its first requests after `drops` bytes each."""

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.drops, self.statuses, self.ranges = body, [], [], True
        self.wrong_range, self.silent = False, False
        self.requests = []  # the Range of each
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start >= len(server.body):
            return self.send_error(416)
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            shown = start + 1 if server.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{len(server.body) - 1}/{len(server.body)}")
        if not server.silent:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.drops.pop(0)] if server.drops else rest)
        return None


@pytest.fixture
def archive(tmp_path):
    return packed(write_python_batches(tmp_path / "source"))


def packed(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue()


@contextlib.contextmanager
def serving(body):
    server = Server(body)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(archive) as server:
        yield server


def get(server, folder, md5=None, **options):
    md5 = md5 or hashlib.md5(server.body).hexdigest()
    return download.download("cifar10", folder, url=server.url, md5=md5, pause=0.0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_archive_is_fetched_verified_and_unpacked(server, tmp_path):
    told = []
    folder = get(server, tmp_path / "new" / "data", progress=lambda done, total: told.append((done, total)))
    assert folder == tmp_path / "new" / "data" / "cifar-10-batches-py"
    source = data.load("cifar10", tmp_path / "source")
    assert data.load("cifar10", folder).checksum == source.checksum
    assert names(folder.parent) == ["cifar-10-batches-py"]
    size = len(server.body)
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert told == sorted(told)


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    get(server, tmp_path)
    get(server, tmp_path)
    assert len(server.requests) == 1


def test_a_dropped_connection_is_resumed_where_it_broke(server, tmp_path):
    server.drops = [1000, 2000, 500]
    folder = get(server, tmp_path)
    assert server.requests == [None, "bytes=1000-", "bytes=3000-", "bytes=3500-"]
    assert data.load("cifar10", folder).checksum == data.load("cifar10", tmp_path / "source").checksum


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server, tmp_path):
    server.drops = [1000, 0, 0]
    refused(lambda: get(server, tmp_path, attempts=2), server.url, "2 times in a row", "1,000 bytes are kept")
    assert (tmp_path / "cifar10.tar.gz.part").read_bytes() == server.body[:1000]
    assert not (tmp_path / "cifar-10-batches-py").exists()
    told = []
    assert get(server, tmp_path, progress=lambda *state: told.append(state)).is_dir()
    assert server.requests[-1] == "bytes=1000-"
    assert told[0] == (1000, len(server.body))


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges, server.drops = False, [1000, 2000]
    folder = get(server, tmp_path)
    assert len(server.requests) == 3
    assert len(data.load("cifar10", folder).train) == 30


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    server.wrong_range, server.drops = True, [1000]
    assert get(server, tmp_path).is_dir()
    assert server.requests == [None, "bytes=1000-", None]


def test_a_whole_archive_left_by_an_interrupted_call_is_unpacked_without_the_network(server, tmp_path):
    (tmp_path / "cifar10.tar.gz.part").write_bytes(server.body)
    assert get(server, tmp_path).is_dir()
    assert server.requests == []


def test_what_a_process_that_was_killed_had_unpacked_is_removed(server, tmp_path):
    left = tmp_path / ".unpack-cifar-10-batches-py-abc" / "cifar-10-batches-py"
    other = tmp_path / ".unpack-cifar-100-python-abc"
    left.mkdir(parents=True)
    other.mkdir()
    (left / "data_batch_1").write_bytes(b"half")
    get(server, tmp_path)
    assert names(tmp_path) == [".unpack-cifar-100-python-abc", "cifar-10-batches-py", "source"]


def test_a_partial_file_longer_than_the_archive_is_started_over(server, tmp_path):
    (tmp_path / "cifar10.tar.gz.part").write_bytes(server.body + b"more")
    assert get(server, tmp_path).is_dir()
    assert server.requests[-1] is None


def test_wrong_bytes_are_deleted_and_named(server, tmp_path):
    expected = hashlib.md5(server.body).hexdigest()
    server.body = server.body[:500] + b"x" + server.body[501:]
    refused(lambda: get(server, tmp_path, md5=expected), server.url, expected, "deleted")
    assert names(tmp_path) == ["source"]


def test_a_drop_that_the_server_does_not_own_up_to_is_caught_by_the_checksum(server, tmp_path):
    server.silent, server.drops = True, [1000]
    refused(lambda: get(server, tmp_path), "MD5")
    assert names(tmp_path) == ["source"]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 500, 429]
    assert get(server, tmp_path).is_dir()
    assert len(server.requests) == 4


def test_a_file_the_server_does_not_have_is_not_asked_for_again(server, tmp_path):
    server.statuses = [404]
    refused(lambda: get(server, tmp_path), server.url, "404")
    assert len(server.requests) == 1


def test_a_server_that_cannot_be_reached_is_given_up_on(server, tmp_path):
    server.server_close()
    refused(lambda: get(server, tmp_path), server.url, "no answer", "5 times")


def test_what_is_no_url_is_refused(tmp_path):
    refused(lambda: download.download("cifar10", tmp_path, url="archive"), "archive", "https://")


def test_an_archive_that_is_no_archive_or_another_one_leaves_nothing(server, tmp_path):
    server.body = b"not an archive" * 100
    refused(lambda: get(server, tmp_path), "no sound tar.gz", "deleted")
    assert names(tmp_path) == ["source"]
    server.body = packed(write_cifar100(tmp_path / "source"))
    refused(lambda: get(server, tmp_path), "found cifar-100-python", "cifar-10-batches-py/")
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["../escaped", "/tmp/budgetnet-escaped", "cifar-10-batches-py/../../escaped"])
def test_an_archive_that_writes_outside_its_folder_is_refused(server, tmp_path, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    server.body = buffer.getvalue()
    refused(lambda: get(server, tmp_path / "data"), "archive")
    assert not list(tmp_path.rglob("escaped"))
    assert names(tmp_path / "data") == []


INSIDE = "cifar-10-batches-py"


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "a symbolic link": [member(f"{INSIDE}/a", type=tarfile.SYMTYPE, linkname="/etc")],
    "a link out of the folder, and a file through it": [
        member(f"{INSIDE}/a", type=tarfile.SYMTYPE, linkname="../.."),
        member(f"{INSIDE}/a/escaped", b"evil"),
    ],
    "a hard link": [member(f"{INSIDE}/a", b"one"), member(f"{INSIDE}/b", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "a device": [member(f"{INSIDE}/a", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "a block device": [member(f"{INSIDE}/a", type=tarfile.BLKTYPE)],
    "a pipe": [member(f"{INSIDE}/a", type=tarfile.FIFOTYPE)],
    "a folder that is a link": [member(INSIDE, type=tarfile.SYMTYPE, linkname="/tmp")],
    "a name that goes up": [member(f"{INSIDE}/../../escaped", b"evil")],
    "a name of dots": [member("..", type=tarfile.DIRTYPE)],
    "an absolute name": [member("/tmp/budgetnet-escaped", b"evil")],
    "a name of another system": [member(f"{INSIDE}\\\\..\\\\escaped", b"evil")],
    "a name of a drive": [member("C:/escaped", b"evil")],
    "a name within a name": [member(f"{INSIDE}/a/b", b"evil")],
    "a name of lines": [member(f"{INSIDE}/a\nb", b"evil")],
    "a hidden file": [member(f"{INSIDE}/.bashrc", b"evil")],
    "a long name by a header": [member(f"{INSIDE}/../../" + "escaped" * 60, b"evil")],
    "a file twice": [member(f"{INSIDE}/a", b"one"), member(f"{INSIDE}/a", b"two")],
    "a file over a folder": [member(f"{INSIDE}", type=tarfile.DIRTYPE), member(INSIDE, b"evil")],
    "a sparse file": [member(f"{INSIDE}/a", type=tarfile.GNUTYPE_SPARSE, size=2**40)],
    "a file of a terabyte": [member(f"{INSIDE}/a", type=tarfile.REGTYPE, size=2**40)],
    "a long name of a terabyte": [member("x", type=tarfile.GNUTYPE_LONGNAME, size=2**40)],
    "a long link": [
        member("x", b"/etc/passwd\0", type=tarfile.GNUTYPE_LONGLINK),
        member(f"{INSIDE}/a", type=tarfile.SYMTYPE),
    ],
    "records of a terabyte": [member("x", type=tarfile.XHDTYPE, size=2**40)],
    "records for all of a terabyte": [member("x", type=tarfile.XGLTYPE, size=2**40)],
    "records that move a file": [member(f"{INSIDE}/a", b"evil", pax_headers={"path": "../escaped"})],
    "records that make a file endless": [member(f"{INSIDE}/a", b"evil", pax_headers={"size": str(2**40)})],
    "records that make a file negative": [member(f"{INSIDE}/a", b"evil", pax_headers={"size": "-512"})],
    "records that make a file sparse": [
        member(f"{INSIDE}/a", b"evil", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    ],
    "records behind records behind records": [member("x", b"", type=tarfile.XHDTYPE)] * 3000,
    "thousands of files of many bytes": [member(f"{INSIDE}/{i}", type=tarfile.REGTYPE, size=2**28) for i in range(3)],
}


def hostile_archive(members):
    """Compressed, with contents as they are given, whatever their headers say."""
    raw = b"".join(
        info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape") + content + bytes(-len(content) % 512)
        for info, content in members
    )
    return gzip.compress(raw + bytes(1024), mtime=0)


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_of_other_than_files_of_modest_size_is_refused(server, tmp_path, kind):
    server.body = hostile_archive([member(f"{INSIDE}/first", b"one"), *HOSTILE[kind]])
    tracemalloc.start()
    try:
        refused(lambda: get(server, tmp_path / "data"), "no sound tar.gz", "deleted")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert names(tmp_path / "data") == []
    assert not list(tmp_path.rglob("escaped*"))


def test_an_archive_that_unpacks_to_gigabytes_is_refused_at_its_header(server, tmp_path):
    raw = member(f"{INSIDE}/a", size=2**33)[0].tobuf(tarfile.GNU_FORMAT)
    server.body = gzip.compress(raw + bytes(50_000_000), 1, mtime=0)
    refused(lambda: get(server, tmp_path / "data"), "no sound tar.gz")
    assert names(tmp_path / "data") == []


def test_an_archive_with_fine_times_and_a_dot_before_its_names_is_unpacked(server, tmp_path):
    records = {"mtime": "1234567890.5"}
    server.body = hostile_archive(
        [
            member(f"./{INSIDE}/", type=tarfile.DIRTYPE, pax_headers=records),
            member(f"./{INSIDE}/batches.meta", b"one", pax_headers=records),
            member(f"./{INSIDE}/readme.html", b"two" * 1000),
        ]
    )
    folder = get(server, tmp_path / "data")
    assert names(folder) == ["batches.meta", "readme.html"]
    assert (folder / "readme.html").read_bytes() == b"two" * 1000


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: get(server, tmp_path / "file" / "data"), tmp_path / "file", "can be written")
    assert server.requests == []


def test_the_first_use_downloads_into_the_cache_folder(server, tmp_path, monkeypatch):
    monkeypatch.delenv("BUDGETNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    md5 = hashlib.md5(server.body).hexdigest()
    monkeypatch.setitem(download._ARCHIVES, "cifar10", (server.url, md5, "cifar-10-batches-py"))
    told = []
    first = data.load("cifar10", None, progress=lambda *state: told.append(state))
    assert first.checksum == data.load("cifar10", None).checksum
    assert len(server.requests) == 1
    assert told
    assert (tmp_path / "cache" / "budgetnet" / "cifar-10-batches-py").is_dir()
