"""Small data sets and files as they lie on a disk, and what it is to refuse one."""

import pickle

import numpy as np
import pytest
from PIL import Image

from budgetnet.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def random_batch(n, seed, classes=10):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, classes, n)


def dump(path, content, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def write_python_batches(root, n=6):
    folder = root / "cifar-10-batches-py"
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = random_batch(n, seed)
        dump(folder / name, {b"batch_label": name.encode(), b"data": pixels, b"labels": labels.tolist()})
    names = [name.encode() for name in CLASSES]
    dump(folder / "batches.meta", {b"label_names": names, b"num_cases_per_batch": n, b"num_vis": 3072})
    return folder


def write_binary_batches(root, n=6):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = random_batch(n, seed)
        records = b"".join(bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True))
        (folder / f"{name}.bin").write_bytes(records)
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def write_cifar100(root):
    folder = root / "cifar-100-python"
    for seed, (name, n) in enumerate([("train", 9), ("test", 4)]):
        pixels, labels = random_batch(n, seed, 100)
        coarse = (labels // 5).tolist()
        dump(folder / name, {b"data": pixels, b"fine_labels": labels.tolist(), b"coarse_labels": coarse})
    dump(folder / "meta", {b"fine_label_names": [f"c{i}".encode() for i in range(100)]})
    return folder


def picture(seed, size=(32, 32), mode="RGB"):
    channels = len(mode) if mode in ("RGB", "RGBA") else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_tree(root):
    for seed, name in enumerate(["cat/1.png", "cat/10.png", "cat/2.png", "ant/a.png", "dog/x.bmp"]):
        save(picture(seed), root / "train" / name)
    for seed, name in enumerate(["dog/y.png", "cat/z.png"]):
        save(picture(seed + 10), root / "test" / name)
    return root


def refused(function, *words):
    """Check that `function` raises a DataError of one line with all `words`, and return the line."""
    with pytest.raises(DataError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message
