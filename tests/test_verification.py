"""What `data verify` says of every kind of data."""

import dataclasses
import hashlib

import numpy as np
from samples import dump, random_batch, refused, write_binary_batches, write_cifar100, write_python_batches, write_tree

from budgetnet import cifar, verification


def test_what_lies_among_images_and_is_not_read_is_counted_and_named(tmp_path):
    tree = write_tree(tmp_path / "pets")
    assert not [line for line in verification.verify(tree).lines if "passed over" in line]
    (tree / "train" / "cat" / "more").mkdir()
    (tree / "train" / "cat" / "more" / "9.png").write_bytes((tree / "train" / "cat" / "1.png").read_bytes())
    (tree / "train" / "dog" / "b.heic").touch()
    (tree / "train" / "cat" / ".hidden").touch()
    (tree / "test" / "cat" / "away.png").symlink_to(tmp_path / "nowhere.png")
    expected = ["train: 2 other files, passed over: cat/more/9.png, dog/b.heic"]
    assert [line for line in verification.verify(tree / "train").lines if "passed over" in line] == expected
    expected.append("test: 1 other file, passed over: cat/away.png")
    assert [line for line in verification.verify(tree).lines if "passed over" in line] == expected


def test_verify_says_of_every_kind_what_it_is(tmp_path):
    python, binary, hundred = write_python_batches(tmp_path), write_binary_batches(tmp_path), write_cifar100(tmp_path)
    tree = write_tree(tmp_path / "pets")
    contest = dump(tmp_path / "contest" / "c.pkl", {b"data": random_batch(3, 0)[0], b"ids": [1, 2, 3]})
    np.save(tmp_path / "x.npy", random_batch(3, 0)[0])
    expected = {
        python: ("CIFAR-10 Python batches", 36, False),
        binary: ("CIFAR-10 binary batches", 36, None),
        hundred: ("CIFAR-100 Python batches", 13, False),
        tree: ("image folder tree", 7, None),
        tree / "train": ("image folder", 5, None),
        tree / "train" / "cat": ("image folder", 3, None),
        contest: ("contest pickle", 3, None),
        tmp_path / "contest": ("contest pickle", 3, None),
        tmp_path / "x.npy": ("NumPy array", 3, None),
        tree / "train" / "cat" / "1.png": ("image", 1, None),
        python / "test_batch": ("CIFAR-10 Python batch", 6, False),
        python / "batches.meta": ("CIFAR-10 Python class names", 0, False),
        binary / "test_batch.bin": ("CIFAR-10 binary batch", 6, None),
    }
    for path, (kind, images, official) in expected.items():
        found = verification.verify(path)
        assert (found.kind, found.images, found.official) == (kind, images, official)
        assert found.lines
    everything = verification.verify(tmp_path)
    assert everything.images == 36 + 36 + 13 + 7 + 3
    assert everything.official is False
    assert "image folder tree" in everything.kind


def test_verify_knows_the_official_files_by_their_md5(tmp_path, monkeypatch):
    folder = write_python_batches(tmp_path)
    assert "not the official files: 7 of 7" in verification.verify(tmp_path).lines[1]
    layout = cifar.LAYOUTS[0]
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in layout.md5}
    monkeypatch.setattr(cifar, "LAYOUTS", (dataclasses.replace(layout, md5=md5), *cifar.LAYOUTS[1:]))
    assert verification.verify(tmp_path).official is True
    assert verification.verify(folder / "test_batch").official is True
    dump(folder / "test_batch", {b"data": random_batch(6, 99)[0], b"labels": [0] * 6})
    found = verification.verify(tmp_path)
    assert found.official is False
    assert "1 of 7 differ in MD5 (test_batch)" in found.lines[1]


def test_verify_refuses_what_is_broken_missing_or_empty(tmp_path):
    refused(lambda: verification.verify(tmp_path / "nowhere"), "nowhere", "no such")
    refused(lambda: verification.verify(tmp_path), tmp_path, "empty folder", "budgetnet data download")
    path = write_python_batches(tmp_path) / "data_batch_4"
    path.write_bytes(path.read_bytes()[:5000])
    for place in (tmp_path, path.parent, path):
        refused(lambda place=place: verification.verify(place), path)
