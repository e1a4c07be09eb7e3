"""Readers of data: batches, contest files, arrays, images, and the archives that they come in.

Sound files are small, so that a mutation and its reading take a millisecond.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np
import torch
from trials import MiB, Trial, choice, each

from budgetnet import cache, cifar, download, images, shards, tables, tarballs, workers


def _require_images(found: images.Images, classes: int) -> None:
    assert found.images.dtype == torch.uint8
    assert found.images.shape[1:] == (3, 32, 32)
    if found.labels is not None:
        assert found.labels.dtype == torch.int64
        assert len(found.labels) == len(found)
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < classes


def _pixels(n: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (n, 3072), np.uint8)


def _programs(contents: Sequence[Any]) -> tuple[list[bytes], Callable[[Random], bytes]]:
    """Pickles of all protocols, and programs made of them."""
    seeds = [pickle.dumps(content, protocol) for content in contents for protocol in (0, 2, 4, 5)]
    split = [mutations.tokens(seed) for seed in seeds]

    def damaged(rng: Random) -> bytes:
        found = mutations.program(rng.choice(split), rng)
        return mutations.damage(found, rng) if rng.random() < 0.1 else found

    return seeds, damaged


def _batches(layout: cifar.Layout) -> Callable[[Path], Trial]:
    def prepare(folder: Path) -> Trial:
        names = [f"class {i}".encode() for i in range(layout.classes)]
        seeds, damaged = _programs(
            [
                {b"batch_label": b"x", layout.labels.encode(): [3, 4], b"data": _pixels(2), b"filenames": [b"a", b"b"]},
                {layout.labels: np.array([1]), "data": _pixels(), b"coarse_labels": [np.uint8(4)]},
                {layout.names.encode(): names, b"num_cases_per_batch": 2, b"num_vis": 3072},
            ]
        )
        place = folder / "batch"

        def read() -> object:
            return each(
                lambda: _require_images(cifar.read_batch(layout, place), layout.classes),
                lambda: cifar.read_meta(layout, place),
            )

        return Trial(place=place, sound=seeds, damaged=damaged, read=read)

    return prepare


def _contest(folder: Path) -> Trial:
    square = _pixels(2).reshape(2, 32, 32, 3)
    contents = [{b"data": square, b"ids": np.arange(2), b"labels": [0, 9]}, {"data": _pixels(), "ids": [7], "x": 0.5}]
    seeds, damaged = _programs(contents)
    place = folder / "contest.pkl"
    read = lambda: _require_images(images.read_images(place), images.MOST_CLASSES)  # noqa: E731
    return Trial(place=place, sound=seeds, damaged=damaged, read=read)


def _binary(folder: Path) -> Trial:
    layout, place = cifar.LAYOUTS[1], folder / "batch.bin"
    records = b"".join(bytes([label]) + _pixels().tobytes() for label in (3, 9))
    names = "\n".join(cifar.CIFAR10_CLASSES).encode() + b"\n\n"

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.2:  # labels, which are few of the bytes
            return bytes([rng.randrange(256)]) + records[1:3073] + bytes([rng.randrange(256)]) + records[3074:]
        return choice(rng, [records, names], mutations.damage)

    def read() -> object:
        return each(lambda: _require_images(images.read_images(place), 10), lambda: cifar.read_meta(layout, place))

    return Trial(place=place, sound=[records, names], damaged=damaged, read=read)


def _pictures(folder: Path) -> Trial:
    from PIL import Image

    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # turned
    files = []
    for kind, picture, options in [
        ("PNG", rgb, {}),
        ("PNG", rgb.convert("P"), {"transparency": 0}),
        ("PNG", rgb.convert("LA"), {"exif": exif}),
        ("JPEG", rgb, {"exif": exif, "quality": 50}),
        ("JPEG", rgb.convert("CMYK"), {"progressive": True}),
        ("GIF", rgb.convert("P"), {"save_all": True, "append_images": [rgb.convert("P").rotate(90)]}),
        ("BMP", rgb, {}),
        ("WEBP", rgb, {"lossless": True}),
        ("WEBP", rgb, {"exif": exif}),
        ("TIFF", rgb, {}),
        ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("TIFF", rgb.convert("1"), {"compression": "group4"}),
        ("TIFF", rgb, {"compression": "jpeg"}),
        ("PPM", rgb, {}),
        ("PPM", rgb.convert("1"), {}),
    ]:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append(file.getvalue())
    chunks = [mutations.png_chunks(file) for file in files if file.startswith(b"\x89PNG")]
    heads = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1", b"\0\0\1\0\1\0", b"SIMPLE  =", b"P7\n")
    place = folder / "picture.png"

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.4:
            return mutations.png(rng.choice(chunks), rng)
        found = choice(rng, files, mutations.damage)
        return rng.choice(heads) + found if rng.random() < 0.05 else found

    def read() -> object:
        found = cache.read_image(place, 32)
        assert found.shape == (3, 32, 32)
        assert found.dtype == np.uint8
        return found

    return Trial(place=place, sound=files, damaged=damaged, read=read, memory=1024 * MiB)


def _npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


_HEADERS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (
        "descr",
        ("|u1", "<u1", "<i8", ">i4", "|b1", "<f4", "|O", "<U3", "<M8[s]", "V8", "(3,)u1", "", [("a", "u1")], 5, None),
    ),
    ("fortran_order", (True, False, 1, "True", None)),
    (
        "shape",
        ((1, 3072), (), (0,), (2**62,), (10**12, 0), (-1,), (1, 32, 32, 3), (2**40, 2**40), [1], 5, (1.5,), (1,) * 40),
    ),
)


def _damaged_npy(seed: bytes, rng: Random) -> bytes:
    """An array with another header; its length is right, mostly."""
    body = seed[10 + int.from_bytes(seed[8:10], "little") :]
    said: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (1, 3072)}
    for key, values in _HEADERS:
        if rng.random() < 0.4:
            said[key] = rng.choice(values)
    text = repr(said)
    match rng.randrange(6):
        case 0:
            text = mutations.damage(text.encode(), rng).decode("latin1")
        case 1:
            depth = rng.choice((20, 3000))
            text = text.replace("(", rng.choice(("(" * depth, "-" * depth, "[" * depth, "9" * depth + ",")), 1)
        case 2:
            text = text.replace("'", '"').replace(", }", "}") if rng.random() < 0.5 else text + "# more"
        case 3:
            text = text.replace(",)", "L,)")
    version = rng.choice((1, 1, 1, 2, 3, 0, 9))
    raw = text.encode("latin1", "replace") + b" " * rng.choice((0, 0, 20, 9000)) + b"\n"
    length = len(raw) if rng.random() < 0.85 else rng.choice(mutations.NUMBERS) % 2**32
    prefix = struct.pack("<H", length % 2**16) if version < 2 else struct.pack("<I", length)
    found = b"\x93NUMPY" + bytes([version, 0]) + prefix + raw + body
    return mutations.damage(found, rng) if rng.random() < 0.2 else found


def _arrays(folder: Path) -> Trial:
    place = folder / "cifar10.1_v6_data.npy"
    square = _pixels(5).reshape(5, 32, 32, 3)
    seeds = [_npy(_pixels()), _npy(square), _npy(np.asfortranarray(square), version=(2, 0)), _npy(np.arange(5))]
    (folder / "cifar10.1_v6_labels.npy").write_bytes(_npy(np.arange(5)))
    published = folder / "CIFAR-10-C"
    published.mkdir()
    for name in ("labels", "fog"):
        (published / f"{name}.npy").symlink_to(place)
    files = cifar.CorruptedFiles(published, 1)

    def read() -> object:
        return each(
            lambda: _require_images(images.read_images(place), 10),
            lambda: _require_images(cifar.read_test_set("cifar10.1", folder), 10),
            lambda: cifar.locate_corrupted("cifar10", folder, torch.arange(1)),
            lambda: files.images("fog", 1, torch.tensor([0])),
        )

    return Trial(place=place, sound=seeds[:3], damaged=lambda rng: choice(rng, seeds, _damaged_npy), read=read)


def _npz(folder: Path) -> Trial:
    place = folder / "cifar102_test.npz"
    file = io.BytesIO()
    np.savez(file, images=_pixels(2).reshape(2, 32, 32, 3), labels=np.array([1, 2]), label_names=np.array(["a"]))
    members = mutations.unzipped(file.getvalue())

    def damaged(rng: Random) -> bytes:
        found = list(members)
        if rng.random() < 0.6:
            at = rng.randrange(2)
            found[at] = found[at][0], _damaged_npy(found[at][1], rng)
        match rng.randrange(10):
            case 0:
                found.append(rng.choice(found))
            case 1:
                del found[rng.randrange(len(found))]
            case 2:
                found[rng.randrange(len(found))] = (rng.choice(mutations.TEXTS[:7]), b"x")
        raw = mutations.zipped(found, rng)
        return mutations.damage(raw, rng) if rng.random() < 0.3 else raw

    read = lambda: _require_images(cifar.read_test_set("cifar10.2", folder), 10)  # noqa: E731
    return Trial(place=place, sound=[file.getvalue()], damaged=damaged, read=read)


def _kept(folder: Path) -> Trial:
    place = folder / "0.pixels"
    about = {"key": "0", "source": str(folder), "shape": [1, 3, 4, 4], "facts": {"mean": [0.5]}}

    def sealed(text: bytes, pixels: bytes = bytes(48)) -> bytes:
        return pixels + text + struct.pack("<32sQ", hashlib.sha256(text).digest(), len(text))

    def damaged(rng: Random) -> bytes:
        raw = sealed(mutations.as_json(mutations.varied(about, rng), rng))
        return mutations.damage(raw, rng) if rng.random() < 0.3 else raw

    def read() -> object:
        found = cache._read_about(place)
        if found is not None:
            assert cache._map(place, found.shape).shape == found.shape
        cache._clean(folder, "elsewhere", (1, 3, 4, 4))
        return found

    return Trial(place=place, sound=[sealed(json.dumps(about).encode())], damaged=damaged, read=read)


def _archives(folder: Path) -> Trial:
    place, inside = folder / "cifar10.tar.gz.part", "cifar-10-batches-py"
    members = [(inside + "/", b""), (inside + "/data_batch_1", b"one"), (inside + "/readme.html", b"two" * 300)]
    first = bytearray(mutations.tar_member(*members[0]))
    first[156:157] = b"5"
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first[:512])
    sound = [bytes(first), *(mutations.tar_member(*member) for member in members[1:])]
    end = bytes(1024)

    def damaged(rng: Random) -> bytes:
        found = list(sound)
        at = rng.randrange(len(found))
        name, content = rng.choice(members)
        match rng.randrange(6):
            case 0:
                found.insert(at, mutations.tar_records(rng))
            case 1:
                names = (
                    "../escaped",
                    "/tmp/budgetnet-escaped",
                    f"{inside}/../../escaped",
                    inside,
                    f"{inside}/a/b",
                    ".",
                )
                found.insert(at, mutations.tar_member(rng.choice(names), content))
            case 2:
                found[at:at] = [mutations.tar_records(rng)] * rng.choice((2, 1500))
            case _:
                found.insert(at, mutations.tar_member(name, content, rng))
        raw = gzip.compress(b"".join(found) + end, 1, mtime=0)
        return mutations.damage(raw, rng) if rng.random() < 0.1 else raw

    def read() -> object:
        try:
            return download.download("cifar10", folder, md5=download.md5_of(place))
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder / inside)
            left = {path.name for path in folder.iterdir()} - {place.name}
            assert not left, f"{left} stays behind"

    return Trial(place=place, sound=[gzip.compress(b"".join(sound) + end)], damaged=damaged, read=read)


def _encoded(seed: int, kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(file, kind)
    return file.getvalue()


_SAMPLES = [
    (f"s/{i:04}.{suffix}", content)
    for i, kind in enumerate(("PNG", "JPEG", "PNG"))
    for suffix, content in ((kind.lower(), _encoded(i, kind)), ("cls", b"%d" % i))
]


def _layout(folder: Path, name: str, sound: bytes) -> shards.Layout:
    """The file that is tried is a data set's training shard; its test shard is sound."""
    (folder / f"test{Path(name).suffix}").write_bytes(sound)
    return shards.Layout(folder, (name,), (f"test{Path(name).suffix}",))


def _require_index(found: shards.Index) -> None:
    assert 2 <= len(found.classes) <= images.MOST_CLASSES
    assert found.table.shape == (len(found.table), 3)
    assert found.table.dtype == np.int64
    assert 0 <= found.table[:, 0].min() <= found.table[:, 0].max() < len(found.classes)


def _tar_shards(folder: Path) -> Trial:
    members = [*_SAMPLES[:-1], (_SAMPLES[-1][0].replace("cls", "json"), b'{"label": 2}')]
    sound = b"".join(mutations.tar_member(*member) for member in members) + bytes(1024)
    place = folder / "train.tar"
    layout = _layout(folder, place.name, sound)
    labels = (b"0", b"1\n", b"-1", b"9" * 5000, b"\xff", b"", b"cat", b"1.5", b'{"label": 1}', b"[" * 5000, b"\x1b[2J")

    def damaged(rng: Random) -> bytes:
        found = [mutations.tar_member(*member) for member in members]
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(found))
            name, content = rng.choice(members)
            match rng.randrange(7):
                case 0:
                    found.insert(at, mutations.tar_records(rng))
                case 1:
                    names = ("../x.png", "/x.png", "s/../../x.png", "x", ".png", "s/.x.png", "s/0000.png", "a.b.png")
                    found.insert(at, mutations.tar_member(rng.choice(names), content))
                case 2:
                    name, content = rng.choice([member for member in members if member[0].endswith(("cls", "json"))])
                    found[at] = mutations.tar_member(name, rng.choice(labels))
                case 3:
                    found[at] = mutations.tar_member(name, mutations.damage(content, rng))
                case 4:
                    del found[at]
                    found = found or [b""]
                case _:
                    found.insert(at, mutations.tar_member(name, content, rng))
        raw = b"".join(found) + bytes(1024)
        return mutations.damage(raw, rng) if rng.random() < 0.2 else raw

    def read() -> object:
        found = shards._look_through(layout, large=False)
        _require_index(found)
        places = found.table[: found.train_size, 1:].tolist()
        for pixels in tarballs.images(place, places, 8):
            assert pixels.shape == (3, 8, 8)
        return found

    return Trial(place=place, sound=[sound], damaged=damaged, read=read, memory=1024 * MiB)


def _parquet_files(folder: Path) -> Trial:
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    Image.init()  # which imports what Pillow tries on bytes of no known format
    pictures = [content for name, content in _SAMPLES if not name.endswith("cls")]
    feature = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    about = {"info": {"features": feature}}

    def made(values: Any, labels: Any, said: bytes, **options: Any) -> bytes:
        file = io.BytesIO()
        table = pyarrow.table({"image": values, "label": labels}).replace_schema_metadata({"huggingface": said})
        pyarrow.parquet.write_table(table, file, **options)
        return file.getvalue()

    plain = json.dumps(about).encode()
    structs = [{"bytes": picture, "path": "x"} for picture in pictures]
    options: tuple[dict[str, Any], ...] = (
        {"compression": "none", "write_statistics": False},
        {"compression": "snappy", "row_group_size": 1, "write_page_checksum": True},
        {"compression": "gzip", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "zstd", "store_schema": False, "version": "1.0"},
    )
    seeds = [made(values, [0, 1, 2], plain, **some) for values in (structs, pictures) for some in options]
    kinds: tuple[Any, ...] = (
        *(["a", "b", "c"], [0.5] * 3, [None] * 3, [[0]] * 3, [{"x": 1}] * 3, [2**40] * 3, [-1, 0, 1], ["\x1b[2J"] * 3),
        *([True] * 3, pyarrow.array([0, 1, 2], pyarrow.uint64()), pyarrow.array(["a"] * 3).dictionary_encode()),
    )
    pixels: tuple[Any, ...] = (
        *([None] * 3, [b""] * 3, ["text"] * 3, [{"path": "x"}] * 3, [{"bytes": "x"}] * 3, [{"bytes": None}] * 3),
        pyarrow.array(pictures, pyarrow.large_binary()),
        [structs] * 3,
    )
    place = folder / "train.parquet"
    layout = _layout(folder, place.name, seeds[0])

    def damaged(rng: Random) -> bytes:
        match rng.randrange(5):
            case 0:
                raw = made(rng.choice((structs, pictures)), rng.choice(kinds), plain)
            case 1:
                raw = made(rng.choice(pixels), [0, 1, 2], plain)
            case 2:
                said = mutations.as_json(mutations.varied(about, rng), rng)
                raw = made(pictures, [0, 1, 2], said)
            case 3:  # the description of the file, which lies at its end
                raw = rng.choice(seeds)
                length = int.from_bytes(raw[-8:-4], "little")
                footer = mutations.damage(raw[-8 - length : -8], rng)
                return raw[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
            case _:
                return choice(rng, seeds, mutations.damage)
        return mutations.damage(raw, rng) if rng.random() < 0.3 else raw

    def read() -> object:
        # As `shards._look_through` does, but here and not in a process of its own.
        answers = [workers.carry_out(workers.scan_job(folder / name)) for name in layout.names]
        parts = [workers.scanned(answer)[0] for answer in answers]
        classes = shards._classes(layout, parts)
        assert 2 <= len(classes) <= images.MOST_CLASSES
        table = tables.scan(place)
        for picture in tables.images(place, (0, len(table.groups)), 8):
            assert picture.shape == (3, 8, 8)
        return classes

    return Trial(place=place, sound=seeds, damaged=damaged, read=read, memory=workers.MEMORY)


def _class_names(folder: Path) -> Trial:
    contents: tuple[Any, ...] = (["a", "b"], {"classes": ["a", "b"]}, {"a": 1, "b": 0}, {"classes": {"a": 0, "b": 1}})
    sound = [json.dumps(content).encode() for content in contents]

    def damaged(rng: Random) -> bytes:
        raw = mutations.as_json(mutations.varied(rng.choice(contents), rng), rng)
        return mutations.damage(raw, rng) if rng.random() < 0.3 else raw

    def read() -> object:
        found = shards._named(folder)
        assert found
        assert all(isinstance(name, str) for name in found)
        return found

    return Trial(place=folder / "index.json", sound=sound, damaged=damaged, read=read)


READERS: dict[str, Callable[[Path], Trial]] = {
    "CIFAR-10 batches": _batches(cifar.LAYOUTS[0]),
    "CIFAR-100 batches": _batches(cifar.LAYOUTS[2]),
    "binary batches": _binary,
    "contest pickles": _contest,
    "images": _pictures,
    "npy arrays": _arrays,
    "npz arrays": _npz,
    "decoded images": _kept,
    "archives": _archives,
    "tar shards": _tar_shards,
    "Parquet files": _parquet_files,
    "class names": _class_names,
}
"""By name: makes the files that a reader needs in an empty folder."""
