"""The specification of budgetnet.cache, and of folder trees that go through it."""

import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from budgetnet import cache, data, verification
from budgetnet.errors import DataError

SIZE = 24


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept files of a cache of the test's own, where any number of images is many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "KEEP_FROM", 1)
    return tmp_path / "cache" / "budgetnet" / "decoded"


def write_images(root, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(root / name)
    return list(names)


def write_tree(root):
    write_images(root, [f"{part}/{name}/{i}.png" for part in ("train", "test") for name in "ab" for i in range(3)])
    return root


def slowly(root, names, size=SIZE):
    """The pixels as they are without any cache."""
    return torch.stack([torch.from_numpy(cache.read_image(root / name, size)) for name in names])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def no_decoding(*_):
    raise AssertionError("an image was decoded")


def test_kept_pixels_are_those_of_the_images_and_no_image_is_opened_a_second_time(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path / "photos", [f"{i}.png" for i in range(5)])
    expected = slowly(tmp_path / "photos", names)
    first, _ = cache.load_files(tmp_path / "photos", names, SIZE)
    monkeypatch.setattr(cache, "read_image", no_decoding)
    second, _ = cache.load_files(tmp_path / "photos", names, SIZE)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert second.dtype == torch.uint8
    assert second.is_contiguous()
    assert len(files(kept)) == 1


def test_chunks_are_joined_in_the_order_of_the_names(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, [f"{i}.png" for i in range(7)])[::-1]
    monkeypatch.setattr(cache, "_CHUNK", 2 * 3 * SIZE * SIZE + 1)
    assert [len(chunk) for chunk in cache.decode(tmp_path, names, SIZE)] == [2, 2, 2, 1]
    seen = []
    pixels, _ = cache.load_files(tmp_path, names, SIZE, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(pixels, slowly(tmp_path, names))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]
    monkeypatch.setattr(cache, "KEEP_FROM", 1 << 40)
    held, _ = cache.load_files(tmp_path, names, SIZE, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(pixels, held)
    assert seen[4:] == seen[:4]


def test_facts_are_computed_once_and_come_back_exactly(tmp_path, kept):
    names = write_images(tmp_path, ["0.png", "1.png"])
    facts = {"third": 1 / 3, "tiny": [5e-324, 0.1], "name": "ü"}
    assert cache.load_files(tmp_path, names, SIZE, describe=lambda pixels: facts)[1] == facts
    assert cache.load_files(tmp_path, names, SIZE, describe=no_decoding)[1] == facts


def test_few_small_images_leave_nothing_behind_and_one_large_file_is_kept(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, ["0.png", "1.png"])
    monkeypatch.setattr(cache, "KEEP_FROM", sum((tmp_path / name).stat().st_size for name in names) + 1)
    pixels, _ = cache.load_files(tmp_path, names, 16)
    assert torch.equal(pixels, slowly(tmp_path, names, 16))
    assert not kept.exists()
    with (tmp_path / "1.png").open("ab") as file:
        file.write(b"\0")  # what comes after the end of a PNG is no part of the image
    assert torch.equal(cache.load_files(tmp_path, names, 16)[0], pixels)
    assert len(files(kept)) == 1


def replace_secretly(path):
    """Give a file other content of the same length and the same time of modification."""
    before = path.stat()
    raw = path.read_bytes()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems tick every few milliseconds
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 255]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "an image is changed": lambda tree: write_images(tree, ["train/a/1.png"], seed=9),
    "an image is changed secretly": lambda tree: replace_secretly(tree / "train/a/1.ppm"),
    "an image is added": lambda tree: write_images(tree, ["train/a/9.png"], seed=9),
    "an image is removed": lambda tree: (tree / "test/b/2.png").unlink(),
    "an image is renamed": lambda tree: (tree / "train/a/1.ppm").rename(tree / "train/a/7.ppm"),
    "an image changes its class": lambda tree: (tree / "train/a/0.png").rename(tree / "train/b/9.png"),
    "an image goes from test to train": lambda tree: (tree / "test/a/0.png").rename(tree / "train/a/8.png"),
    "a class is renamed": lambda tree: [(tree / part / "b").rename(tree / part / "0") for part in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tree_that_changes_is_read_anew_and_what_was_kept_of_it_goes(tmp_path, kept, monkeypatch, change):
    tree = write_tree(tmp_path / "tree")
    Image.open(tree / "train/a/1.png").save(tree / "train/a/1.ppm")
    (tree / "train/a/1.png").unlink()
    before = data.load("folder", tree, SIZE)
    (old,) = files(kept)
    CHANGES[change](tree)
    after = data.load("folder", tree, SIZE)
    assert after.checksum != before.checksum or change == "a class is renamed"
    assert len(files(kept)) == 1
    assert files(kept) != [old]
    monkeypatch.setattr(cache, "KEEP_FROM", 1 << 40)
    assert_same(after, data.load("folder", tree, SIZE))


def assert_same(one, two):
    for part, other in ((one.train, two.train), (one.test, two.test)):
        assert torch.equal(part.images, other.images)
        assert torch.equal(part.labels, other.labels)
        assert part.names == other.names
    assert (one.classes, one.mean, one.std, one.checksum) == (two.classes, two.mean, two.std, two.checksum)


def test_a_data_set_from_a_kept_file_equals_the_one_from_the_images(tmp_path, kept, monkeypatch):
    tree = write_tree(tmp_path / "tree")
    made, opened = data.load("folder", tree, SIZE), data.load("folder", tree, SIZE)
    monkeypatch.setattr(cache, "KEEP_FROM", 1 << 40)
    held = data.load("folder", tree, SIZE)
    assert_same(made, held)
    assert_same(opened, held)


def test_verification_looks_at_every_image_whatever_is_kept(tmp_path, kept, monkeypatch):
    tree = write_tree(tmp_path / "tree")
    data.load("folder", tree)
    seen = []
    decoder = cache.read_image
    monkeypatch.setattr(cache, "read_image", lambda path, size: seen.append(path) or decoder(path, size))
    assert verification.verify(tree).images == 12
    assert sorted(seen) == sorted(tree.rglob("*.png"))
    assert len(files(kept)) == 1


@pytest.mark.parametrize("channel", [0, 2])
def test_training_images_without_contrast_are_refused_from_the_images_and_from_what_is_kept(tmp_path, kept, channel):
    tree = write_tree(tmp_path / "tree")
    for path in (tree / "train").rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., channel] = 7
        Image.fromarray(pixels).save(path)
    for look in (data.load, data.load, lambda _, folder, size: verification.verify(folder)):
        with pytest.raises(DataError, match="train: found a channel with one value in all pixels"):
            look("folder", tree, 32)


def test_what_was_loaded_before_a_change_stays_readable(tmp_path, kept):
    tree = write_tree(tmp_path / "tree")
    before = data.load("folder", tree, SIZE)
    expected = before.train.images.clone()
    write_images(tree, ["train/a/0.png"], seed=9)
    data.load("folder", tree, SIZE)
    assert torch.equal(before.train.images, expected)


def test_sizes_and_folders_are_kept_beside_each_other(tmp_path, kept, monkeypatch):
    tree = write_tree(tmp_path / "tree")
    data.load("folder", tree, 16)
    data.load("folder", tree, SIZE)
    data.read_images(tree / "train", SIZE)
    assert len(files(kept)) == 3
    monkeypatch.setattr(cache, "read_image", no_decoding)
    assert data.load("folder", tree, 16).train.images.shape == (6, 3, 16, 16)
    assert data.read_images(tree / "train", SIZE).labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_damaged_file_is_made_anew(tmp_path, kept):
    names = write_images(tmp_path, ["0.png", "1.png"])
    cache.load_files(tmp_path, names, SIZE, describe=lambda _: {"fact": 1})
    expected = slowly(tmp_path, names)
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    pixels = expected.numel()
    damaged = [b"", whole[:-1], whole[1:], whole + b"\0", whole[:pixels], bytes(len(whole)), whole[8:] + whole[:8]]
    places = range(pixels, len(whole), 7)
    damaged += [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for raw in damaged:
        path.unlink()  # to cut a file short that is mapped would end the process
        path.write_bytes(raw)
        found, facts = cache.load_files(tmp_path, names, SIZE, describe=lambda _: {"fact": 1})
        assert torch.equal(found, expected)
        assert facts == {"fact": 1}
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"shape": ["a"]},
        {"shape": [[1], 3, 4, 4]},
        {"shape": [2**62, 4, 1, 1]},
        {"shape": [1.5, 3, 4, 4]},
        {"shape": [-1, 3, 4, -4]},
        {"shape": [True, 3, 4, 4]},
        {"shape": 5},
        {"facts": []},
        {"source": 5},
        {"source": "a\0b"},
        {"key": None},
        {"more": 1},
    ],
)
def test_a_sealed_file_that_says_what_it_should_not_is_no_kept_file(tmp_path, kept, change):
    names = write_images(tmp_path / "photos", ["0.png"])
    expected = slowly(tmp_path / "photos", names)
    about = {"key": "0", "source": "elsewhere", "shape": [1, 3, 4, 4], "facts": {}} | change
    text = json.dumps(about).encode()
    kept.mkdir(parents=True)
    sealed = bytes(48) + text + struct.pack("<32sQ", hashlib.sha256(text).digest(), len(text))
    (kept / "0.pixels").write_bytes(sealed)
    deep = b"[" * 60_000
    (kept / "1.pixels").write_bytes(deep + struct.pack("<32sQ", hashlib.sha256(deep).digest(), len(deep)))
    assert torch.equal(cache.load_files(tmp_path / "photos", names, SIZE)[0], expected)
    assert "1.pixels" not in files(kept)


def test_another_kept_file_under_the_same_name_is_not_taken_for_it(tmp_path, kept):
    names = write_images(tmp_path / "one", ["0.png"])
    expected = slowly(tmp_path / "one", names)
    cache.load_files(tmp_path / "one", names, SIZE)
    (one,) = kept.iterdir()
    cache.load_files(tmp_path / "other", write_images(tmp_path / "other", ["0.png"], seed=5), SIZE)
    (other,) = set(kept.iterdir()) - {one}
    other.replace(one)
    assert torch.equal(cache.load_files(tmp_path / "one", names, SIZE)[0], expected)


def test_two_that_make_the_same_file_at_once_end_with_one_whole_file(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, [f"{i}.png" for i in range(4)])
    monkeypatch.setattr(cache, "_CHUNK", 3 * SIZE * SIZE)
    expected = slowly(tmp_path, names)
    second, seen, began = [], [], threading.Event()

    def meanwhile(done, total):
        seen.append(done)
        if done == 2:
            other.start()
            assert began.wait(30)

    def load_too():
        began.set()
        second.append(cache.load_files(tmp_path, names, SIZE, progress=lambda done, total: seen.append(done))[0])

    other = threading.Thread(target=load_too)
    first, _ = cache.load_files(tmp_path, names, SIZE, progress=meanwhile)
    other.join(30)
    assert torch.equal(first, expected)
    assert torch.equal(second[0], expected)
    assert seen == [1, 2, 3, 4]  # the second waited
    assert len(files(kept)) == 1
    monkeypatch.setattr(cache, "read_image", no_decoding)
    assert torch.equal(cache.load_files(tmp_path, names, SIZE)[0], expected)


def test_decoding_that_was_stopped_goes_on_behind_the_pieces_that_are_whole(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, [f"{i}.png" for i in range(6)])
    monkeypatch.setattr(cache, "_CHUNK", 3 * SIZE * SIZE)
    expected = slowly(tmp_path, names)

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.load_files(tmp_path, names, SIZE, progress=stop)
    (part,) = kept.glob(".*.part")
    with part.open("r+b") as file:  # a page that a power cut took
        file.seek(2 * 3 * SIZE * SIZE)
        file.write(bytes(99))
    os.utime(part, (0, time.time() - 25 * 3600))
    seen, decoder = [], cache.read_image
    monkeypatch.setattr(cache, "read_image", lambda path, size: seen.append(path.name) or decoder(path, size))
    assert torch.equal(cache.load_files(tmp_path, names, SIZE)[0], expected)
    assert sorted(seen) == ["2.png", "4.png", "5.png"]
    assert len(files(kept)) == 1


def test_what_no_one_will_read_again_goes_and_what_is_being_written_stays(tmp_path, kept):
    names = write_images(tmp_path / "gone", ["0.png"])
    cache.load_files(tmp_path / "gone", names, SIZE)
    (gone,) = kept.iterdir()
    (tmp_path / "gone").rename(tmp_path / "moved")
    (kept / "damaged.pixels").write_bytes(b"x" * 100)
    (kept / ".dead.part").write_bytes(b"x")
    (kept / ".live.part").write_bytes(b"x")
    os.utime(kept / ".dead.part", (0, time.time() - 25 * 3600))
    (kept / "notes.txt").write_text("mine")
    cache.load_files(tmp_path / "moved", names, SIZE)
    (left,) = set(files(kept)) - {".live.part", "notes.txt"}
    assert left.endswith(".pixels")
    assert left != gone.name


def test_a_broken_image_is_named_and_nothing_is_kept(tmp_path, kept):
    names = write_images(tmp_path, ["0.png", "1.png", "2.png"])
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png: found no readable image"):
        cache.load_files(tmp_path, names, SIZE)
    assert files(kept) == []
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: no such file"):
        cache.load_files(tmp_path, names, SIZE)


def refused_before_decoding(tmp_path, names, monkeypatch, message):
    monkeypatch.setattr(cache, "read_image", no_decoding)
    with pytest.raises(DataError, match=message) as caught:
        cache.load_files(tmp_path, names, SIZE)
    assert "XDG_CACHE_HOME" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_folder_that_cannot_be_made_is_refused_before_any_image_is_decoded(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, ["0.png"])
    (tmp_path / "cache").write_text("a file")
    refused_before_decoding(tmp_path, names, monkeypatch, "not a directory")


def test_a_disk_with_too_little_room_is_refused_before_any_image_is_decoded(tmp_path, kept, monkeypatch):
    names = write_images(tmp_path, ["0.png"])
    huge = 1 << 24
    refused = f"GB free, expected room for {3 * huge * huge / 1e9:,.2f} GB"
    monkeypatch.setattr(cache, "read_image", no_decoding)
    with pytest.raises(DataError, match=refused):
        cache.load_files(tmp_path, names, huge)
    assert files(kept) == []


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_nothing_stays(tmp_path, kept):
    names = write_images(tmp_path, [f"{i}.png" for i in range(10)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 3 * SIZE * SIZE, hard))
    try:
        with pytest.raises(DataError, match=r"file too large, expected room for .* XDG_CACHE_HOME"):
            cache.load_files(tmp_path, names, SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(kept) == []


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory there is, and is promised, is asked of Linux")
def test_a_map_larger_than_the_memory_is_opened(tmp_path):
    side = 1 << 20
    n = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (3 * side) + 1
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, n * 3 * side)
    pixels = cache._map(path, (n, 3, 1024, 1024))
    assert int(pixels[-1].sum()) == 0


MEASURE = """
import sys
from pathlib import Path
from PIL import Image
import torch
from budgetnet import cache, data, splits

def anonymous():
    line, = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

root, peak = Path(sys.argv[1]), 0
def watch(*_):
    global peak
    peak = max(peak, anonymous())

cache.read_image(root / "test/0/0.ppm", 96)  # what is imported and allocated once
torch.randint(0, 256, (1 << 20,)).double().sum()
before = anonymous()
for turn in ("made", "opened"):
    dataset = data.load("folder", root, 96, decoding=watch)
    watch()
    train, val = splits.split(dataset.train.labels, 200, 0)
    held_out = dataset.train.images[val]
    watch()
    total = 0
    for batch in splits.batches(train[splits.epoch_order(len(train), 0, 0)], 32):
        total += int(dataset.train.images[batch].max())
        watch()
    print(peak - before, dataset.checksum)
    peak = 0
del held_out
cache.KEEP_FROM = 1 << 40
between = anonymous()
dataset = data.load("folder", root, 96)
print(anonymous() - between, dataset.checksum)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_a_tree_is_decoded_split_and_trained_on_in_a_fraction_of_the_memory_of_its_pixels(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.bytes(96 * 96 * 3 + 3000)
    for i in range(3000):
        path = tmp_path / "tree" / ("test" if i < 20 else "train") / str(i % 10) / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6 96 96 255\n" + noise[i : i + 96 * 96 * 3])
    decoded = 3000 * 96 * 96 * 3
    assert decoded > cache.KEEP_FROM
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "tree"],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (made, one), (opened, two), (held, three) = (line.split() for line in done.stdout.splitlines())
    assert one == two == three
    assert int(made) < decoded / 2
    assert int(opened) < decoded / 2
    assert int(held) > 0.9 * decoded  # the measure sees what is held in memory


def test_what_pillow_would_read_by_running_another_program_is_no_image(tmp_path):
    (tmp_path / "picture.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match=r"picture\.png: found no readable image \(of no known format\)"):
        cache.read_image(tmp_path / "picture.png", 32)


def test_an_image_of_too_many_pixels_is_refused_and_one_of_just_as_many_is_read(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PNG")
    assert cache.read_image(io.BytesIO(file.getvalue()), 8, 600).shape == (3, 8, 8)
    with pytest.raises(DataError, match="the file: found 30x20 pixels, expected at most 599: shrink the image"):
        cache.read_image(io.BytesIO(file.getvalue()), 8, 599)
