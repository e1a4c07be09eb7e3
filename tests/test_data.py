"""The specification of budgetnet.data, but for the download (test_download.py)."""

import collections
import hashlib
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from samples import (
    CLASSES,
    dump,
    picture,
    random_batch,
    refused,
    save,
    write_binary_batches,
    write_cifar100,
    write_python_batches,
    write_tree,
)

from budgetnet import cifar, data
from budgetnet.errors import DataError

# The official batches


def slow_binary_record(raw, index):
    """The format as its authors describe it, a byte at a time: label, then red, green and blue rows."""
    start = index * 3073
    image = [[[raw[start + 1 + c * 1024 + y * 32 + x] for x in range(32)] for y in range(32)] for c in range(3)]
    return image, raw[start]


def test_binary_batches_are_read_as_the_slow_reference_reads_them(tmp_path):
    folder = write_binary_batches(tmp_path)
    dataset = data.load("cifar10", tmp_path)
    raw = b"".join((folder / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6))
    for index in range(30):
        image, label = slow_binary_record(raw, index)
        assert dataset.train.images[index].tolist() == image
        assert dataset.train.labels[index] == label


def test_python_and_binary_batches_of_the_same_images_are_the_same_data_set(tmp_path):
    write_python_batches(tmp_path)
    (tmp_path / "b").mkdir()
    write_binary_batches(tmp_path / "b")
    one, two = data.load("cifar10", tmp_path), data.load("cifar10", tmp_path / "b")
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.test.labels, two.test.labels)
    assert one.classes == two.classes == CLASSES == cifar.CIFAR10_CLASSES
    assert one.checksum == two.checksum


@pytest.mark.parametrize("write", [write_python_batches, write_binary_batches])
def test_the_folder_may_hold_the_batches_or_be_them(tmp_path, write):
    folder = write(tmp_path)
    assert data.load("cifar10", folder).checksum == data.load("cifar10", tmp_path).checksum


@pytest.mark.parametrize("write", [write_python_batches, write_binary_batches])
def test_images_are_contiguous_bytes_and_labels_64_bit(tmp_path, write):
    write(tmp_path)
    train = data.load("cifar10", tmp_path).train
    assert train.images.dtype == torch.uint8
    assert train.images.shape == (30, 3, 32, 32)
    assert train.images.is_contiguous()
    assert train.labels.dtype == torch.int64
    assert len(train) == 30


def test_cifar100_has_fine_labels(tmp_path):
    write_cifar100(tmp_path)
    dataset = data.load("cifar100", tmp_path)
    assert (dataset.name, len(dataset.classes)) == ("cifar100", 100)
    assert dataset.train.labels.tolist() == random_batch(9, 0, 100)[1].tolist()
    assert dataset.test.images.reshape(4, -1).tolist() == random_batch(4, 1, 100)[0].tolist()


def test_the_checksum_is_that_of_all_pixels_and_labels_in_order(tmp_path):
    write_python_batches(tmp_path)
    dataset = data.load("cifar10", tmp_path)
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.test):
        digest.update(part.images.numpy().tobytes() + struct.pack(f"<{len(part)}q", *part.labels.tolist()))
    assert dataset.checksum == digest.hexdigest()


def test_a_missing_batch_is_named(tmp_path):
    (write_python_batches(tmp_path) / "data_batch_3").unlink()
    refused(lambda: data.load("cifar10", tmp_path), "cifar-10-batches-py", "data_batch_3", "download")


@pytest.mark.parametrize("cut", [0, 1, 100, 3000, 3073 * 2, -1])
@pytest.mark.parametrize(
    ("write", "name"), [(write_python_batches, "data_batch_2"), (write_binary_batches, "test_batch.bin")]
)
def test_a_truncated_batch_is_named(tmp_path, write, name, cut):
    path = write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:cut])
    refused(lambda: data.load("cifar10", tmp_path), path, "found", "expected")


def test_a_batch_with_fewer_images_than_its_like_is_named(tmp_path):
    path = write_python_batches(tmp_path) / "data_batch_2"
    pixels, labels = random_batch(5, 0)
    dump(path, {b"data": pixels, b"labels": labels.tolist()})
    refused(lambda: data.load("cifar10", tmp_path), path, "5 images", "6")


def test_garbage_instead_of_a_batch_is_named(tmp_path):
    path = write_python_batches(tmp_path) / "test_batch"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(lambda: data.load("cifar10", tmp_path), path)


@pytest.mark.parametrize("label", [-1, 10, 255, 2**70])
def test_a_label_out_of_range_is_named(tmp_path, label):
    path = write_python_batches(tmp_path) / "data_batch_1"
    dump(path, {b"data": random_batch(6, 0)[0], b"labels": [0, 1, label, 3, 4, 5]})
    refused(lambda: data.load("cifar10", tmp_path), path, "label")


def test_a_binary_label_out_of_range_is_named(tmp_path):
    path = write_binary_batches(tmp_path) / "data_batch_1.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    refused(lambda: data.load("cifar10", tmp_path), path, "label 10 at image 0", "0 to 9")


@pytest.mark.parametrize("labels", [[0] * 5, ["a"] * 6, [0.5] * 6, [True] * 6, None, {}, np.zeros((6, 1), int)])
def test_labels_that_are_not_one_integer_an_image_are_refused(tmp_path, labels):
    path = write_python_batches(tmp_path) / "data_batch_1"
    dump(path, {b"data": random_batch(6, 0)[0], b"labels": labels})
    refused(lambda: data.load("cifar10", tmp_path), path, "label")


@pytest.mark.parametrize("kind", [list, np.array, lambda labels: [np.uint8(label) for label in labels]])
def test_labels_may_be_a_list_an_array_or_a_list_of_numpy_integers(tmp_path, kind):
    path = write_python_batches(tmp_path) / "data_batch_1"
    dump(path, {b"data": random_batch(6, 0)[0], b"labels": kind([5, 4, 3, 2, 1, 0])})
    assert data.load("cifar10", tmp_path).train.labels[:6].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("names", [None, [b"cat"], [b"\xff"] * 10, [10**300] * 10, [[]] * 10, [None] * 10])
def test_damaged_class_names_are_refused(tmp_path, names):
    path = write_python_batches(tmp_path) / "batches.meta"
    dump(path, {b"label_names": names})
    refused(lambda: data.load("cifar10", tmp_path), path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "folder"])
def test_an_explicit_folder_without_the_data_is_an_error_that_says_what_was_looked_for(tmp_path, name):
    (tmp_path / "empty").mkdir()
    expected = {"cifar10": "cifar-10-batches-py/", "cifar100": "cifar-100-python/", "folder": "train/<class>/*"}[name]
    for folder, found in ((tmp_path / "missing", "no such"), (tmp_path / "empty", "empty folder")):
        refused(lambda folder=folder: data.load(name, folder), folder, found, expected)
    if name != "folder":
        refused(lambda: data.load(name, tmp_path), f"budgetnet data download {name}", "empty")


def test_the_environment_names_the_default_folder_and_forbids_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETNET_DATA", str(tmp_path))
    assert data.default_folder() == tmp_path
    refused(lambda: data.load("cifar10", None), tmp_path, "cifar-10-batches-py/")
    monkeypatch.delenv("BUDGETNET_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_folder() == tmp_path / "cache" / "budgetnet"


def test_the_default_folder_may_start_at_home(monkeypatch):
    monkeypatch.setenv("BUDGETNET_DATA", "~/images")
    assert data.default_folder() == Path.home() / "images"


def test_without_a_folder_data_is_looked_for_in_the_default_one(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETNET_DATA", str(write_tree(tmp_path)))
    assert data.num_classes("folder", None) == 3
    assert data.load("folder", None).classes == ("ant", "cat", "dog")
    write_python_batches(tmp_path)
    assert data.load("cifar10", None).classes == CLASSES


def test_all_folders_that_a_data_set_may_be_in_are_said_of_a_given_one(tmp_path, monkeypatch):
    monkeypatch.delenv("BUDGETNET_DATA", raising=False)
    refused(lambda: data.load("cifar10", tmp_path), "expected cifar-10-batches-py/ or cifar-10-batches-bin/: name")


@pytest.mark.real_data
def test_real_cifar10_has_the_published_shape_and_pixel_statistics(real_data):
    dataset = data.load("cifar10", real_data)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    statistics = data.stats(dataset.train)
    assert statistics.counts == (5000,) * 10
    assert data.stats(dataset.test).counts == (1000,) * 10
    assert [round(x, 5) for x in statistics.mean] == [0.49140, 0.48216, 0.44653] == list(dataset.mean)
    assert [round(x, 5) for x in statistics.std] == [0.24703, 0.24349, 0.26159] == list(dataset.std)
    assert dataset.classes == CLASSES


# Digits


def test_digits_are_the_real_ones_brought_to_32_pixels_and_three_channels():
    from sklearn.datasets import load_digits

    dataset = data.load("digits", None)
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("digits", 1438, 359)
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.images.shape[1:] == (3, 32, 32)
    both = torch.cat([dataset.train.images, dataset.test.images])
    small = both[:, :, ::4, ::4]
    assert torch.equal(small.repeat_interleave(4, 2).repeat_interleave(4, 3), both)
    assert torch.equal(small[:, 0], small[:, 2])
    found = collections.Counter(bytes(image.flatten().tolist()) for image in small[:, 0])
    levels = [round(255 * level / 16) for level in range(17)]
    expected = collections.Counter(bytes(levels[int(v)] for v in image.ravel()) for image in load_digits().images)
    assert found == expected


def test_digits_without_scikit_learn_or_its_file_are_one_line(tmp_path, monkeypatch):
    for nothing in (None, SimpleNamespace(submodule_search_locations=None)):
        monkeypatch.setattr(data, "find_spec", lambda name, found=nothing: found)
        with pytest.raises(DataError, match="scikit-learn, which carries the digits, is not installed: pip install"):
            data.load("digits", None)
    monkeypatch.setattr(data, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/datasets/data/digits.csv.gz is not there: install")):
        data.load("digits", None)


def test_the_normalisation_of_digits_is_that_of_its_training_pixels():
    dataset = data.load("digits", None)
    statistics = data.stats(dataset.train)
    assert statistics.mean == pytest.approx(dataset.mean, abs=5e-6)
    assert statistics.std == pytest.approx(dataset.std, abs=5e-6)


def test_digits_are_the_same_every_time():
    assert data.load("digits", None).checksum == data.load("digits", None).checksum


# Folder trees


def test_a_folder_tree_is_read_with_classes_from_its_folders(tmp_path):
    write_tree(tmp_path)
    dataset = data.load("folder", tmp_path)
    assert (dataset.name, dataset.classes) == ("folder", ("ant", "cat", "dog"))
    assert dataset.train.names == ("ant/a.png", "cat/1.png", "cat/2.png", "cat/10.png", "dog/x.bmp")
    assert dataset.train.labels.tolist() == [0, 1, 1, 1, 2]
    assert dataset.test.names == ("cat/z.png", "dog/y.png")
    assert dataset.test.labels.tolist() == [1, 2]
    expected = np.asarray(picture(2)).transpose(2, 0, 1)
    assert np.array_equal(dataset.train.images[2].numpy(), expected)


def test_the_normalisation_of_a_folder_tree_is_that_of_its_training_pixels(tmp_path):
    write_tree(tmp_path)
    dataset = data.load("folder", tmp_path)
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_the_folder_may_hold_the_tree(tmp_path):
    write_tree(tmp_path / "pets")
    assert len(data.load("folder", tmp_path).train) == 5
    write_tree(tmp_path / "other")
    refused(lambda: data.load("folder", tmp_path), "2 trees", "other", "pets")


def test_images_of_any_size_are_resized(tmp_path):
    write_tree(tmp_path)
    image = picture(50, (70, 41))
    save(image, tmp_path / "train" / "cat" / "1.png")
    train = data.load("folder", tmp_path, 48).train
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert train.images.shape[1:] == (3, 48, 48)
    assert np.array_equal(train.images[1].numpy(), expected)


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: raw[:100], lambda raw: b"text", lambda raw: raw[:-900]]
)
def test_an_unreadable_image_is_named(tmp_path, damage):
    write_tree(tmp_path)
    path = tmp_path / "train" / "cat" / "2.png"
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: data.load("folder", tmp_path), path, "expected")


def test_a_class_without_images_is_named(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    refused(lambda: data.load("folder", tmp_path), tmp_path / "train" / "emu", "no images")


def test_a_tree_of_one_class_is_refused(tmp_path):
    for part in ("train", "test"):
        save(picture(0), tmp_path / part / "cat" / "1.png")
    refused(lambda: data.load("folder", tmp_path), "one class (cat)", "two")


def test_a_test_class_that_training_does_not_know_is_named(tmp_path):
    write_tree(tmp_path)
    save(picture(0), tmp_path / "test" / "emu" / "1.png")
    refused(lambda: data.load("folder", tmp_path), "emu", "ant, cat, dog")


def test_a_tree_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    refused(lambda: data.load("folder", tmp_path), tmp_path / "train", "empty folder")


def test_decoding_is_told(tmp_path):
    told = []
    data.load("folder", write_tree(tmp_path), decoding=lambda *counts: told.append(counts))
    assert told == [(7, 7)]


def test_a_tree_whose_training_images_have_one_colour_is_refused(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            save(Image.new("RGB", (32, 32), (9, 9, 9)), tmp_path / part / name / "1.png")
    refused(lambda: data.load("folder", tmp_path), tmp_path / "train", "one value in all pixels")


# Test images to train on

BOTH = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("train", "test", "copied"),
    [
        (torch.from_numpy(BOTH[1:5]), torch.from_numpy(BOTH[5:]), True),  # two arrays as far as torch knows
        *((both[1:5], both[5:], False) for both in [torch.from_numpy(BOTH)]),
        *((both[:4], both[5:], True) for both in [torch.from_numpy(BOTH)]),
        *((both[5:], both[1:5], True) for both in [torch.from_numpy(BOTH)]),
    ],
    ids=["two arrays", "in turn", "apart", "the other way round"],
)
def test_test_images_stand_behind_those_to_train_on_and_are_copied_unless_they_do_already(train, test, copied):
    parts = [data.Images(part, torch.arange(len(part)) + len(part)) for part in (train, test)]
    before = data.Dataset("folder", ("a",) * 9, *parts, (0.5,) * 3, (0.2,) * 3, "checksum")
    after = before.with_test_to_train()
    assert torch.equal(after.train.images, torch.cat([train, test]))
    assert torch.equal(after.train.targets, torch.cat([part.targets for part in parts]))
    assert (after.train.images.data_ptr() != train.data_ptr()) == copied
    assert after == replace(before, train=after.train)


# Statistics and classes


@pytest.mark.parametrize("n", [1, 1023, 2050])
def test_statistics_are_those_of_the_slow_formula(n):
    rng = np.random.default_rng(n)
    pixels, labels = rng.integers(0, 256, (n, 3, 4, 5), np.uint8), rng.integers(0, 4, n)
    statistics = data.stats(data.Images(torch.from_numpy(pixels), torch.from_numpy(labels)))
    assert statistics.counts == tuple(int((labels == k).sum()) for k in range(labels.max() + 1))
    assert statistics.mean == pytest.approx((pixels / 255).mean((0, 2, 3)), rel=1e-12)
    assert statistics.std == pytest.approx((pixels / 255).std((0, 2, 3)), rel=1e-12)


def test_statistics_of_a_large_image_are_exact():
    images = data.Images(torch.arange(256).to(torch.uint8).repeat(5000).reshape(1, 1, 1280, 1000))
    assert data.stats(images).mean == (0.5,)
    assert data.stats(images).std == pytest.approx((math.sqrt((256**2 - 1) / 12) / 255,), rel=1e-15)


def test_statistics_of_no_images_are_refused():
    refused(lambda: data.stats(data.Images(torch.zeros((0, 3, 4, 4), dtype=torch.uint8))), "no pixels")


def test_images_without_labels_have_no_counts():
    assert data.stats(data.Images(torch.from_numpy(BOTH))).counts == ()


def test_the_number_of_classes_is_known_before_images_are_read(tmp_path):
    write_tree(tmp_path)
    assert data.num_classes("folder", tmp_path) == 3
    assert [data.num_classes(name, tmp_path) for name in ("cifar10", "cifar100", "digits")] == [10, 100, 10]


def test_the_training_images_of_any_data_are_found_for_statistics(tmp_path):
    write_python_batches(tmp_path)
    images, classes = data.read_training(tmp_path)
    assert (len(images), classes) == (30, CLASSES)
    images, classes = data.read_training(write_tree(tmp_path / "pets"))
    assert (len(images), classes) == (5, ("ant", "cat", "dog"))
    images, classes = data.read_training(tmp_path / "pets" / "test")  # class folders alone
    assert (images.labels.tolist(), classes) == ([0, 1], ("cat", "dog"))
    images, classes = data.read_training(tmp_path / "pets" / "train" / "cat")
    assert (len(images), classes) == (3, ())
    images, classes = data.read_training(
        dump(tmp_path / "c.pkl", {b"data": random_batch(3, 0)[0], b"labels": [2, 0, 2]})
    )
    assert (len(images), classes) == (3, ("0", "1", "2"))
    images, classes = data.read_training(save(picture(0), tmp_path / "one.png"))
    assert (len(images), classes) == (1, ())
