"""What the commands print fits the terminal, in straight columns, and is coloured only where that is wanted."""

import io
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import demo
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from budgetnet.cli import main
from budgetnet.cli.common import progress_on
from budgetnet.position import Position
from budgetnet.progress import LiveProgress, PlainProgress
from budgetnet.terminal import cell_len, columns, fitted, wrapped

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "recipes" / "smoke.yaml")
CLASSES = (
    "dog",
    "golden_retriever_with_a_very_long_name_that_goes_on",
    "猫",
    "金色的寻回犬和它的朋友们在公园里玩得很开心",
)
COLOURS = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
TEXTS = st.text(st.sampled_from("ab é猫犬"), max_size=60)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos of classes whose names are long or wide, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CLASSES:
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in range(6):
                picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                picture.save(folder / "photos" / part / name / f"{i}{'_图' * (i % 2)}.png")
    options = ["--dataset", "folder", "--data", "photos", "--image-size", "16", "--val-size", "4", "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", SMOKE, *options, "--no-track", "--no-report", "--quiet", "--output", "run"]) == 0
    return folder


# ------------------------------------------------------------------------------------------------------- the layout


@given(TEXTS, st.integers(1, 40))
def test_a_fitted_text_takes_exactly_its_columns_and_shows_where_it_was_cut(text, width):
    found = fitted(text, width)
    assert cell_len(found) == width
    if cell_len(text) <= width:
        assert found == text + " " * (width - cell_len(text))
    else:
        whole, ellipsis, padding = found.partition("…")
        assert ellipsis
        assert text.startswith(whole)
        assert not padding.strip()


@given(TEXTS, st.integers(5, 40), st.integers(0, 3), st.booleans())
def test_a_wrapped_text_keeps_its_words_in_lines_that_fit(text, width, indent, chop):
    lines = wrapped(text.lstrip(" "), width, indent, chop=chop)
    shown = [line.removeprefix(" " * indent * (number > 0)) for number, line in enumerate(lines)]
    assert all(line.startswith(" " * indent) for line in lines[1:])
    if chop:
        assert max(map(cell_len, lines)) <= width
        assert "".join(shown).replace(" ", "") == text.replace(" ", "")
    else:
        assert " ".join(shown).split() == text.split()
        assert all(cell_len(line) <= width or " " not in line for line in shown)
        # No word would have fitted on the line before its own.
        for before, after in zip(lines, shown[1:], strict=False):
            assert cell_len(before) + 1 + cell_len(after.split(" ")[0]) > width


def test_what_fits_is_left_as_it_is_and_spaces_at_the_start_stay():
    assert wrapped("  1   2  ", 9) == ["  1   2  "]
    assert wrapped("  one two three", 9, 4) == ["  one two", "    three"]
    assert wrapped("", 9, chop=True) == [""]


def test_text_is_laid_out_for_the_terminal_and_for_80_columns_where_there_is_none(monkeypatch):
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert columns() == 80
    monkeypatch.setenv("COLUMNS", "120")
    assert columns() == 120
    monkeypatch.setenv("COLUMNS", "10")
    assert columns() == 40


# ---------------------------------------------------------------------------------------------------- the commands

COMMANDS = [
    ["models"],
    ["inspect", "enhanced"],
    ["inspect", "whitened_cnn_large"],
    ["inspect", "run"],
    ["evaluate", "run", "--data", "photos"],
    ["evaluate", "run", "--data", "photos", "--precision", "int8", "--temperature", "2"],
    ["predict", "run", "photos/test/dog"],
    ["predict", "run", "photos/test/dog", "--output", "of.csv", "--temperature", "fit", "--data", "photos"],
    ["data", "stats", "photos"],
    ["data", "verify", "photos"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_line_is_wider_than_the_terminal_and_nothing_coloured_goes_to_a_pipe(command, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert "\x1b" not in shown


def test_names_of_any_width_stand_in_straight_columns(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["data", "stats", "photos"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:5]
    assert [line.split()[0] for line in lines] == list(CLASSES)
    assert len({cell_len(line) for line in lines}) == 1
    assert main(["predict", "run", "photos/test/dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.png", "1_图.png", "2.png", "3_图.png", "4.png", "5_图.png"]
    assert len({cell_len(line) for line in lines}) == 1
    assert main(["evaluate", "run", "--data", "photos"]) == 0
    shown = capsys.readouterr().out
    assert "golden_retriever_wi…" in shown
    rows = [line for line in shown.splitlines() if re.match(r"\d \S", line) and "%" in line]
    assert len({cell_len(line) for line in rows}) == 1


def test_a_layer_goes_on_under_its_own_column_where_the_terminal_is_narrow(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", "enhanced"]) == 0
    wide = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", "enhanced"]) == 0
    narrow = capsys.readouterr().out.splitlines()
    place = narrow[1].index("kind")
    joined = []
    for line in narrow:
        if line[:place].strip():
            joined.append(line)
        else:
            joined[-1] += " " + line[place:]
    assert joined == wide


def test_a_comparison_leaves_columns_out_and_says_so_sooner_than_it_cuts_a_number(
    make_run, tmp_path, capsys, monkeypatch
):
    folders = []
    for name, options, gain in (("plain", [], 0.0), ("a-much-longer-name", ["--model.width", "16"], 0.0312)):
        for seed in range(2):
            val, many = 0.9 + gain + seed / 300, {"parameters": 1_234_567, "minutes": 754.5}
            path = tmp_path / f"{name}-{seed}"
            folders.append(str(make_run(path, "--seed", str(seed), *options, val=val, test=val - 0.02, **many)))

    def shown(width: int) -> tuple[str, set[str]]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["compare", *folders]) == 0
        text = capsys.readouterr().out
        assert max(map(cell_len, text.splitlines())) <= width
        return text, set(re.findall(r"[+-]?\d[\d,.:]*\d", text.split("Highest")[0].split("differs")[0]))

    whole, numbers = shown(200)
    assert "no room" not in whole
    assert "1,234,567" in numbers
    for width in range(40, 100):
        text, found = shown(width)
        assert found - {"95"} <= numbers, f"at {width}, numbers are cut"
        assert "12:34:30" in found
        assert "+3.12" in text
        assert ("no room for:" in text) is (found != numbers or "seeds" not in text.split("no room")[0])
    narrow, _ = shown(40)
    assert "no room for: less A, test %, less A" in " ".join(narrow.split())
    assert "no room for: seeds, M mult-adds" in " ".join(narrow.split())


def test_groups_whose_options_do_not_fit_side_by_side_are_shown_in_further_tables(
    make_run, tmp_path, capsys, monkeypatch
):
    rates = [f"0.{i}{i}{i}{i}{i}{i}{i}" for i in range(1, 9)]
    folders = [str(make_run(tmp_path / f"run-{rate}", "--optimizer.lr", rate)) for rate in rates]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("optimizer.lr")]
    assert len(rows) == 2
    assert " ".join(row.removeprefix("optimizer.lr") for row in rows).split() == rates
    assert max(map(cell_len, lines)) <= 80


def test_accuracies_stand_one_below_the_other_with_and_without_a_deviation(make_run, tmp_path, capsys):
    folders = [make_run(tmp_path / f"a-{seed}", "--seed", str(seed), val=0.9 + seed / 100) for seed in (0, 1, 2)]
    folders.append(make_run(tmp_path / "b", "--optimizer.lr", "0.2", val=1.0))
    assert main(["compare", *map(str, folders)]) == 0
    lines = capsys.readouterr().out.splitlines()
    a, b = (next(line for line in lines if re.match(start, line)) for start in (r"A .* ± ", r"B .*100\.00"))
    assert a.index(".") == b.index(".")


# ---------------------------------------------------------------------------------------------------- the progress


def at(step: int, epoch: int = 0) -> Position:
    return Position(
        epoch=epoch,
        step=step,
        images=64 * step,
        loss_sum=128.0 * step,
        correct=8 * step,
        epoch_seconds=4.0,
        seconds=3600.0,
    )


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 120, 200])
def test_the_live_line_never_reaches_a_second_line_and_keeps_the_time_that_is_left(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    progress = LiveProgress(out)
    progress.epochs = 300
    progress.step(at(1500, 99), 1500, 0.000123)
    progress.download(170_000_000, 170_000_000)
    progress.decode(1_234_567, 1_234_567)
    progress.score(96, 96)
    progress.end()
    lines = [line for line in re.split(r"[\r\n]", plain(out.getvalue())) if line.strip()]
    assert len(lines) >= 4
    assert max(map(cell_len, lines)) <= width
    first = lines[0]
    assert first.startswith("epoch 100/300")
    assert ("left" in first) is (width >= 40)
    assert ("loss" in first) is (width >= 40)
    assert ("━" in first) is (width >= 79)
    assert ("lr" in first) is (width >= 120)


def test_a_live_line_moves_nothing_from_one_redraw_to_the_next(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    places = set()
    for step in (1, 90, 100, 1000):
        out = Terminal()
        progress = LiveProgress(out)
        progress.epochs = 100
        progress.step(at(step, 50 if step == 1 else 9), 1000, 0.05 / step)
        progress.end()
        line = next(line for line in re.split(r"[\r\n]", plain(out.getvalue())) if line.strip())
        places.add(tuple(line.index(word) for word in ("/100", "/1000", "loss", "acc", "lr", "img/s")))
    assert len(places) == 1


@pytest.mark.parametrize("width", [50, 60, 70, 80, 120])
def test_the_table_of_epochs_leaves_columns_out_sooner_than_it_wraps(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second", "seconds")
    out = Terminal()
    progress = LiveProgress(out)
    progress.epoch(dict.fromkeys(names, 0.5) | {"images_per_second": 12345.0, "seconds": 7200.0}, best=True)
    lines = plain(out.getvalue()).splitlines()[1:]
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert len(lines[0]) + len(" *") == len(lines[1])
    assert lines[0].split()[0] == "epoch"
    assert lines[0].endswith("time")
    assert "val acc" in lines[0]
    assert ("lr" in lines[0]) is (width >= 80)


def test_a_long_line_is_wrapped_at_spaces_and_a_path_stays_whole():
    out = io.StringIO()
    path = "/a" * 60
    PlainProgress(out).say(f"cpu, fp32; run folder {path}")
    assert out.getvalue().splitlines() == ["cpu, fp32; run folder", f"  {path}"]


@pytest.mark.parametrize("wish", ["", "NO_COLOR"])
def test_the_best_epoch_is_coloured_in_a_terminal_unless_that_is_not_wanted(wish, monkeypatch):
    if wish:
        monkeypatch.setenv(wish, "1")
    out = Terminal()
    LiveProgress(out).epoch({"epoch": 1.0, "val_accuracy": 0.5, "seconds": 1.0}, best=True)
    assert bool(COLOURS.search(out.getvalue())) is (not wish)
    assert out.getvalue().rstrip().removesuffix("\x1b[0m").endswith(" *"), "the mark says it without colour too"


def test_a_terminal_that_can_redraw_nothing_gets_plain_lines(monkeypatch):
    assert type(progress_on(False, Terminal())) is LiveProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress_on(False, Terminal())) is PlainProgress


def test_a_training_in_a_real_and_narrow_terminal_without_colour(tmp_path):
    command = [sys.executable, "-m", "budgetnet", "train", SMOKE, "--no-track", "--no-report", "--epochs", "1"]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])
    shown = demo.in_a_terminal([*command, "--output", "narrow"], tmp_path, 72, NO_COLOR="1", PYTHONPATH=paths)
    assert not COLOURS.search(shown)
    assert "\x1b[2K" in shown, "a live line"
    lines = re.split(r"[\r\n]+", plain(shown))
    assert max(map(cell_len, lines)) <= 72
    assert any("img/s" in line for line in lines)


# ------------------------------------------------------------------------------------------- the picture of the demo


def test_what_a_terminal_shows_in_the_end_is_what_was_not_taken_back():
    written = (
        "one\r\n\x1b[?25l\r\x1b[2Kaway\r\x1b[2K\x1b[1;32m  3 best *\x1b[0m\r\nlive\r\n\r\x1b[1A\x1b[2Klast\x1b[?25h\r\n"
    )
    assert demo.screen(written) == [("one", ""), ("  3 best *", "1;32"), ("last", "")]
    assert demo.screen("x" * 80 + "\r\n" + "y" * 81) == [("x" * 80, ""), ("y" * 80, ""), ("y", "")]
    assert demo.screen("12345\rab") == [("ab345", "")]


def test_the_middle_of_a_long_table_is_left_out_and_counted():
    rows = [(f"{i:>5}  0.5", "") for i in range(10)]
    short = [("", ""), ("    0  1", ""), ("    1  2", "")]
    found = demo.shortened([("epoch", ""), *rows, *short])
    assert found == [("epoch", ""), *rows[:3], ("    ⋮  5 rows more", "cut"), *rows[8:], *short]


def test_a_drawn_screen_is_text_in_its_place_with_its_colour():
    svg = ElementTree.fromstring(demo.drawn([("$ a < b", ""), ("", ""), ("  & c *", "1;32"), ("d", "")]))
    texts = [each for each in svg if each.tag.endswith("text")]
    assert [(each.text, each.get("class")) for each in texts] == [
        ("$ a < b", "typed"),
        ("  & c *", "best"),
        ("d", None),
    ]
    heights = [int(each.get("y")) for each in texts]
    assert heights[1] - heights[0] == 2 * (heights[2] - heights[1])
    assert float(texts[1].get("textLength")) == pytest.approx(7 * float(texts[2].get("textLength")))


def test_readme_shows_what_the_demo_prints_as_a_small_picture_that_loads_nothing():
    path = ROOT / "docs" / "images" / "demo.svg"
    assert "(docs/images/demo.svg)" in (ROOT / "README.md").read_text()
    assert path.stat().st_size < 100_000
    svg = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert {each.tag.rpartition("}")[2] for each in svg} == {"title", "style", "rect", "text"}
    assert "href" not in path.read_text()
    assert "url(" not in path.read_text()
    lines = [each.text for each in svg if each.tag.endswith("text")]
    assert max(map(cell_len, lines)) <= 80
    assert lines[0] == "$ make demo"
    # Each command that the demo types, and the last line that it prints.
    program = (ROOT / "examples" / "demo.py").read_text()
    assert [line.split()[2] for line in lines[1:] if line.startswith("$ ")] == re.findall(
        r'budgetnet\("(\w+)"', program
    )
    assert lines[-1] in program
