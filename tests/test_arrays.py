"""NumPy's files of strangers, and the published shifted test images that come in them."""

import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from budgetnet import cifar
from budgetnet.arrays import map_npy, read_npz
from budgetnet.errors import DataError


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zipped(path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def levels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_member_is_read_as_it_was_saved_whatever_objects_lie_beside_it(order, compressed, tmp_path):
    images = np.asarray(levels(5), order=order)
    names = np.array([["airplane"], Hostile()], dtype=object)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", images=images, labels=np.arange(5), label_names=names)
    assert np.array_equal(read_npz(tmp_path / "a.npz", "images"), images)
    assert read_npz(tmp_path / "a.npz", "labels").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"a\.npz: found 'label_names' of object, expected numbers: refused"):
        read_npz(tmp_path / "a.npz", "label_names")
    with pytest.raises(DataError, match=r"a\.npz: found 'images', 'labels', 'label_names', expected an array 'pixels'"):
        read_npz(tmp_path / "a.npz", "pixels")


def damaged() -> dict[str, bytes]:
    """Contents of a member, none of which is an array of numbers."""
    whole = npy(levels(2))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }"

    def claiming(shape: bytes) -> bytes:
        text = header % shape
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text

    return {
        "empty": b"",
        "no array": b"PK and so on",
        "cut off": whole[:-100],
        "too long": whole + b"more",
        "more than there is": claiming(b"1000000000000"),
        "a negative size": claiming(b"-5"),
        "no shape": claiming(b"'a'"),
        "code": b"\x93NUMPY\x01\x00" + struct.pack("<H", 30) + b"__import__('os').system('ls') ",
        "another version": b"\x93NUMPY\x09\x00" + whole[8:],
        "a header of gigabytes": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + whole[10:],
        "a header that is nested": claiming(b"(" * 3000),
        "a header of signs": claiming(b"-" * 3000 + b"1"),
        "a header of more": whole.replace(b"}", b"+", 1),
        "a shape of many sizes": claiming(b"1, " * 60 + b"1"),
        "a size of many digits": claiming(b"9" * 5000),
        "dates": npy(np.zeros(3, "M8[s]")),
        "records": npy(np.zeros(3, [("a", "u1")])),
        "objects": npy(np.array([Hostile()], dtype=object), allow_pickle=True),
        "a pickle": pickle.dumps(Hostile()),
    }


@pytest.mark.parametrize("kind", damaged())
def test_what_is_no_array_of_numbers_is_refused_in_one_line_and_nothing_is_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = damaged()[kind]
    (tmp_path / "a.npy").write_bytes(content)
    zipped(tmp_path / "a.npz", images=content)
    # Bytes after an array are none of it: maps leave them alone.
    for read in [lambda: read_npz(tmp_path / "a.npz", "images"), *[lambda: map_npy(tmp_path / "a.npy")]][
        : 1 if kind == "too long" else 2
    ]:
        tracemalloc.start()
        try:
            with pytest.raises(DataError) as error:
                read()
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()
        assert "\n" not in str(error.value)
        assert "expected" in str(error.value)
    assert not (tmp_path / "was_run").exists()


def test_an_archive_that_is_damaged_or_none_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", images=levels(2))
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = len(whole) // 2
    for content in (b"", b"no archive", whole[:-30], whole[:middle] + b"!" + whole[middle + 1 :]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: found no whole \.npz file"):
            read_npz(tmp_path / "a.npz", "images")
    for read, name in ((lambda path: read_npz(path, "images"), "nowhere.npz"), (map_npy, "nowhere.npy")):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: no such file or directory, expected an? \.np"):
            read(tmp_path / name)


def test_a_small_archive_that_would_unpack_to_gigabytes_is_refused_unread(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (600000000,), }"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        info = archive.getinfo("images.npy")
        info.file_size = 10 + len(text) + 600_000_000  # what the archive says of itself
    with pytest.raises(DataError, match=r"shape 600000000 in 600,000,0.. bytes, expected .* at most 536,870,912"):
        read_npz(tmp_path / "a.npz", "images")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_is_compressed_as_numpy_does_not_is_refused_before_it_is_unpacked(method, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", npy(np.zeros((1, 32, 32, 3), np.uint8)) + bytes(1 << 26))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02") + 24  # what the directory says of the size, which is a lie now
    raw[at : at + 4] = struct.pack("<I", 128 + 32 * 32 * 3)
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.npz: found no whole \.npz file"):
            read_npz(path, "images")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_claims_more_than_the_archive_has_takes_nothing(tmp_path):
    zipped(tmp_path / "a.npz", images=npy(levels(2)))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 20 : entry + 24] = struct.pack("<I", 2**31 - 1)
    (tmp_path / "a.npz").write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.npz: found no whole \.npz file"):
            read_npz(tmp_path / "a.npz", "images")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["|u1", "<i2", ">i8", "<f2", ">f8", "|b1"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_any_header_that_numpy_writes_is_read(dtype, shape, tmp_path):
    array = np.asfortranarray(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype))
    for version in ((1, 0), (2, 0), (3, 0)):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, array, version)
        zipped(tmp_path / "a.npz", x=(tmp_path / "a.npy").read_bytes())
        for found in (map_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz", "x")):
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)
    header = (tmp_path / "a.npy").read_bytes().replace(b"(2, 3)", b"(2L, 3L)").replace(b"'", b"'")
    if shape == (2, 3):  # as Python 2 wrote it
        (tmp_path / "a.npy").write_bytes(header.replace(b"}  ", b"}", 1))
        assert np.array_equal(map_npy(tmp_path / "a.npy"), array)


# CIFAR-10.1 and CIFAR-10.2


def new_test_set(name: str, folder, n: int = 6, labels: np.ndarray | None = None) -> np.ndarray:
    pixels, labels = levels(n), np.arange(n) % 10 if labels is None else labels
    folder.mkdir(parents=True, exist_ok=True)
    files = cifar.TEST_SETS[name]
    if len(files) == 2:
        np.save(folder / files[0], pixels)
        np.save(folder / files[1], labels.astype(np.int32))
    else:
        np.savez(folder / files[0], images=pixels, labels=labels)
    return pixels


@pytest.mark.parametrize("place", ["", "CIFAR-10.x"])
@pytest.mark.parametrize("name", cifar.TEST_SETS)
def test_a_new_test_set_is_read_from_a_folder_or_one_in_it(name, place, tmp_path):
    pixels = new_test_set(name, tmp_path / place)
    images = cifar.read_test_set(name, tmp_path)
    assert torch.equal(images.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert images.images.is_contiguous()
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_new_test_set_that_is_missing_or_not_what_it_should_be_is_refused(tmp_path):
    for root, found in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "an empty folder")):
        with pytest.raises(DataError, match=rf"found {found}, expected cifar10\.1_v6_data\.npy and cifar10\.1_v6_l"):
            cifar.read_test_set("cifar10.1", root)
    new_test_set("cifar10.1", tmp_path, labels=np.array([0, 1, 2, 3, 4, 10]))
    with pytest.raises(DataError, match=r"v6_labels\.npy: found label 10 at image 5, expected 0 to 9"):
        cifar.read_test_set("cifar10.1", tmp_path)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(5))
    with pytest.raises(DataError, match="found 5 labels, expected 6"):
        cifar.read_test_set("cifar10.1", tmp_path)
    np.save(tmp_path / "cifar10.1_v6_data.npy", levels(6).astype(np.float32))
    with pytest.raises(DataError, match="found float32 data of shape 6x32x32x3, expected uint8 of shape nx32x32x3"):
        cifar.read_test_set("cifar10.1", tmp_path)
    np.savez(tmp_path / "cifar102_test.npz", images=np.uint8(5), labels=np.arange(5))
    with pytest.raises(DataError, match="found uint8 data of shape scalar"):
        cifar.read_test_set("cifar10.2", tmp_path)


# CIFAR-10-C


def official(folder, labels: torch.Tensor, names=("fog",)) -> np.ndarray:
    """As published, with fewer images."""
    folder.mkdir(parents=True)
    pixels = levels(5 * len(labels), seed=3)
    for name in names:
        np.save(folder / f"{name}.npy", pixels)
    np.save(folder / "labels.npy", np.tile(labels.numpy(), 5).astype(np.uint8))
    return pixels


def test_the_official_images_of_a_severity_are_those_at_its_place(tmp_path):
    labels = torch.tensor([3, 1, 4, 1])
    pixels = official(tmp_path / "CIFAR-10-C", labels)
    found = cifar.locate_corrupted("cifar10", tmp_path, labels)
    for severity in range(1, 6):
        some = found.images("fog", severity, torch.tensor([2, 0]))
        start = 4 * (severity - 1)
        assert torch.equal(some, torch.from_numpy(pixels[[start + 2, start]]).permute(0, 3, 1, 2))
    assert cifar.locate_corrupted("cifar100", tmp_path, labels) is None
    assert cifar.locate_corrupted("digits", tmp_path, labels) is None
    assert cifar.locate_corrupted("cifar10", tmp_path / "nowhere", labels) is None


def test_official_images_that_are_missing_damaged_or_of_other_labels_are_refused(tmp_path):
    labels = torch.tensor([3, 1, 4, 1])
    folder = tmp_path / "CIFAR-10-C"
    official(folder, labels)
    found = cifar.locate_corrupted("cifar10", tmp_path, labels)
    with pytest.raises(DataError, match=r"snow\.npy: no such file or directory"):
        found.images("snow", 1, torch.tensor([0]))
    np.save(folder / "snow.npy", levels(19))
    with pytest.raises(DataError, match=r"found uint8 data of shape 19x32x32x3, expected uint8 of shape 20x32x32x3"):
        found.images("snow", 1, torch.tensor([0]))
    np.save(folder / "snow.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"snow\.npy: found no whole \.npy array"):
        found.images("snow", 1, torch.tensor([0]))
    with pytest.raises(
        DataError, match=r"labels\.npy: found uint8 .* expected the labels of the 4 test images, 5 times"
    ):
        cifar.locate_corrupted("cifar10", tmp_path, labels + 1)
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels\.npy: no such file"):
        cifar.locate_corrupted("cifar10", tmp_path, labels)
