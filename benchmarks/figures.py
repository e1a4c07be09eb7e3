"""The records of `bench.py`, `growth.py` and `scale.py` as tables and a picture.

`python benchmarks/figures.py` writes docs/speed.md, docs/scale.md and README.

Nothing is typed in by hand, and nothing is measured here.
"""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path
from typing import Any

from budgetnet.files import atomic_write

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results" / "benchmarks" / "cpu.json"
GROWTH = ROOT / "results" / "benchmarks" / "growth.json"
SCALE = ROOT / "results" / "benchmarks" / "scale.json"
RACE = (ROOT / "results" / "speedrun.json", ROOT / "results" / "benchmarks" / "airbench.json")
PICTURE = ROOT / "docs" / "images" / "speed.svg"
SPEED_MARKS = ("<!-- speed: written by `make bench` -->", "<!-- end of speed -->")
GROWTH_MARKS = ("<!-- growth: written by `make table` -->", "<!-- end of growth -->")
CORES_MARKS = ("<!-- cores: written by `make table` -->", "<!-- end of cores -->")
GPUS_MARKS = ("<!-- gpus: written by `make table` -->", "<!-- end of gpus -->")
LINK_MARKS = ("<!-- link: written by `make table` -->", "<!-- end of link -->")
RACE_MARKS = ("<!-- race: written by `make table` -->", "<!-- end of race -->")
HEADLINES = (
    ("train-resnet_leaky", "budgetnet"),
    ("train-enhanced", "budgetnet"),
    ("train-speedrun", "budgetnet"),
    ("memory-resnet_leaky", "budgetnet"),
    ("augment-reference", "budgetnet"),
    ("infer-256-resnet_leaky", "budgetnet"),
    ("infer-256-resnet_leaky", "budgetnet, int8"),
    ("latency-p50-resnet_leaky", "budgetnet"),
    ("latency-p50-resnet_leaky", "budgetnet, int8"),
    ("load", "budgetnet"),
    ("startup", "`budgetnet --help`"),
)
"""What README shows: measurement and contestant, where the record has them."""
_INK = "#010203"  # what matplotlib draws text and lines with; the picture then takes the colour of the page's text
_COLOURS = {"": "#2f7fc1", "float32": "#6d97bb", "int8": "#d9822b", "compiled": "#9a8fd3"}

_KINDS = ("train", "step", "memory", "augment", "infer", "latency", "load", "startup", "norms", "compile")

Record = dict[str, Any]


def table(record: Record) -> str:
    """Every figure, a line for each contestant, in Markdown."""
    lines = ["| measured | contestant | median (least to most) | times as good |", "|---|---|--:|--:|"]
    for measurement in _in_order(record):
        for index, one in enumerate(measurement["contestants"]):
            measured = "" if index else f"{measurement['title']}, {measurement['unit']}"
            times = _range(one["times"]) if index else "1"
            lines.append(f"| {measured} | {one['contestant']} | {_range(one)} | {times} |")
    return "\n".join([*lines, "", _conditions(record, "../")])


def headlines(record: Record) -> str:
    """What README shows, in Markdown."""
    lines = ["| measured | plain PyTorch | budgetnet | times as good |", "|---|--:|--:|--:|"]
    found = {measurement["name"]: measurement for measurement in record["measurements"]}
    for name, contestant in HEADLINES:
        measurement = found.get(name, {"contestants": []})
        for one in measurement["contestants"]:
            if one["contestant"] == contestant:
                base = measurement["contestants"][0]
                label = f"{_label(measurement, one)}, {measurement['unit']}"
                if base["contestant"] != "plain PyTorch":
                    label += f" (against {base['contestant']})"
                lines.append(
                    f"| {label} | {_number(base['median'])} | {_number(one['median'])} | {_range(one['times'])} |"
                )
    return "\n".join([*lines, "", _conditions(record, "")])


def text(measurements: list[Record]) -> str:
    """Some measurements for the terminal."""
    lines = []
    for measurement in measurements:
        lines.append(f"{measurement['title']}, {measurement['unit']}".replace("`", ""))
        for index, one in enumerate(measurement["contestants"]):
            times = f"{_range(one['times'])} times as good" if index else ""
            lines.append(f"  {one['contestant'].replace('`', ''):22} {_range(one):32} {times}".rstrip())
    return "\n".join(lines)


def growth(record: Record) -> str:
    """How time and memory grow, a line for each task, in Markdown."""
    lines = ["| what grows | from, to | task | at the least | at the most | exponent |", "|---|---|---|--:|--:|--:|"]
    before = ""
    for row in record["rows"]:
        grows = row["grows"] if row["grows"] != before else ""
        reach = f"{row['x'][0]:,.0f} to {row['x'][-1]:,.0f}" if grows else ""
        least, most = (_amount(row["y"][end], row["unit"]) for end in (0, -1))
        lines.append(f"| {grows} | {reach} | {row['task']} | {least} | {most} | {row['exponent']:.2f} |")
        before = row["grows"]
    hardware = record["hardware"]
    return "\n".join(
        [
            *lines,
            "",
            f"{hardware['threads']} threads on {hardware['cpu'].replace(',', ' with')}, torch {record['torch']}, "
            f"medians of {record['rounds']} rounds. [Record](../{GROWTH.relative_to(ROOT)}).",
        ]
    )


def cores(record: Record) -> str:
    """What processes that divide the cores among them make, in Markdown."""
    lines = ["| network, batch | how | images/s | of one core | of one process on all cores |", "|---|---|--:|--:|--:|"]
    for measured in record["measured"]:
        for place, row in enumerate(measured["rows"]):
            what = "" if place else f"`{measured['network']}`, {measured['batch']}"
            lines.append(
                f"| {what} | {row['way']} | {_range(row['images_per_second'])} | {_range(row['of_one_core'])} | "
                f"{_range(row['of_threads'])} |"
            )
    about, sizes = record["about"], []
    for one in record["exchange"]:
        what = "a flag" if one["bytes"] < 100 else f"{one['bytes'] / 1e6:.1f} MB"
        sizes.append(f"{what} {_range({key: 1000 * value for key, value in one['seconds'].items()})} ms")
    hardware = about["hardware"]
    quick = (
        "A quick run while other programs had the cores, which is a look and no measurement. " if about["quick"] else ""
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{quick}An exchange between two processes here: {', '.join(sizes)}. "
            f"{hardware['cores']} cores of {hardware['cpu'].replace(',', ' with')}, torch {about['torch']}, float32, "
            f"{about['date']}: median (least to most) of turns, ratios taken within a round. "
            f"[Record](../{SCALE.relative_to(ROOT)}).",
        ]
    )


def link(record: Record) -> str:
    """What gradients in bfloat16 save on a slow link, in a sentence."""
    times = {one["exchange"]: one for one in record["slow_link"]}
    if not times:
        return "Not measured yet."
    wide, narrow = (times[kind]["step_seconds"] for kind in ("fp32", "bf16"))
    size = 4e-6 * record["networks"]["whitened_cnn"]["parameters"]
    return (
        f"Measured over a link of {times['fp32']['link'].replace('mbit', ' Mbit/s')} between two network namespaces, "
        f"steps of `whitened_cnn` ({size:.1f} MB of gradients) on 16 images in turns: {_range(wide)} seconds with "
        f"fp32, {_range(narrow)} with bf16."
    )


def gpus(record: Record) -> str:
    """What a step on many GPUs is reckoned to bring, in Markdown: the share of as many single GPUs."""
    counts = [1 << power for power in range(3, 11)]
    lines = [
        "| way | " + " | ".join(f"{count:,}" for count in counts) + " | half is lost beyond |",
        "|---|" + "--:|" * (len(counts) + 1),
    ]
    for row in record["reckoned"]:
        cells = [f"{one['efficiency']:.0%}" if one else "-" for one in row["at"]]
        good = [one["gpus"] for one in row["at"] if one and one["efficiency"] >= 0.5]
        last = f"{max(good):,}" if good else f"below {counts[0]}"
        lines.append(f"| {row['way']} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


def race(speedrun: Record, airbench: Record) -> str:
    """The least time to 94 %, ours and airbench's, in a sentence each."""
    spread = speedrun["spread"]
    accuracy, minutes = spread["test_accuracy_tta"], spread["minutes"]
    run = airbench["runs"][0]
    partial = run["epochs_measured"] < run["epochs"]
    how = f"extrapolated from {run['epochs_measured']} of its {run['epochs']} epochs" if partial else "measured whole"
    return (
        f"`speedrun` reaches {_with_spread(accuracy, 100, 2)} % of the test images, with averaged views, in "
        f"{_with_spread(minutes, 1, 1)} minutes (seeds: {minutes['n']}). "
        f"[airbench94](https://github.com/KellerJordan/cifar10-airbench) takes {airbench['minutes']:.1f} minutes on "
        f"the same {airbench['hardware']['threads']} cores, {airbench['minutes'] / minutes['mean']:.1f} times as long "
        f"({how})."
    )


def _with_spread(spread: Record, scale: float, digits: int) -> str:
    deviation = "" if spread["std"] is None else f" ± {scale * spread['std']:.{digits}f}"
    return f"{scale * spread['mean']:.{digits}f}{deviation}"


def _amount(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{_number(value)} {unit}"


def with_section(page: str, marks: tuple[str, str], section: str) -> str:
    """The text of a page with what stands between its marks written anew.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"found no {marks[0]} ... {marks[1]}: put both where the table shall stand")
    return f"{before}{begin}\n{section}\n{end}{after}"


def measured_by(record: dict[str, Any], path: Path) -> str:
    """With what a record was measured, and where it is, as the end of a paragraph below docs/."""
    hardware = record["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    machine = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''} of a busy machine"
    return f"{machine} ({hardware['cpu']}); {versions}. [Record](../{path.relative_to(ROOT).as_posix()})."


README, PAGE, SCALE_PAGE = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "docs" / "scale.md"
SECTIONS = [
    (PAGE, SPEED_MARKS, (RECORD,), table),
    (README, SPEED_MARKS, (RECORD,), headlines),
    (PAGE, GROWTH_MARKS, (GROWTH,), growth),
    (SCALE_PAGE, CORES_MARKS, (SCALE,), cores),
    (SCALE_PAGE, LINK_MARKS, (SCALE,), link),
    (SCALE_PAGE, GPUS_MARKS, (SCALE,), gpus),
    (README, RACE_MARKS, RACE, race),
    (PAGE, RACE_MARKS, RACE, race),
]
"""The pages, where on them, what records, and what of them."""


def publish() -> None:
    """Write the picture and the pages from the records."""
    atomic_write(PICTURE, picture(json.loads(RECORD.read_text())).encode())
    for page, marks, records, section in SECTIONS:
        found = section(*(json.loads(record.read_text()) for record in records))
        atomic_write(page, with_section(page.read_text(), marks, found).encode())


def drawn(record: Record) -> list[tuple[Record, list[Record]]]:
    """What the picture shows: measurements, and the contestants of each that have a bar."""
    names = {"budgetnet", "`budgetnet --help`", *(f"budgetnet, {variation}" for variation in _COLOURS if variation)}
    found = []
    for measurement in _in_order(record):
        bars = [one for one in measurement["contestants"][1:] if one["contestant"] in names]
        if bars and not measurement["name"].startswith("latency-p99"):
            found.append((measurement, bars))
    return found


def picture(record: Record) -> str:
    """An SVG: a bar from the plain way to how many times as good each contestant is, on a logarithmic scale.

    Its text and lines take a dark or a light colour, as the reader's page is light or dark.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = drawn(record)
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "budgetnet", "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    with pyplot.rc_context(style):
        count = sum(len(bars) for _, bars in rows)
        figure, axes = pyplot.subplots(figsize=(8.0, 0.9 + 0.19 * count + 0.1 * len(rows)), layout="constrained")
        place, centres = 0.0, []
        for _, bars in rows:
            centres.append(place + (len(bars) - 1) / 2)
            for one in bars:
                times = one["times"]
                axes.barh(place, times["median"] - 1, left=1, height=0.84, color=_COLOURS[_variation(one)])
                axes.plot([times["min"], times["max"]], [place, place], color=_INK, linewidth=1)
                axes.text(max(times["max"], 1) * 1.05, place, _number(times["median"]), va="center", size=8)
                place += 1
            place += 0.55
        axes.set_yticks(centres, ["\n".join(_label_lines(measurement, bars[0])) for measurement, bars in rows])
        axes.set_ylim(place - 0.8, -0.7)
        axes.set_xscale("log")
        ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        ends = [1.0, *(one["times"][end] for _, bars in rows for one in bars for end in ("min", "max"))]
        axes.set_xlim(min(ends) / 1.15, max(ends) * 1.5)
        axes.set_xlabel("times as good as the plain way, which is 1 (lines: least to most)")
        axes.axvline(1, color=_INK, linewidth=1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        present = {_variation(one) for _, bars in rows for one in bars}
        patches = [
            Patch(color=colour, label=", ".join(filter(None, ("budgetnet", variation))))
            for variation, colour in _COLOURS.items()
            if variation in present
        ]
        figure.legend(handles=patches, loc="outside upper right", ncols=len(patches), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    scheme = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d1d7e0}}</style>"
    head, tag, rest = buffer.getvalue().replace(_INK, "currentColor").partition("<defs>")
    return f"{head}{scheme}{tag}{rest}"


def _in_order(record: Record) -> list[Record]:
    return sorted(record["measurements"], key=lambda measurement: _KINDS.index(measurement["name"].partition("-")[0]))


def _label(measurement: Record, one: Record) -> str:
    """What a figure is called by itself."""
    if measurement["name"] == "startup":
        return f"{measurement['title']} of {one['contestant']}"
    return ", ".join(filter(None, (measurement["title"], _variation(one))))


def _label_lines(measurement: Record, one: Record) -> list[str]:
    """The same as lines that leave the picture room for its bars."""
    return textwrap.wrap(_label(measurement, one).replace("`", ""), 52)


def _variation(one: Record) -> str:
    """What follows the comma in the name of a contestant."""
    return str(one["contestant"].partition(", ")[2])


def _range(spread: Record) -> str:
    middle, low, high = (_number(spread[key]) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _conditions(record: Record, root: str) -> str:
    about = record["about"]
    hardware, versions = about["hardware"], about["versions"]
    quick = "A quick run in small batches, which is a look and no measurement: " if about["quick"] else ""
    kind = {"bf16": "bfloat16"}.get(about["precision"], "float32")
    return (
        f"{quick}{hardware['threads']} threads on {hardware['cpu'].replace(',', ' with')}, torch {versions['torch']}, "
        f"{about['rounds']} rounds in {about['minutes']:.0f} minutes, {about['date']}; "
        f"budgetnet computes in {kind} where float32 is not named and the recipe says auto. "
        f"[Record]({root}{RECORD.relative_to(ROOT)})."
    )


if __name__ == "__main__":
    publish()
