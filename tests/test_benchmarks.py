import itertools
import json
import math
import random
import sys
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import figures  # noqa: E402
import ours  # noqa: E402
import plain  # noqa: E402
from turns import Contestant, Meter, Turn, take_turns  # noqa: E402

from budgetnet import data  # noqa: E402
from budgetnet.config import AugmentConfig  # noqa: E402
from budgetnet.inputs import normalize  # noqa: E402
from budgetnet.recipe import load_recipe  # noqa: E402

RECORD = json.loads(figures.RECORD.read_text())


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    random.seed(0)


# The command


def test_the_command_measures_start_up_and_records_what_it_measured_where_and_with_which_versions(
    monkeypatch, tmp_path, capsys
):
    path = tmp_path / "record.json"
    monkeypatch.setattr(bench, "write_cifar10", lambda folder: None)  # nobody reads it here
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--only", "startup", "--record", str(path)])
    bench.main()
    record = json.loads(path.read_text())
    assert record["about"]["versions"]["torch"] == torch.__version__
    assert record["about"]["hardware"]["cpu"]
    assert record["about"]["quick"]
    (startup,) = record["measurements"]
    names = [one["contestant"] for one in startup["contestants"]]
    assert names == ["`import torch`", "`budgetnet --help`", "`import budgetnet`", "Python alone"]
    for one in startup["contestants"]:
        assert len(one["rounds"]) == record["about"]["rounds"] == 2
        assert 0 < one["min"] <= one["median"] <= one["max"]
    alone = startup["contestants"][3]
    assert alone["times"]["median"] > 1, "Python starts faster than it imports torch"
    assert "Python alone" in capsys.readouterr().out


@pytest.mark.parametrize("unit", ["images/s", "ms", "MB"])
def test_twice_the_rate_half_the_time_and_half_the_memory_are_all_twice_as_good(unit, monkeypatch):
    slow = [Turn(images=100, seconds=[2.0], memory=10.0), Turn(images=100, seconds=[4.0], memory=400.0)]
    fast = [Turn(images=100, seconds=[1.0], memory=20.0), Turn(images=100, seconds=[2.0], memory=200.0)]
    monkeypatch.setattr(bench, "take_turns", lambda *_: {"slow": (slow[0], slow), "fast": (fast[0], fast)})
    value = {"images/s": bench._rate, "ms": lambda turn: turn.milliseconds(0.5), "MB": lambda turn: turn.memory}[unit]
    group = bench.Group(
        "kind",
        [Contestant("slow", ours.loading), Contestant("fast", ours.loading)],
        [bench.Row("row", "a row", unit, value)],
        seconds=0,
    )
    ((slowly, quickly),) = [found["contestants"] for found in bench.measure(group, bench.QUICK, print)]
    assert slowly["times"] == {"median": 1, "min": 1, "max": 1}
    assert quickly["times"] == {"median": 2, "min": 2, "max": 2}


def test_a_turn_counts_the_time_within_which_a_share_of_its_units_was_done():
    turn = Turn(images=200, seconds=[i / 1000 for i in range(200, 0, -1)], memory=0)
    assert (turn.milliseconds(0.5), turn.milliseconds(0.99), turn.milliseconds(1)) == (100, 198, 200)
    assert turn.rate == pytest.approx(200 / 20.1)


# Turns


def restless(meter: Meter, path: Path) -> None:
    """Counts in a thread whether it is its turn or not; a unit of work is over when the thread has counted on."""
    count = np.memmap(path, np.int64, "r+", shape=(1,))

    def run() -> None:
        while True:
            count[0] += 1

    threading.Thread(target=run, daemon=True).start()
    while True:
        before = int(count[0])
        while int(count[0]) == before:
            pass
        meter()


def watchful(meter: Meter, path: Path) -> None:
    """Fails when anybody counts in its turn."""
    count = np.memmap(path, np.int64, "r", shape=(1,))
    meter()  # all start at once: the first unit proves nothing
    while True:
        before = int(count[0])
        for _ in range(100_000):
            assert int(count[0]) == before
        meter()


def failing(meter: Meter) -> None:
    raise ValueError("something is wrong with it")


def test_outside_its_turn_a_contestant_stands_still_with_all_that_it_began(tmp_path):
    path = tmp_path / "count"
    path.write_bytes(bytes(8))
    contestants = [Contestant(work.__name__, work, {"path": path}) for work in (restless, watchful)]
    said = []
    results = take_turns(contestants, rounds=3, seconds=0, units=2, say=said.append)
    assert said == ["starting restless, watchful", "warming up", *(f"round {i} of 3" for i in (1, 2, 3))]
    for first, turns in results.values():
        assert len(first.seconds) == 1
        assert [len(turn.seconds) for turn in turns] == [2, 2, 2]
        assert all(turn.images == 2 for turn in turns)


def test_a_contestant_that_fails_ends_the_comparison_by_name():
    with pytest.raises(RuntimeError, match=r"^failing ended before its turn did"):
        take_turns([Contestant("failing", failing)], rounds=1, seconds=0, units=1, say=lambda text: None)


class Enough(Exception):  # noqa: N818  ends a contestant, which would go on for ever
    pass


class Counter:
    """A meter that ends the work after some units."""

    def __init__(self, units: int) -> None:
        self.images: list[int] = []
        self.units = units

    def __call__(self, images: int = 1) -> bool:
        self.images.append(images)
        if len(self.images) == self.units:
            raise Enough
        return False


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    bench.write_cifar10(folder, per_file=32)
    return folder


def test_the_images_of_the_benchmark_are_read_alike_by_both_sides(cifar10):
    images, labels = plain.read(cifar10)
    dataset = data.load("cifar10", cifar10)
    both = torch.cat([dataset.train.images, dataset.test.images])
    assert torch.equal(torch.from_numpy(images).permute(0, 3, 1, 2), both)
    assert torch.equal(torch.from_numpy(labels), torch.cat([dataset.train.labels, dataset.test.labels]))


def test_both_sides_train_in_full_batches_of_the_recipe(cifar10, tmp_path):
    config = load_recipe(ROOT / "recipes" / "smoke.yaml", ["--dataset", "cifar10", "--batch-size", "24"])
    meters = [Counter(4), Counter(4), Counter(4)]
    works = [
        lambda: ours.training(meters[0], config, cifar10, 1, tmp_path / "run", images=160),
        lambda: plain.training(meters[1], config, cifar10, 1),
        lambda: plain.steps(meters[2], config, 1),
    ]
    for work in works:
        with pytest.raises(Enough):
            work()
    assert [meter.images for meter in meters] == [[24] * 4] * 3


def test_both_sides_augment_and_load_for_ever(cifar10):
    config = load_recipe(ROOT / "recipes" / "reference.yaml", ["--batch-size", "40"])
    for work in (ours.augmentation, plain.augmentation):
        meter = Counter(9)  # more than an epoch of 160 or 192 images
        with pytest.raises(Enough):
            work(meter, config, cifar10, 1)
        assert set(meter.images) == {40}
    for work in (ours.loading, plain.loading):
        with pytest.raises(Enough):
            work(Counter(2), cifar10)


# The plain way's augmentation


def picture(seed: int = 0, low: int = 0, high: int = 256) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (32, 32, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def unchanged(config: AugmentConfig) -> plain.Chain:
    """The chain whose normalisation changes nothing, so that pixels come out in [0, 1]."""
    return plain.Chain(config, mean=(0, 0, 0), std=(1, 1, 1))


def test_without_a_step_the_plain_chain_is_normalisation():
    image = picture()
    expected = normalize(pixels(image)[None], plain.MEAN, plain.STD)[0]
    found = plain.Chain(AugmentConfig())(image)
    assert found.dtype == torch.float32
    assert found.shape == (3, 32, 32)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_the_plain_chain_crops_every_window_of_the_padded_image(border, mode):
    image = picture()
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)), mode=mode).transpose(2, 0, 1) / np.float32(255)
    windows = {padded[:, y : y + 32, x : x + 32].tobytes() for y, x in itertools.product(range(3), repeat=2)}
    chain = unchanged(AugmentConfig(crop_padding=1, crop_border=border))
    assert {chain(image).numpy().tobytes() for _ in range(200)} == windows


@pytest.mark.parametrize("flip", ["random", "alternate"])
def test_the_plain_chain_mirrors_about_half_of_the_images(flip):
    image = picture()
    chain, whole = unchanged(AugmentConfig(flip=flip)), pixels(image) / 255
    mirrored = 0
    for _ in range(200):
        found = chain(image)
        assert torch.equal(found, whole) or torch.equal(found, whole.flip(2))
        mirrored += torch.equal(found, whole.flip(2))
    assert 60 < mirrored < 140


def test_the_plain_chain_turns_by_the_degrees_that_it_may_and_leaves_the_centre():
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (16, 0, 32, 16))  # the quarter from noon to three
    chain = unchanged(AugmentConfig(rotation=10))
    angles = []
    for _ in range(50):
        rows, columns = torch.nonzero(chain(image)[0] > 0, as_tuple=True)
        angles.append(math.degrees(math.atan2(15.5 - rows.float().mean(), columns.float().mean() - 15.5)) - 45)
    assert -11 < min(angles) < -5
    assert 5 < max(angles) < 11


@pytest.mark.parametrize("step", ["brightness", "contrast", "saturation"])
def test_the_plain_chain_moves_colours_from_and_towards_what_each_enhancement_blends_with(step):
    image = picture(low=100, high=156)  # nothing is cut off at black or white
    whole = pixels(image).double()
    grey = (whole * torch.tensor([0.299, 0.587, 0.114], dtype=torch.double).view(3, 1, 1)).sum(0, keepdim=True)
    against = {"brightness": torch.zeros(1), "contrast": grey.mean(), "saturation": grey}[step]
    chain = unchanged(AugmentConfig(**{step: 0.2}))
    factors = []
    for _ in range(50):
        found = chain(image).double() * 255
        factor = ((found - against) * (whole - against)).sum() / (whole - against).square().sum()
        factors.append(factor.item())
        assert (found - (against + factor * (whole - against))).abs().max() < 3, "up to the rounding of uint8"
    assert 0.78 < min(factors) < 0.9
    assert 1.1 < max(factors) < 1.22


def test_the_plain_chain_turns_hues_and_keeps_the_brightest_channel():
    red = Image.new("RGB", (32, 32), (200, 20, 20))
    turned = {tuple(unchanged(AugmentConfig(hue=0.1))(red)[:, 0, 0].mul(255).round().int().tolist()) for _ in range(80)}
    assert len(turned) > 10
    assert all(max(colour) == 200 and abs(min(colour) - 20) <= 1 for colour in turned)
    assert max(green for _, green, _ in turned) > 80, "a tenth of the wheel is more than half of the way to yellow"
    assert max(blue for _, _, blue in turned) > 80


def test_the_plain_chain_erases_one_rectangle_of_every_second_image_in_normalised_units():
    value = (0.042, 0.090, 0.268)
    chain = plain.Chain(AugmentConfig(erase_p=0.5, erase_value=value))
    image = picture(low=200)  # no pixel is near the value
    erased = []
    for _ in range(200):
        hit = (chain(image) - torch.tensor(value).view(3, 1, 1)).abs().amax(0) < 1e-6
        if hit.any():
            rows, columns = hit.any(1).nonzero(), hit.any(0).nonzero()
            height, width = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
            assert hit.sum() == height * width
            erased.append((height * width / 1024, height / width))
    assert 60 < len(erased) < 140
    areas, ratios = zip(*erased, strict=True)
    assert 0.014 < min(areas) < 0.04, "two hundredths, up to whole pixels"
    assert 0.08 < max(areas) < 0.12
    assert 0.2 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 4.5


def test_the_plain_chain_cuts_out_a_square_that_may_reach_over_the_edge():
    chain = plain.Chain(AugmentConfig(cutout=8))
    sizes = [int((chain(picture(low=200)) == 0).all(0).sum()) for _ in range(100)]
    assert max(sizes) == 64
    assert min(sizes) < 64


# What is shown


@pytest.mark.parametrize(("page", "marks", "records", "section"), figures.SECTIONS)
def test_the_page_shows_what_the_record_holds(page, marks, records, section):
    content = page.read_text()
    shown = section(*(json.loads(record.read_text()) for record in records))
    assert figures.with_section(content, marks, shown) == content, "run `make table`"


def test_the_picture_shows_what_the_record_holds():
    words = " ".join(ET.fromstring(figures.PICTURE.read_text()).itertext())
    drawn = figures.drawn(RECORD)
    assert len(drawn) > 8
    for measurement, bars in drawn:
        assert all(line in words for line in figures._label_lines(measurement, bars[0]))
        for one in bars:
            assert figures._number(one["times"]["median"]) in words


def test_the_record_has_every_headline():
    held = {(found["name"], one["contestant"]) for found in RECORD["measurements"] for one in found["contestants"]}
    assert {*figures.HEADLINES} <= held


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="put both where the table shall stand"):
        figures.with_section("A page.", figures.SPEED_MARKS, "A table.")
