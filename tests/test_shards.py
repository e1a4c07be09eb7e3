"""The specification of budgetnet.shards, and of what it stands on: tarballs, tables, workers."""

import ctypes
import io
import json
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from budgetnet import cache, data, shards, splits, tarballs, verification, workers
from budgetnet.errors import DataError

SIDE = 12
CLASSES = ("cat", "dog", "owl")


def picture(i, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                info.size = len(content)
            tar.addfile(info, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return path


def samples(numbers, label=lambda i: f"{i % 3}"):
    return [part for i in numbers for part in ((f"{i:05}.png", picture(i)), (f"{i:05}.cls", label(i).encode()))]


def write_tars(root, sizes=(5, 4, 3), test=4, **options):
    first = 0
    for shard, size in enumerate(sizes):
        write_tar(root / "train" / f"{shard * 5}.tar", samples(range(first, first + size)), **options)
        first += size
    write_tar(root / "test" / "0.tar", samples(range(first, first + test)), **options)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def write_parquet(path, numbers, *, image="image", label="label", struct=True, names=CLASSES, groups=2, labels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(numbers)
    raw = [picture(i) for i in numbers]
    values = [{"bytes": one, "path": f"{i}.png"} for i, one in zip(numbers, raw, strict=True)] if struct else raw
    table = pyarrow.table({image: values, label: labels or [i % 3 for i in numbers]})
    if names:
        feature = {"names": list(names), "_type": "ClassLabel"}
        about = {"info": {"features": {image: {"_type": "Image"}, label: feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, path, row_group_size=groups, write_statistics=False)
    return path


def write_parquets(root, **options):
    for shard, numbers in enumerate((range(5), range(5, 9), range(9, 12))):
        write_parquet(root / f"train-{shard * 5}-of-3.parquet", numbers, **options)
    write_parquet(root / "test-00000-of-00001.parquet", range(12, 16), **options)
    return root


def expected(n=16):
    pixels = [cache.read_image(io.BytesIO(picture(i)), SIDE) for i in range(n)]
    return torch.from_numpy(np.stack(pixels))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept files of a cache of the test's own, where any number of images is many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "KEEP_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return tmp_path / "cache" / "budgetnet" / "decoded"


def refused(call, *parts):
    with pytest.raises(DataError) as caught:
        call()
    for part in parts:
        assert str(part) in str(caught.value)
    assert str(caught.value).isprintable()


KINDS = {"tar": write_tars, "Parquet": write_parquets}


# What a data set in shards is


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [False, True])
def test_shards_are_the_data_set_that_their_images_are_in_the_order_of_names(kind, large, tmp_path, kept, monkeypatch):
    if not large:
        monkeypatch.setattr(cache, "KEEP_FROM", 1 << 40)
    root = KINDS[kind](tmp_path / "set")
    dataset = data.load("folder", root, SIDE)
    assert torch.equal(torch.cat([dataset.train.images, dataset.test.images]), expected())
    assert torch.cat([dataset.train.labels, dataset.test.labels]).tolist() == [i % 3 for i in range(16)]
    assert (len(dataset.train), len(dataset.test)) == (12, 4)
    assert dataset.classes == CLASSES
    assert data.num_classes("folder", root) == 3
    found = data.stats(dataset.train)
    assert (dataset.mean, dataset.std) == (found.mean, found.std)
    assert dataset.checksum == data._checksum(dataset.train, dataset.test)
    assert data.read_training(root)[1] == CLASSES
    assert kept.exists() == large


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_look_opens_no_shard_and_starts_no_process(kind, tmp_path, kept, monkeypatch):
    root = KINDS[kind](tmp_path / "set")
    first = data.load("folder", root, SIDE)
    shards._indexed.cache_clear()  # as in another process
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(tarballs, "members", lambda _: pytest.fail("a shard was opened"))
    second = data.load("folder", root, SIDE)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.train.labels, second.train.labels)
    assert (first.classes, first.checksum, first.mean) == (second.classes, second.checksum, second.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_processes_change_nothing(kind, tmp_path, kept, monkeypatch):
    root = KINDS[kind](tmp_path / "set")
    monkeypatch.setattr(cache, "KEEP_FROM", 1 << 40)
    whole = data.load("folder", root, SIDE)
    monkeypatch.setattr(cache, "KEEP_FROM", 1)
    monkeypatch.setattr(shards, "_PIECE", 2 * 3 * SIDE * SIDE)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    seen = []
    parts = data.load("folder", root, SIDE, decoding=lambda done, total: seen.append((done, total)))
    assert torch.equal(parts.train.images, whole.train.images)
    assert torch.equal(parts.test.images, whole.test.images)
    assert parts.checksum == whole.checksum
    assert len(seen) == 9  # 3 + 2 + 2 + 2 pieces
    assert seen == sorted(seen)
    assert seen[-1] == (16, 16)


def test_images_are_resized_to_the_size_that_is_asked_for(tmp_path):
    root = write_tars(tmp_path)
    images = data.load("folder", root, 8).train.images
    assert torch.equal(images[3], torch.from_numpy(cache.read_image(io.BytesIO(picture(3)), 8)))


@pytest.mark.parametrize("change", ["a shard", "the classes"])
def test_shards_that_change_are_read_anew_and_what_was_kept_of_them_goes(change, tmp_path, kept):
    root = write_tars(tmp_path / "set")
    before = data.load("folder", root, SIDE)
    old = set(kept.iterdir())
    if change == "a shard":
        write_tar(root / "train" / "0.tar", samples(range(20, 25)))
    else:
        (root / "classes.txt").write_text("a\nb\nc\nd\n")
    after = data.load("folder", root, SIDE)
    assert (after.checksum == before.checksum) == (change == "the classes")
    assert len(after.classes) == (3 if change == "a shard" else 4)
    assert len(set(kept.iterdir())) == 2
    assert not old & set(kept.iterdir())


@pytest.mark.parametrize("beside", ["train.tar", "train-{}.tar", "train/train-{}.tar", "data/train/{}.tar"])
def test_shards_may_lie_beside_each_other_or_in_a_folder_of_the_folder(beside, tmp_path):
    for split, first in (("train", 0), ("test", 5)):
        name = beside.replace("train", split).format(0)
        write_tar(tmp_path / name, samples(range(first, first + 5)))
    assert len(data.load("folder", tmp_path, SIDE).train) == 5
    assert verification.verify(tmp_path).images == 10


def test_a_shard_alone_may_be_of_one_class(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples([0, 3, 6]))
    assert verification.verify(tmp_path / "train-0.tar").images == 3


CLASS_FILES = {
    "a list": ("index.json", ["a", "b", "c"]),
    "an object with classes": ("index.json", {"classes": ["a", "b", "c"]}),
    "numbers of names": ("index.json", {"b": 1, "c": 2, "a": 0}),
}


@pytest.mark.parametrize("form", CLASS_FILES)
def test_classes_may_be_named_by_an_index(form, tmp_path):
    root = write_tars(tmp_path)
    (root / "classes.txt").unlink()
    assert data.load("folder", root, SIDE).classes == ("0", "1", "2")
    name, content = CLASS_FILES[form]
    (root / name).write_text(json.dumps(content))
    assert data.load("folder", root, SIDE).classes == ("a", "b", "c")


def test_labels_may_be_names_and_may_stand_in_json(tmp_path):
    names = ("owl", "cat")
    write_tar(tmp_path / "train.tar", samples(range(6), lambda i: names[i % 2]))
    members = [
        part
        for i in range(3)
        for part in ((f"a/{i}.JPG", picture(i, "JPEG")), (f"a/{i}.json", json.dumps({"label": "owl"}).encode()))
    ]
    members += [("a/._0.png", b"x"), ("README.md", b"x"), ("a/2.txt", b"a caption"), ("b/3.txt", b"no image")]
    write_tar(tmp_path / "test.tar", members)
    dataset = data.load("folder", tmp_path, SIDE)
    assert dataset.classes == ("cat", "owl")
    assert dataset.train.labels.tolist() == [1, 0] * 3
    assert dataset.test.labels.tolist() == [1] * 3
    assert torch.equal(dataset.test.images[0], torch.from_numpy(cache.read_image(io.BytesIO(picture(0, "JPEG")), SIDE)))


@pytest.mark.parametrize(
    "options",
    [
        {"struct": False},
        {"image": "img", "label": "fine_label"},
        {"names": None},
        {"groups": 100},
    ],
    ids=str,
)
def test_parquet_files_come_in_several_forms(options, tmp_path):
    write_parquet(tmp_path / "train.parquet", range(6), **options)
    write_parquet(tmp_path / "test.parquet", range(6, 9), **options)
    dataset = data.load("folder", tmp_path, SIDE)
    assert torch.equal(torch.cat([dataset.train.images, dataset.test.images]), expected(9))
    assert dataset.classes == (("0", "1", "2") if "names" in options else CLASSES)


# Tar archives


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [5, 99, 100, 101, 150, 254])
def test_the_members_of_an_archive_are_those_that_tarfile_finds(form, length, tmp_path):
    folder = "d" * 90 + "/" if length > 100 else ""
    rest = length - len(folder)
    names = [folder + "ü" * (rest // 2) + "x" * (rest % 2), folder + "y" * min(rest, 99)]
    members = [(name, os.urandom(size)) for name, size in zip(names, (513, 512), strict=True)] + [("z", b"")]
    if form == tarfile.USTAR_FORMAT and rest > 100:
        members = members[1:]
    directory = tarfile.TarInfo("folder")
    directory.type = tarfile.DIRTYPE
    path = write_tar(tmp_path / "a.tar", [("", directory), *members], format=form)
    raw = path.read_bytes()
    found = [(m.name, raw[m.start : m.start + m.size]) for m in tarballs.members(path)]
    assert found == members
    with tarfile.open(path) as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()] == found


def special(kind, **values):
    info = tarfile.TarInfo("evil.png")
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return ("evil.png", info)


HOSTILE = {
    "a link": ([special(tarfile.SYMTYPE, linkname="/etc/passwd")], "evil.png: found a symbolic link"),
    "a hard link": ([special(tarfile.LNKTYPE, linkname="0.png")], "evil.png: found a hard link"),
    "a device": ([special(tarfile.CHRTYPE)], "evil.png: found a device"),
    "a pipe": ([special(tarfile.FIFOTYPE)], "evil.png: found a pipe"),
    "an absolute name": ([("/etc/cron.d/x.png", b"x")], "/etc/cron.d/x.png: found a name that leads out"),
    "a name that leads out": ([("a/../../x.png", b"x")], "a/../../x.png: found a name that leads out"),
    "no label": ([("7.png", picture(7))], "7: found 7.png, expected an image and 7.cls"),
    "no image": ([("7.cls", b"1")], "7: found 7.cls, expected an image"),
    "two images": ([("7.png", b"x"), ("7.jpg", b"x"), ("7.cls", b"1")], "7: found 7.png, 7.jpg, 7.cls"),
    "a member twice": ([("7.png", b"x"), ("7.png", b"y"), ("7.cls", b"1")], "7.png: found it twice"),
    "members apart": ([*samples([7]), *samples([8]), *samples([7])], "00007: found its members apart"),
    "an empty image": ([("7.png", b""), ("7.cls", b"1")], "7.png: found 0 bytes"),
    "no such class": ([("7.png", picture(7)), ("7.cls", b"3")], "7.png: found label 3, expected one of 3 classes"),
    "a negative class": ([("7.png", picture(7)), ("7.cls", b"-1")], "7.png: found label -1"),
    "a class of another kind": ([("7.png", b"x"), ("7.cls", b"cat"), *samples([8])], "found label 2 beside 'cat'"),
    "a label of nothing": ([("7.png", b"x"), ("7.cls", b"\xff\xfe")], "7.cls: found no label"),
    "a label that is no JSON": ([("7.png", b"x"), ("7.json", b"[" * 9999)], "7.json: found no label"),
    "a label of another type": ([("7.png", b"x"), ("7.json", b'{"label": [1]}')], "7.json: found no label"),
    "a long label": ([("7.png", b"x"), ("7.cls", b" " * (1 << 21))], "7.cls: found 2,097,152 bytes"),
    "a damaged image": ([*samples([3]), ("7.png", picture(7)[:80]), ("7.cls", b"1")], "7.png: found no readable image"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_wrong_with_a_shard_is_told_with_its_name_and_the_member(kind, tmp_path):
    members, message = HOSTILE[kind]
    root = write_tars(tmp_path / "set")
    shard = write_tar(root / "train" / "5.tar", members)
    for look in (lambda: data.load("folder", root, SIDE), lambda: verification.verify(root)):
        refused(look, f"{shard}: ", message)
    assert not (tmp_path / "evil.png").exists()


def test_an_archive_that_is_cut_off_or_damaged_anywhere_in_its_headers_loses_no_image_in_silence(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(range(3)))
    raw = path.read_bytes()
    held = len(list(tarballs.members(path)))
    ends = max(m.start + m.size for m in tarballs.members(path))
    for length in range(0, ends, 256):
        path.write_bytes(raw[:length])
        refused(lambda: list(tarballs.members(path)), path, "cut off")
    starts = [m.start - 512 for m in tarballs.members(path)] if path.write_bytes(raw) else []
    for start in starts:
        for at in (0, 3, 101, 124, 135, 148, 156, 257, 400):
            path.write_bytes(raw[: start + at] + bytes([raw[start + at] ^ 1]) + raw[start + at + 1 :])
            refused(lambda: list(tarballs.members(path)), path, "found no tar header")
    for more in (b"x", raw):
        path.write_bytes(raw + more)
        refused(lambda: list(tarballs.members(path)), path, "found more after the end of archive")
    path.write_bytes(raw)
    assert len(list(tarballs.members(path))) == held


def header(name=b"7.png", size=b"%011o\0" % 5, kind=b"0"):
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.USTAR_FORMAT)[:512])
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header(size=b"\x80" + bytes(3) + b"\x7f" + bytes(7)), "found 9,151,314,442,816,847,872 bytes in a file of"),
        (header(size=b"77777777777\0"), "found 8,589,934,591 bytes in a file of"),
        (header(size=b"\xff" * 12), "found no tar header"),
        (header(size=b"%011o\0" % (1 << 20), kind=b"x"), "found a header of 1,048,576 bytes"),
        (header(size=b"%011o\0" % 16, kind=b"x") + b"16 size=-100000\n".ljust(512, b"\0"), "a size that is no number"),
        (header(size=b"%011o\0" % 9, kind=b"x") + b"99 path=a".ljust(512, b"\0"), "a damaged pax header"),
        (
            header(size=b"%011o\0" % 22, kind=b"x") + b"22 GNU.sparse.major=1\n".ljust(512, b"\0"),
            "found a sparse file",
        ),
        (header(kind=b"S"), "a member of type b'S'"),
    ],
)
def test_headers_that_claim_what_is_not_there_are_refused_before_anything_is_read(raw, message, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(raw + bytes(2048))
    refused(lambda: list(tarballs.members(path)), path, message)


# Parquet files


def damaged_parquets(root):
    path = root / "train-5-of-3.parquet"
    raw = path.read_bytes()
    yield raw[:-30]
    yield raw[: len(raw) // 2]
    yield b"no Parquet"
    yield b""
    assert raw.count(picture(6)[100:140]) == 1
    yield raw.replace(picture(6)[100:140], bytes(40))


def test_a_damaged_parquet_file_is_named(tmp_path):
    root = write_parquets(tmp_path)
    path = root / "train-5-of-3.parquet"
    for raw in list(damaged_parquets(root)):
        path.write_bytes(raw)
        refused(lambda: data.load("folder", root, SIDE), f"{path}: ", "found")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "picture"}, "found columns picture, label, expected one of images: image or img"),
        ({"label": "class"}, "found columns image, class, expected one of labels: label or fine_label"),
        ({"labels": [0.5] * 3, "names": None}, "found column label of double"),
        ({"labels": [0, None, 1]}, "row 1: found none, expected a label"),
        ({"labels": [0, 1, 3]}, "row 2: found label 3, expected one of 3 classes (cat, dog, owl)"),
        ({"labels": [0, -1, 1]}, "row 1: found label -1"),
        ({"names": ("a", "b", "c")}, "found shards that name different classes"),
        ({"labels": ["a", "b", "c"]}, "found shards labelled by numbers and others by names"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_told(options, message, tmp_path):
    root = write_parquets(tmp_path)
    write_parquet(root / "train-5-of-3.parquet", range(3), **options)
    refused(lambda: data.load("folder", root, SIDE), root, message)


def test_an_image_of_a_parquet_file_that_is_missing_or_damaged_is_told_with_its_row(tmp_path):
    root = write_parquets(tmp_path)
    path = root / "test-00000-of-00001.parquet"
    for broken, message in ((None, "found no bytes of an image"), (b"no image", "found no readable image")):
        values = [{"bytes": picture(i), "path": None} for i in range(4)] + [{"bytes": broken, "path": "/etc/passwd"}]
        pyarrow.parquet.write_table(pyarrow.table({"image": values, "label": [0] * 5}), path, row_group_size=2)
        refused(lambda: data.load("folder", root, SIDE), f"{path}: row 4: {message}")


def test_a_process_that_dies_of_a_shard_is_an_error_that_names_it(tmp_path):
    job = workers.scan_job(tmp_path / "a.parquet") | {"do": "decode", "places": 5}  # a mistake of ours: it ends by it
    refused(lambda: list(workers.answers([job], 1)), tmp_path / "a.parquet", "the process that read it ended (1)")


# Layouts that are none


def test_shards_of_two_kinds_or_beside_class_folders_are_refused(tmp_path):
    root = write_tars(tmp_path)
    write_parquet(root / "train.parquet", range(3))
    refused(lambda: data.load("folder", root, SIDE), "train/0.tar beside train.parquet")
    (root / "train.parquet").unlink()
    (root / "train" / "cat").mkdir()
    refused(lambda: data.load("folder", root, SIDE), "train/0.tar beside train/cat/")


def test_shards_without_a_test_set_or_without_images_are_refused(tmp_path):
    write_tar(tmp_path / "train.tar", samples(range(3)))
    refused(lambda: data.load("folder", tmp_path, SIDE), "no test set", "test*.tar")
    write_tar(tmp_path / "test.tar", [])
    refused(lambda: data.load("folder", tmp_path, SIDE), "found no images in test.tar")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no names"), ("a\na\nb\n", "class a twice"), ("one\n", "1 classes"), ("\xff" * 3, "no names of classes")],
)
def test_a_file_of_classes_that_names_none_is_refused(text, message, tmp_path):
    root = write_tars(tmp_path)
    (root / "classes.txt").write_bytes(text.encode("latin1"))
    refused(lambda: data.load("folder", root, SIDE), root, message)


# What a death leaves


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from budgetnet import cache, data, shards

cache.KEEP_FROM = 1
shards._PIECE = 2 * 3 * 12 * 12
torch.set_num_threads(2)

def watch(done, total):
    if done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)

data.load("folder", Path(sys.argv[1]), 12, decoding=watch)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_decoded_before_a_death_is_not_decoded_again_if_it_is_whole(kind, tmp_path, kept, monkeypatch):
    root = KINDS[kind](tmp_path / "set")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    # Its processes have its standard error: that this ends says that they have ended too.
    done = subprocess.run(
        [sys.executable, "-c", KILLED, root], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (journal,) = kept.glob(".*.journal")
    noted = [int(line.split()[0]) for line in journal.read_text().splitlines()]
    assert len(noted) >= 3
    (part,) = kept.glob(".*.part")
    monkeypatch.setattr(shards, "_PIECE", 2 * 3 * SIDE * SIDE)
    index = shards.index(shards.find(root))
    pieces = shards._pieces(index, SIDE)
    damaged, before = noted[1], sum(piece.rows for piece in pieces[: noted[1]])
    with part.open("r+b") as file:
        file.seek(before * 3 * SIDE * SIDE)
        file.write(bytes(3 * SIDE * SIDE))
    with journal.open("a") as file:
        file.write("7\n99 5\nx y\n-1 3\n4 ")  # as a power cut may leave it
    asked = []
    decode = workers.decode_job
    monkeypatch.setattr(workers, "decode_job", lambda path, *rest: asked.append(path) or decode(path, *rest))
    dataset = data.load("folder", root, SIDE)
    assert torch.equal(torch.cat([dataset.train.images, dataset.test.images]), expected())
    assert len(asked) == len(pieces) - len(noted) + 1
    assert pieces[damaged].path in asked
    assert not list(kept.glob(".*"))


# Memory, and what is read of the file


MEASURE = """
import ctypes, gc, sys, threading
from pathlib import Path
import torch
from budgetnet import data
from budgetnet.config import Config, ModelConfig, StageConfig
from budgetnet.train import train

def anonymous():
    line, = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

def measured(work):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was let go before would be used again, and not be seen
    before = peak = anonymous()
    over = threading.Event()
    def watch():
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = work()
    over.set()
    watcher.join()
    return max(peak, anonymous()) - before, found  # the watcher may have slept through the end

root = Path(sys.argv[1])
model = ModelConfig(name="residual", stages=(StageConfig(block="basic", depth=1, width=8, stride=4),))
common = {"model": model, "epochs": 1, "batch_size": 64, "budget": None}
train(Config(dataset="digits", val_size=500, **common), root / "warm", track=False)
made, dataset = measured(lambda: data.load("folder", root))
held, copy = measured(lambda: dataset.train.images.clone())
del copy
config = Config(dataset="folder", val_size=500, train_size=3000, **common)
trained, summary = measured(lambda: train(config, root / "run", folder=root, track=False))
print(made, trained, held, summary["tags"]["data_checksum"] == dataset.checksum)
"""


def write_raw_tar(path, first, n):
    """Quickly, many images of 32x32 pixels."""
    noise = np.random.default_rng(first).bytes(3072 + n)
    with path.open("wb") as file:
        for i in range(first, first + n):
            image = b"P6 32 32 255\n" + noise[i - first : i - first + 3072]
            for name, content in ((b"%07d.ppm" % i, image), (b"%07d.cls" % i, b"%d" % (i % 10))):
                block = bytearray(512)
                block[: len(name)], block[124:136], block[156:157] = name, b"%011o\0" % len(content), b"0"
                block[148:156] = b"%06o\0 " % (sum(block) + 256)
                file.write(block + content + bytes(-len(content) % 512))
        file.write(bytes(1024))


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_shards_are_decoded_and_trained_on_in_a_fraction_of_the_memory_of_their_pixels(tmp_path):
    for shard in range(3):
        write_raw_tar(tmp_path / f"{'test' if shard == 2 else 'train'}-{shard}.tar", shard * 8_000, 8_000)
    decoded = 24_000 * 3072
    assert decoded > cache.KEEP_FROM
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    made, trained, held, same = done.stdout.split()[-4:]
    assert same == "True"
    assert int(made) < decoded / 2
    assert int(trained) < decoded / 2
    assert int(held) > 0.9 * decoded * 2 / 3  # the measure sees what is held in memory


def resident(path, size):
    """Which pages of a file are in memory."""
    pages = -(-size // mmap.PAGESIZE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), found) == 0
        del start
    return {page for page in range(pages) if found[page] & 1}


@pytest.fixture
def on_disk():
    """A folder whose pages are in memory only while they are used."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield pathlib.Path(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="which pages are in memory is asked of Linux")
def test_a_process_reads_the_pages_of_its_share_and_no_others(on_disk):
    n, row = 4000, 3 * 32 * 32
    path = on_disk / "0.pixels"
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), np.uint8)
    pixels.tofile(path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resident(path, n * row)
    if before:
        pytest.skip("this file system keeps its pages in memory")
    images = cache._map(path, (n, 3, 32, 32))
    cache.expect_random(images)
    mine = torch.tensor_split(splits.batches(splits.epoch_order(n, 0, 0), 64)[5], 4)[1]  # the second of four processes
    assert torch.equal(images[mine], torch.from_numpy(pixels[mine.numpy()]))
    wanted = {p for i in mine.tolist() for p in range(i * row // 4096, ((i + 1) * row - 1) // 4096 + 1)}
    assert resident(path, n * row) == wanted
    assert len(wanted) < 2 * 16 + 1


# Verification


@pytest.mark.parametrize("kind", KINDS)
def test_verification_decodes_all_and_tells_what_is_in_both_sets_by_shard_and_member(kind, tmp_path, kept):
    root = KINDS[kind](tmp_path / "set")
    if kind == "tar":
        write_tar(root / "test" / "0.tar", samples([12, 6, 13, 14]))
        name = ("test/0.tar: 00006.png", "train/5.tar: 00006.png")
    else:
        write_parquet(root / "test-00000-of-00001.parquet", [12, 6, 13, 14])
        name = ("test-00000-of-00001.parquet: row 1", "train-5-of-3.parquet: row 1")
    found = verification.verify(root)
    assert (found.images, found.official) == (16, None)
    assert found.kind == ("tar shards" if kind == "tar" else "Parquet files")
    assert found.lines[0] == (f"set: 12 training and 4 test images of 3 classes (cat, dog, owl) in 4 {found.kind}")
    (duplicates,) = found.duplicates
    assert (duplicates.exact, duplicates.within_train) == (1, 0)
    assert (duplicates.pairs[0].test, duplicates.pairs[0].train) == name
    assert all(path.stat().st_size < 2000 for path in kept.iterdir())  # what there is, and no pixels
    (shard, *_) = shards.find(root).names
    found = verification.verify(root / shard)
    assert (found.images, found.kind) == (5, "tar shard" if kind == "tar" else "Parquet file")
    assert found.lines == (f"{(root / shard).name}: {found.kind}, 5 images with labels",)
