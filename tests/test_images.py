"""The specification of budgetnet.images: any one input is read, and none is executed."""

import contextlib
import functools
import os
import pathlib
import pickle
import pickletools
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import dump, picture, random_batch, refused, save, write_binary_batches, write_python_batches, write_tree

from budgetnet import data
from budgetnet.decoding import MOST_CLASSES
from budgetnet.errors import DataError
from budgetnet.images import (
    Images,
    checked_labels,
    children,
    few,
    image_names,
    list_classes,
    list_folder,
    listing,
    read_binary,
    read_bytes,
    read_images,
)

fuzz = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused(path):
    """Check that a file is either read whole or refused as `refused` checks it; any other exception comes through."""
    try:
        images = read_images(path).images
    except DataError:
        refused(lambda: read_images(path), path)
    else:
        assert images.shape[1:] == (3, 32, 32)


# Contest pickles and arrays


@pytest.mark.real_data
def test_the_real_contest_file_has_ten_thousand_images_and_unique_ids(real_data):
    images = read_images(real_data / "contest" / "cifar_test_nolabel.pkl")
    assert images.images.shape == (10_000, 3, 32, 32)
    assert len(set(images.ids.tolist())) == 10_000
    assert images.labels is None


LAYOUTS = {
    "NHWC": lambda images: images.transpose(0, 2, 3, 1).copy(),
    "NHWC in Fortran order": lambda images: np.asfortranarray(images.transpose(0, 2, 3, 1)),
    "NCHW": lambda images: images,
    "rows": lambda images: images.reshape(len(images), -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", [b"data", "data"])
def test_a_contest_pickle_is_read_whatever_its_layout_protocol_and_keys(tmp_path, layout, protocol, key):
    images = random_batch(4, 0)[0].reshape(-1, 3, 32, 32)
    ids = np.array([7, 3, 5, 1], ">i4" if protocol == 3 else "i8")
    ids_key = b"ids" if key == b"data" else "ids"
    path = dump(tmp_path / "contest.pkl", {key: LAYOUTS[layout](images), ids_key: ids}, protocol)
    read = read_images(path)
    assert torch.equal(read.images, torch.from_numpy(images))
    assert read.ids.tolist() == [7, 3, 5, 1]
    assert read.ids.dtype == torch.int64
    assert read.labels is None


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_pickles_of_old_and_new_numpy_are_read(tmp_path, core):
    pixels = random_batch(2, 0)[0]
    raw = pickle.dumps({b"data": pixels, b"ids": [1, 2]}, 2)
    raw = raw.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core + b".")
    (tmp_path / "old").write_bytes(raw)
    assert read_images(tmp_path / "old").images.numpy().reshape(2, -1).tolist() == pixels.tolist()


def test_a_pickle_without_ids_has_none_and_plain_extras_are_ignored(tmp_path):
    extras = {b"names": [b"a", "b", 1.5, None, (1, 2), {3: []}], b"mean": np.float32(0.5), b"s": np.array(["x"])}
    path = dump(tmp_path / "c.pkl", {b"data": random_batch(2, 0)[0], b"labels": [3, 9], **extras})
    read = read_images(path)
    assert read.ids is None
    assert read.labels.tolist() == [3, 9]


@pytest.mark.parametrize(
    "ids", [[1, 1, 2], [1, 2], [1, 2, "3"], [1, 2, 3.0], [1, 2, 2**64], "abc", np.array([1, 2, 2**63], "u8")]
)
def test_ids_that_are_not_unique_integers_one_an_image_are_refused(tmp_path, ids):
    path = dump(tmp_path / "c.pkl", {b"data": random_batch(3, 0)[0], b"ids": ids})
    refused(lambda: read_images(path), path, "id")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((2, 3, 32, 31), np.uint8),
        np.zeros((2, 3071), np.uint8),
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32, 4), np.uint8),
    ],
)
def test_arrays_of_a_wrong_size_or_type_are_refused_with_their_shape(tmp_path, pixels):
    shape = "x".join(map(str, pixels.shape)) or "scalar"
    pickled = dump(tmp_path / "c.pkl", {b"data": pixels})
    np.save(tmp_path / "c.npy", pixels)
    for path in (pickled, tmp_path / "c.npy"):
        refused(lambda path=path: read_images(path), path, shape, pixels.dtype, "nx32x32x3")


@pytest.mark.parametrize(
    ("key", "batch", "most"), [("labels", True, 9), ("labels", False, MOST_CLASSES - 1), ("fine_labels", False, 99)]
)
@pytest.mark.parametrize("coded", [False, True])
def test_labels_are_read_up_to_the_last_class_that_there_can_be(tmp_path, key, batch, most, coded):
    def read(values):
        extras = {b"batch_label": b"1"} if batch else {}
        content = {b"data": random_batch(2, 0)[0], key.encode() if coded else key: values} | extras
        return read_images(dump(tmp_path / "c.pkl", content)).labels

    assert read([0, most]).tolist() == [0, most]
    for wrong in (-1, most + 1):
        told = f"{tmp_path / 'c.pkl'}: found label {wrong} at image 1, expected 0 to {most}"
        assert refused(lambda wrong=wrong: read([0, wrong])) == told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1, 2**64], "found labels beyond 64 bits, expected integers"),
        ([1, 2.0], "found labels that are no flat list of integers, expected one integer an image"),
        ([1, True], "found labels that are no flat list of integers, expected one integer an image"),
        ((1, 2), "found labels that are no flat list of integers, expected one integer an image"),
        (np.array([1.0, 2.0]), "found labels that are no flat list of integers, expected one integer an image"),
        (np.array([[1, 2]]), "found labels that are no flat list of integers, expected one integer an image"),
        ([1], "found 1 labels, expected 2, one an image"),
        (np.array([1, 2**63], "u8"), "found labels of 2**63 and more, expected integers of 64 bits with sign"),
        (np.array([1, 2**63 - 1], "u8"), f"found label {2**63 - 1} at image 1, expected 0 to {MOST_CLASSES - 1}"),
    ],
)
def test_labels_that_are_no_integers_one_an_image_are_told(tmp_path, values, told):
    path = dump(tmp_path / "c.pkl", {b"data": random_batch(2, 0)[0], b"labels": values})
    assert refused(lambda: read_images(path)) == f"{path}: {told}"


def test_labels_of_every_kind_of_integer_are_read(tmp_path):
    for kind in ("u1", "i2", ">i4", "u8", "i8"):
        path = dump(tmp_path / "c.pkl", {b"data": random_batch(2, 0)[0], b"labels": np.array([3, 1], kind)})
        assert read_images(path).labels.tolist() == [3, 1]
    for kind in ("u1", "i8"):
        assert checked_labels(path, np.array([], kind), 0, 10).tolist() == []
    for values, found in (([5, 5], "id 5 2 times"), ([1, 2**64], "ids beyond 64 bits"), ([1, 2, 3], "3 ids, ")):
        path = dump(tmp_path / "c.pkl", {b"data": random_batch(2, 0)[0], b"ids": values})
        refused(lambda path=path: read_images(path), f"found {found}")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({b"x": 1, "y": 2}, "the keys b'x', 'y'"),
        ({b"x" * 31: 1}, f"the keys b'{'x' * 30}'"),
        ({**dict.fromkeys("abcdef"), 1: 2}, "the keys 'a', 'b', 'c', 'd', 'e' and 1 more"),
        ({1: 2}, "the keys of no names"),
        ({}, "the keys of no names"),
        ({b"data": [1, 2]}, "data that is no array"),
    ],
)
def test_a_pickle_without_an_array_of_images_is_told_what_it_has(tmp_path, content, found):
    path = dump(tmp_path / "c.pkl", content)
    told = f"{path}: found {found}, expected a NumPy array of images under 'data'"
    assert refused(lambda: read_images(path)) == told


@pytest.mark.parametrize("content", [[1], 5, {1: 2, ("a", (2,)): 3}])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    path = dump(tmp_path / "c.pkl", content)
    refused(lambda: read_images(path), path)


@pytest.mark.parametrize("n", [1, 3])
def test_a_npy_array_is_read(tmp_path, n):
    images = random_batch(n, 0)[0].reshape(-1, 3, 32, 32)
    for pixels in (images, images.transpose(0, 2, 3, 1), images.reshape(n, -1)):
        np.save(tmp_path / "x.npy", pixels)
        assert torch.equal(read_images(tmp_path / "x.npy").images, torch.from_numpy(images))


def test_arrays_must_have_the_image_size_asked_for(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 48, 48, 3), np.uint8))
    assert read_images(tmp_path / "x.npy", 48).images.shape == (2, 3, 48, 48)
    write_binary_batches(tmp_path)
    refused(lambda: read_images(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", 48), "48x48")


# Hostile files


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(marker):
    import os
    import subprocess

    data_item = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, 2)
    encoded = b"c_codecs\nencode\nh\x00h\x01\x86R"
    nested = b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s."
    touch = f"open({str(marker)!r}, 'w')"
    return {
        "system": pickle.dumps({b"data": Call(os.system, f"touch {marker}")}, 2),
        "system by stack": pickle.dumps({b"data": Call(os.system, f"touch {marker}")}, 4),
        "subprocess": pickle.dumps(Call(subprocess.Popen, ["touch", str(marker)]), 5),
        "eval": pickle.dumps(Call(eval, touch)),
        "open": pickle.dumps({b"data": np.zeros(3), b"x": Call(open, str(marker), "w")}),
        "text protocol": f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
        "instance opcode": f"(S'touch {marker}'\nios\nsystem\n.".encode(),
        "numpy load": b"\x80\x02cnumpy\nload\nX\x01\x00\x00\x00a\x85R.",
        "numpy attribute": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.max\x93.",
        "getattr": pickle.dumps(Call(getattr, "", "join")),
        "partial": pickle.dumps(functools.partial(eval, touch)),
        "persistent id": b"\x80\x02Pabc\n.",
        "binary persistent id": b"\x80\x02K\x01Q.",
        "extension": b"\x80\x02\x82\x01.",
        "object array": pickle.dumps({b"data": np.array([{}, None], object)}, 2),
        "structured array": pickle.dumps({b"data": np.zeros(2, [("a", "u1")])}, 2),
        "name of many lines": b"\x80\x04\x8c\x04a\nb\x1b\x8c\x01c\x93.",
        "huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        "deep key": nested,
        "codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        "state of a constructor": b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__code__K\x01sb.",
        "nothing": b"",
        "many encodings of one text": (
            b"\x80\x02X\x00\x10\x00\x00"
            + b"a" * 4096
            + b"q\x000X\x06\x00\x00\x00latin1q\x010]("
            + encoded * 100
            + b"e."
        ),
        "allocation": b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        "shape beyond its bytes": data_item.replace(b"M\x00\x0c", b"M\xff\x7f"),
    }


@pytest.mark.parametrize("name", hostile_pickles("x"))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, name):
    path, marker = tmp_path / "evil.pkl", tmp_path / "marker"
    path.write_bytes(hostile_pickles(marker)[name])
    refused(lambda: read_images(path), path, "found", "expected")
    assert not marker.exists()
    folder = write_python_batches(tmp_path)
    (folder / "data_batch_1").write_bytes(path.read_bytes())
    refused(lambda: data.load("cifar10", tmp_path), folder / "data_batch_1")
    assert not marker.exists()


def test_what_a_hostile_pickle_asks_for_is_named(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Call(eval, "1"), 4))
    refused(lambda: read_images(path), "builtins.eval", "nothing in it was run")


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    state = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x0c\x00\x00\x00__defaults__)sN\x86b."
    (tmp_path / "evil").write_bytes(state)
    refused(lambda: read_images(tmp_path / "evil"))
    path = dump(tmp_path / "good", {b"data": random_batch(2, 0)[0]})
    assert len(read_images(path)) == 2


@fuzz
@given(draw=st.data(), protocol=st.sampled_from([0, 2, 4, 5]))
def test_a_damaged_pickle_gives_images_or_a_data_error_and_nothing_else(tmp_path, draw, protocol):
    pixels = np.zeros((1, 3072), np.uint8)
    raw = bytearray(pickle.dumps({b"data": pixels, b"ids": [4], b"labels": np.array([1]), b"x": np.int64(2)}, protocol))
    structure = [position for _, _, position in pickletools.genops(bytes(raw))]
    places = st.one_of(st.sampled_from(structure), st.integers(0, len(raw) - 1))
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        raw[place] = value
    place, inserted = draw.draw(st.tuples(places, st.binary(max_size=6)))
    raw[place:place] = inserted
    path = tmp_path / "fuzz.pkl"
    path.write_bytes(raw[: draw.draw(st.one_of(st.just(len(raw)), places))])
    read_or_refused(path)


@fuzz
@given(raw=st.binary(max_size=200))
@pytest.mark.parametrize("suffix", ["", ".pkl", ".xyz", ".bin", ".npy", ".png", ".jpg", ".gif"])
def test_garbage_of_any_kind_is_a_data_error_that_names_the_file(tmp_path, suffix, raw):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(raw)
    refused(lambda: read_images(path), path)


@fuzz
@given(draw=st.data())
def test_a_damaged_npy_file_gives_images_or_a_data_error_and_nothing_else(tmp_path, draw):
    path = tmp_path / "fuzz.npy"
    np.save(path, np.zeros((1, 3072), np.uint8))
    raw = bytearray(path.read_bytes())
    for place, value in draw.draw(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4)):
        raw[place] = value
    path.write_bytes(raw)
    read_or_refused(path)


@fuzz
@given(extra=st.integers(-3073, 3073), label=st.integers(0, 255))
def test_a_binary_batch_is_read_exactly_when_its_size_and_labels_are_right(tmp_path, extra, label):
    path = tmp_path / "x.bin"
    path.write_bytes((bytes([label]) + bytes(3072)) * 2 + bytes(max(extra, 0)))
    if extra < 0:
        path.write_bytes(path.read_bytes()[:extra])
    if extra in (-3073, 0, 3073) and label < 10:
        assert read_images(path).labels.tolist() == ([label, label, 0])[: 2 + extra // 3073]
    else:
        refused(lambda: read_images(path), path, "expected")


# Image files


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "tiff", "ppm", "PNG"])
def test_every_kind_of_image_file_is_found(tmp_path, suffix):
    save(Image.new("RGB", (20, 10), (255, 0, 0)), tmp_path / f"x.{suffix}")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    read = read_images(tmp_path)
    assert read.names == (f"x.{suffix}",)
    assert (read.images[0].float().mean((1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    image = picture(1).convert(mode)
    path = save(image, tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_images(path).images[0].numpy(), expected)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = picture(1).convert("P")
    image.info["transparency"] = bytes(range(256))
    path = save(image, tmp_path / "x.png")
    assert np.array_equal(
        read_images(path).images[0].numpy(), np.asarray(image.convert("RGBA").convert("RGB")).transpose(2, 0, 1)
    )


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(3)
    image.save(tmp_path / "x.png", exif=exif)
    turned = np.asarray(image.rotate(-90)).transpose(2, 0, 1)
    assert np.array_equal(read_images(tmp_path / "x.png").images[0].numpy(), turned)


def test_an_image_of_16_bits_is_refused_rather_than_clipped(tmp_path):
    path = save(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), tmp_path / "deep.png")
    refused(lambda: read_images(path), path, "I;16", "8 bits")


def test_a_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 9, 1, 100):
        save(picture(i), tmp_path / f"img{i}.png")
    read = read_images(tmp_path)
    assert read.names == ("img1.png", "img9.png", "img10.png", "img100.png")
    assert np.array_equal(read.images[1].numpy(), np.asarray(picture(9)).transpose(2, 0, 1))
    assert read.labels is None


def test_class_folders_are_read_as_one_input(tmp_path):
    write_tree(tmp_path)
    read = read_images(tmp_path / "train")
    assert read.labels.tolist() == [0, 1, 1, 1, 2]
    save(picture(0), tmp_path / "train" / "stray.png")
    refused(lambda: read_images(tmp_path / "train"), "stray.png", "ant/")


def test_a_single_image_is_read(tmp_path):
    path = save(picture(4), tmp_path / "one.png")
    read = read_images(path)
    assert read.names == ("one.png",)
    assert read.images.shape == (1, 3, 32, 32)
    assert read.images.is_contiguous()


def test_an_image_that_claims_a_huge_size_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)))
    refused(lambda: read_images(path), path)


def chunk(name, content, length=None):
    return (
        struct.pack(">I", len(content) if length is None else length)
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def test_a_chunk_that_claims_gigabytes_takes_nothing(tmp_path):
    raw = save(picture(0), tmp_path / "a.png").read_bytes()
    end = raw.index(b"IEND") - 4
    more = chunk(b"IDAT", b"", 2**32 - 1)
    (tmp_path / "a.png").write_bytes(raw[:33] + raw[33:end] + more + raw[end:])
    tracemalloc.start()
    try:
        read_or_refused(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_image_of_more_pixels_than_a_photo_has_is_refused_before_it_is_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 8193, 8192, 8, 2, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(raw)
    refused(lambda: read_images(tmp_path / "a.png"), "8,193x8,192 pixels", "at most 67,108,864")


def test_an_image_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**31)
    refused(lambda: read_images(tmp_path / "a.png"), "more than 268,435,456 bytes")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(x) show\n%%EOF\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tif"])
def test_an_image_of_another_kind_than_the_usual_is_refused_and_starts_no_interpreter(tmp_path, monkeypatch, suffix):
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path / 'marker'}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / f"a{suffix}").write_bytes(POSTSCRIPT)
    refused(lambda: read_images(tmp_path / f"a{suffix}"), "no readable image")
    assert not (tmp_path / "marker").exists()
    with contextlib.suppress(OSError), Image.open(tmp_path / f"a{suffix}") as opened:
        opened.load()
    assert (tmp_path / "marker").exists()  # which it would be, if any kind were taken


def test_what_is_read_says_what_it_is_by_its_suffix_in_any_case(tmp_path):
    folder = write_tree(tmp_path) / "train" / "cat"
    assert read_images(folder).kind == read_images(folder.parent).kind == "image folder"
    assert read_images(folder / "1.png").kind == "image"
    np.save(tmp_path / "x.npy", random_batch(3, 0)[0])
    (tmp_path / "x.npy").rename(tmp_path / "x.NPY")
    assert read_images(tmp_path / "x.NPY").kind == "NumPy array"
    assert read_images(write_binary_batches(tmp_path) / "test_batch.bin").kind == "CIFAR-10 binary batch"
    assert read_images(dump(tmp_path / "x.any", {b"data": random_batch(3, 0)[0]})).kind == "contest pickle"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tif", ".webp"])
@pytest.mark.parametrize("name", ["nosuffix", "a.xyz"])
def test_an_image_without_a_suffix_of_images_is_known_by_how_it_begins(tmp_path, name, suffix):
    path = save(picture(0), tmp_path / f"a{suffix}")
    expected = read_images(path).images
    read = read_images(path.rename(tmp_path / name))
    assert (read.kind, read.names) == ("image", (name,))
    assert torch.equal(read.images, expected)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["data_batch_1", "contest.dat", "contest.PKL", "contest.pickle"])
def test_a_pickle_is_one_whatever_its_suffix(tmp_path, name, protocol):
    path = dump(tmp_path / name, {"data": random_batch(3, 0)[0]}, protocol)
    assert (read_images(path).kind, len(read_images(path))) == ("contest pickle", 3)


def test_a_pickle_by_its_suffix_is_refused_as_a_pickle(tmp_path):
    for name in ("a.pkl", "a.pickle"):
        (tmp_path / name).write_bytes(b"PK")
        assert "no kind that is read" not in refused(lambda name=name: read_images(tmp_path / name), name)


def test_a_pickle_is_read_from_a_pipe():
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        pickle.dump({"data": random_batch(3, 0)[0]}, file)
    assert len(read_images(pathlib.Path(f"/dev/fd/{reading}"))) == 3
    os.close(reading)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("z.npz", b"PK\x03\x04"),
        ("labels.csv", b"ID,Labels\n0,1\n"),
        ("a.pdf", b"%PDF-1.7\n"),
        ("notes.txt", b"Pictures of cats\n"),
        ("x.parquet", b"PAR1"),
        ("empty.dat", b""),
    ],
)
def test_a_file_of_no_kind_that_is_read_is_told_which_are(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(lambda: read_images(tmp_path / name), name, "no kind that is read", ".png", ".npy", ".bin", ".pkl")


def test_missing_and_empty_inputs_are_refused(tmp_path):
    refused(lambda: read_images(tmp_path / "nowhere"), "nowhere", "no such")
    refused(lambda: read_images(tmp_path), tmp_path, "empty folder")


def test_a_folder_of_no_images_is_told_which_of_its_files_holds_some(tmp_path):
    (tmp_path / "labels.csv").write_text("ID,Labels\n")
    assert refused(lambda: read_images(tmp_path), "found labels.csv, expected images").endswith(".webp)")
    (tmp_path / "test.pkl").write_bytes(b"")
    refused(
        lambda: read_images(tmp_path),
        f"expected images (.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, "
        f".webp): name {tmp_path / 'test.pkl'} itself",
    )


# What is in a folder


def test_a_folder_is_told_by_its_first_names(tmp_path):
    assert listing(tmp_path / "none") == "no such folder"
    assert listing(tmp_path) == "an empty folder"
    for count, found in ((1, "1"), (4, "1, 2, 3, 4"), (5, "1, 2, 3, 4 and 1 more"), (11, "1, 2, 3, 4 and 7 more")):
        for name in range(1, count + 1):
            (tmp_path / str(name)).touch()
        (tmp_path / ".hidden").touch()
        assert listing(tmp_path) == found
    assert listing(tmp_path / "1") == "a file"
    assert [few("abcdef"[:n]) for n in (0, 1, 5, 6)] == ["", "a", "a, b, c, d, e", "a, b, c, d, e and 1 more"]
    assert few(iter("abcd"), 2) == "a, b and 2 more"


def test_what_is_in_a_folder_comes_in_natural_order_without_what_is_hidden(tmp_path):
    for name in ("a10.png", "a2.PNG", "b.txt", ".a.png", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "a3.png").mkdir()
    assert [child.name for child in children(tmp_path)] == ["a2.PNG", "a3.png", "a10.png", "b.txt"]
    assert image_names(tmp_path) == ["a2.PNG", "a10.png"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    told = f"{tmp_path / 'none'}: no such file or directory, expected a folder that can be read: check --data"
    assert refused(lambda: children(tmp_path / "none")) == told
    assert refused(lambda: image_names(tmp_path / "none")) == told
    told = f"{tmp_path}: is a directory, expected a file that can be read"
    assert refused(lambda: read_bytes(tmp_path)) == told
    told = f"{tmp_path / 'none'}: no such file or directory, expected a file that can be read"
    assert refused(lambda: read_binary(tmp_path / "none")) == told

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").touch()
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    told = f"{tmp_path / 'file'}: permission denied, expected a file that can be read"
    assert refused(lambda: read_images(tmp_path / "file")) == told


def test_a_folder_of_images_or_of_classes_but_not_of_both(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.npy").mkdir()
    found = "expected images (.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)"
    assert refused(lambda: list_folder(tmp_path)) == f"{tmp_path}: found empty, x.npy, {found}"
    save(picture(0), tmp_path / "cat" / "2.png")
    save(picture(0), tmp_path / "cat" / "10.png")
    told = f"{tmp_path / 'empty'}: found no images, expected at least one of this class, or no such folder"
    assert refused(lambda: list_folder(tmp_path)) == refused(lambda: list_classes(tmp_path)) == told
    (tmp_path / "empty").rmdir()
    (tmp_path / "x.npy").rmdir()
    (tmp_path / "notes.txt").touch()
    save(picture(0), tmp_path / "ant" / "1.png")
    names, labels = list_folder(tmp_path)
    assert names == ("ant/1.png", "cat/2.png", "cat/10.png")
    assert labels.tolist() == [0, 1, 1]
    assert list_classes(tmp_path)[2] == ("ant", "cat")
    save(picture(0), tmp_path / "1.png")
    told = f"{tmp_path}: found images (1.png) beside folders of images (ant/), expected one kind"
    assert refused(lambda: list_folder(tmp_path)) == told
    told = f"{tmp_path / 'ant'}: found 1.png, expected a folder of images for each class"
    assert refused(lambda: list_classes(tmp_path / "ant")) == told


def test_of_files_that_hold_images_the_first_is_named(tmp_path):
    for name in ("b.pickle", "a.NPY"):
        (tmp_path / name).touch()
    assert refused(lambda: list_folder(tmp_path)).endswith(f": name {tmp_path / 'a.NPY'} itself")


@pytest.mark.parametrize("label", [9, 10])
def test_a_binary_batch_has_ten_classes(tmp_path, label):
    path = tmp_path / "batch.bin"
    path.write_bytes(bytes([0, *[1] * 3072, label, *[2] * 3072]))
    if label < 10:
        read = read_images(path)
        assert read.labels.tolist() == [0, 9]
        assert read.images.flatten(1).float().mean(1).tolist() == [1, 2]
    else:
        assert refused(lambda: read_images(path)) == f"{path}: found label 10 at image 1, expected 0 to 9"


def test_what_is_not_there_is_told_with_what_is_read(tmp_path):
    told = "no such file or folder, expected a contest pickle, a batch, an image or a folder of images"
    assert refused(lambda: read_images(tmp_path / "none")) == f"{tmp_path / 'none'}: {told}"


# What was read


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "images are torch.float32 (2, 3, 4, 4), expected uint8 (n, c, h, w)"),
        (
            {"images": torch.zeros(3, 4, 4, dtype=torch.uint8)},
            "images are torch.uint8 (3, 4, 4), expected uint8 (n, c, h, w)",
        ),
        ({"labels": torch.zeros(3)}, "3 labels for 2 images, expected one each"),
        ({"ids": torch.zeros(1)}, "1 ids for 2 images, expected one each"),
        ({"names": ("a",)}, "1 names for 2 images, expected one each"),
    ],
)
def test_images_refuse_what_does_not_fit(wrong, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        Images(**({"images": torch.zeros((2, 3, 4, 4), dtype=torch.uint8)} | wrong))


def test_images_have_labels_where_some_are_needed():
    pixels = torch.zeros((2, 3, 4, 4), dtype=torch.uint8)
    assert Images(pixels).kind == "images"
    labels = torch.tensor([1, 0])
    assert Images(pixels, labels).targets is labels
    assert refused(lambda: Images(pixels).targets) == "these images have no labels, expected one each"
