"""Pictures of networks, of scores under corruption, of confusions and of images, as files (matplotlib)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.files import replacing
from budgetnet.markup import shortened
from budgetnet.models import Row, summarize
from budgetnet.robustness import ShiftScores
from budgetnet.shift import COMMON, EXTRA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sizes in points, which is what text comes in: a box is as wide as its longest line needs.
_FONT, _LINE, _GAP, _PAD = 9.0, 13.0, 16.0, 8.0
_CHARACTER = 0.56 * _FONT  # DejaVu Sans, on average, rounded up
_CLASSES = 20  # whose names and counts there is room for
_COLOURS = {"stem": "#dfe7ef", "stage": "#f3f5f7", "block": "#cfe3f7", "shortcut": "#f9e2c0", "head": "#dcefdc"}


@dataclass(frozen=True)
class Box:
    """Layers or blocks in a row: the lines of text about them, on a ground of a colour."""

    lines: list[str]
    colour: str

    @property
    def height(self) -> float:
        """Of the box, in points."""
        return len(self.lines) * _LINE + 2 * _PAD


@dataclass(frozen=True)
class Panel:
    """A stage: its title, its boxes from top to bottom, and in the footer what it puts out and costs."""

    title: str
    boxes: list[Box]
    footer: list[str]

    @property
    def width(self) -> float:
        """Of the panel, in points."""
        lines = [self.title, *self.footer, *(line for box in self.boxes for line in box.lines)]
        return max(len(line) for line in lines) * _CHARACTER + 4 * _PAD

    @property
    def height(self) -> float:
        """That the panel needs, in points."""
        boxes = sum(box.height for box in self.boxes) + _PAD * (len(self.boxes) - 1)
        return _LINE * (1 + len(self.footer)) + boxes + 4 * _PAD


def draw_network(network: nn.Module, path: Path, title: str, image_size: int) -> None:
    """Draw the stages of a network from left to right, with their blocks, shapes, switches and parameters.

    All that the picture says is read off the network itself and its forward pass. Equal blocks in a row share a box.

    Args:
        network: on any device, `meta` included; left as it was.
        path: where to write, ending in .svg or .png; written over.
        title: heading of the picture.
        image_size: side of the images in pixels.

    Raises:
        ConfigError: `path` ends in something else.
        BudgetnetError: matplotlib is not installed, or `path` cannot be written.
    """
    require_picture(path)
    channels = next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    rows = summarize(network, image_size, channels)
    panels = stages(rows)
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) + 1)
    body = max(panel.height for panel in panels)
    height = body + 3.2 * _LINE + 2 * _GAP

    parameters, multiply_adds = sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
    subtitle = (
        f"{channels} x {image_size} x {image_size} image   -   {parameters:,} trainable parameters   -   "
        f"{multiply_adds / 1e6:,.1f} million multiply-adds"
    )
    width = max(width, len(subtitle) * _CHARACTER + 2 * _GAP)
    figure, axes = _canvas(width, height)
    axes.text(_GAP, _GAP + _LINE * 0.6, title, fontsize=15, fontweight="bold", va="center")
    axes.text(_GAP, _GAP + _LINE * 2.0, subtitle, fontsize=_FONT, color="#444444", va="center")
    x, top = _GAP, _GAP + 3.2 * _LINE
    for i, panel in enumerate(panels):
        _draw_panel(axes, panel, x, top, body)
        x += panel.width
        if i < len(panels) - 1:
            middle = top + body / 2
            arrow = {"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy=(x + _GAP, middle), xytext=(x, middle), arrowprops=arrow)
        x += _GAP
    _save(figure, path)


def draw_shift(scores: ShiftScores, path: Path, title: str) -> None:
    """Draw the accuracy on each corruption and severity as a heat map with its numbers; shades are shares of clean.

    Args:
        scores: of one or more corruptions.
        path: where to write, ending in .svg or .png; written over.
        title: heading of the picture.

    Raises:
        ConfigError: `path` ends in something else.
        BudgetnetError: matplotlib is not installed, or `path` cannot be written.
    """
    require_picture(path)
    from matplotlib import colormaps

    shades = colormaps["cividis"]  # the same to those who confuse red and green, and in grey
    groups = [[name for name in group if name in scores.cells] for group in (COMMON, EXTRA)]
    severities = list(next(iter(scores.cells.values())))
    cell, name_width, top = (50.0, 20.0), 130.0, 78.0
    names = [name for group in groups for name in group]
    gap = 8.0 if all(groups) else 0.0
    width = name_width + (len(severities) + 1) * cell[0] + gap + 2 * _GAP
    width = max(width, len(title) * 1.25 * _CHARACTER + 2 * _GAP)
    height = top + len(names) * cell[1] + gap + 2.6 * _LINE + _GAP
    figure, axes = _canvas(width, height)
    axes.text(_GAP, _GAP + 3, title, fontsize=12, fontweight="bold", va="center")
    clean = (
        f"accuracy in % by severity; clean, the lightest: {100 * scores.clean.accuracy:.2f} ({scores.images:,} images)"
    )
    axes.text(_GAP, _GAP + 1.5 * _LINE, clean, fontsize=_FONT, color="#444444", va="center")

    def write(x: float, y: float, share: float) -> None:
        from matplotlib.patches import Rectangle

        shade = shades(share / max(scores.clean.accuracy, share, 1e-9))
        axes.add_patch(Rectangle((x, y), *cell, facecolor=shade, edgecolor="white", lw=1))
        light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.5
        middle = (x + cell[0] / 2, y + cell[1] / 2)
        colour = "black" if light else "white"
        axes.text(*middle, f"{100 * share:.1f}", fontsize=_FONT, color=colour, ha="center", va="center")

    lefts = [_GAP + name_width + i * cell[0] for i in range(len(severities))]
    last = _GAP + name_width + len(severities) * cell[0] + 8
    for x, heading in zip([*lefts, last], [*map(str, severities), "mean"], strict=True):
        axes.text(x + cell[0] / 2, top - _LINE / 2, heading, fontsize=_FONT, ha="center", va="center")
    y = top
    for group in groups:
        for name in group:
            axes.text(_GAP + name_width - 6, y + cell[1] / 2, name, fontsize=_FONT, ha="right", va="center")
            for x, severity in zip(lefts, severities, strict=True):
                write(x, y, scores.cells[name][severity].accuracy)
            mean = scores.mean([name])
            assert mean is not None, "of what was measured"
            write(last, y, mean.accuracy)
            y += cell[1]
        y += gap
    means = [
        f"{what} {100 * mean.accuracy:.2f} %"
        for what, mean in (("mean corruption accuracy", scores.mean(COMMON)), ("of the 4 extra", scores.mean(EXTRA)))
        if mean
    ]
    axes.text(_GAP, y + _LINE, ", ".join(means), fontsize=_FONT, va="center")
    _save(figure, path)


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str) -> None:
    """Draw how many images of each class were taken for each; shades are shares of the class.

    Args:
        counts: by true class, then by predicted class.
        classes: their names; of more than 20, neither names nor numbers are written.
        path: where to write, ending in .svg or .png; written over.
        title: heading of the picture.

    Raises:
        ConfigError: `path` ends in something else.
        BudgetnetError: matplotlib is not installed, or `path` cannot be written.
    """
    require_picture(path)
    written = len(classes) <= _CLASSES
    most = max(1, *(count for row in counts for count in row))
    side = max(26.0, len(f"{most:,}") * _CHARACTER + 10) if written else 400.0 / len(classes)
    names = [shortened(name, 20) for name in classes] if written else []
    margin = max(40.0, *(len(name) * _CHARACTER + 14 for name in names)) if names else 24.0
    left, top = _GAP + margin, 3.4 * _LINE + margin
    width = max(left + len(classes) * side + _GAP, len(title) * 1.25 * _CHARACTER + 2 * _GAP)
    height = top + len(classes) * side + _GAP
    figure, axes = _canvas(width, height)
    axes.text(_GAP, _GAP, title, fontsize=12, fontweight="bold", va="center", parse_math=False)
    axes.text(_GAP, _GAP + 1.5 * _LINE, "rows: what it is; columns: taken for", fontsize=_FONT, color="#444444")
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    extent = (left, left + len(classes) * side, top + len(classes) * side, top)
    # Square roots, so that the few mistakes of a good network are seen beside its hits.
    axes.imshow(
        [[share**0.5 for share in row] for row in shares], "Blues", aspect="auto", vmin=0, vmax=1, extent=extent
    )
    axes.set(xlim=(0, width), ylim=(height, 0))  # which the image has moved
    label: dict[str, Any] = {"fontsize": _FONT, "parse_math": False}
    for i, name in enumerate(names):
        middle = (i + 0.5) * side
        axes.text(left - 6, top + middle, name, ha="right", va="center", **label)
        axes.text(left + middle, top - 6, name, ha="center", va="bottom", rotation=90, **label)
        for j, count in enumerate(counts[i]):
            if count:
                colour = "white" if shares[i][j] > 0.3 else "black"
                axes.text(
                    left + (j + 0.5) * side, top + middle, f"{count:,}", ha="center", va="center", color=colour, **label
                )
    _save(figure, path)


def draw_grid(images: Tensor, captions: Sequence[tuple[str, str]], path: Path, title: str) -> None:
    """Draw images, eight in a row, each with two lines below.

    Args:
        images: uint8 (n, 3, h, w).
        captions: the lines, n of them.
        path: where to write, ending in .svg or .png; written over.
        title: heading of the picture.

    Raises:
        ConfigError: `path` ends in something else.
        BudgetnetError: matplotlib is not installed, or `path` cannot be written.
    """
    require_picture(path)
    side, across = 84.0, min(8, len(images))
    high, top = side + 2 * _LINE + 10, 2.4 * _LINE + 6
    width = max(across * (side + 8) + 2 * _GAP, len(title) * 1.25 * _CHARACTER + 2 * _GAP)
    height = top + -(-len(images) // across) * high + _PAD
    figure, axes = _canvas(width, height)
    axes.text(_GAP, _GAP, title, fontsize=12, fontweight="bold", va="center", parse_math=False)
    most = int(side / _CHARACTER)
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = _GAP + i % across * (side + 8), top + i // across * high
        pixels = image.permute(1, 2, 0).numpy()
        axes.imshow(pixels, extent=(x, x + side, y + side, y), interpolation="nearest", aspect="auto")
        for j, text in enumerate(lines):
            weight = "normal" if j else "bold"
            at = (x, y + side + (j + 0.6) * _LINE)
            axes.text(*at, shortened(text, most), fontsize=_FONT, fontweight=weight, va="center", parse_math=False)
    axes.set(xlim=(0, width), ylim=(height, 0))  # which the images have moved
    _save(figure, path)


def require_picture(path: Path) -> None:
    """Refuse early what could not be drawn.

    Raises:
        ConfigError: `path` ends in neither .svg nor .png, or its folder is not there.
        BudgetnetError: matplotlib is not installed.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"the picture {path} ends in {path.suffix or 'nothing'!r}, expected .svg or .png")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {path.parent}; create it or choose another")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BudgetnetError(f"a picture needs matplotlib ({error}): pip install 'budgetnet[picture]'") from error


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of that size in points, which its axes count from the upper left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasAgg(figure)  # no display, and nothing of pyplot's global state
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        kind = path.suffix.lower()[1:]
        figure.savefig(temporary, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)


def stages(rows: list[Row]) -> list[Panel]:
    """A panel for each stage, and one for the layers before the first and after the last."""
    panels: list[Panel] = []
    for stage, group in itertools.groupby(rows, key=_stage):
        members = list(group)
        outside = "head" if panels else "stem"
        boxes = [
            _box(kind, len(list(same)), "block" if stage else outside)
            for kind, same in itertools.groupby(members, key=lambda row: row.kind)
        ]
        shape = " x ".join(str(size) for size in members[-1].output_shape)
        footer = [f"out {shape}", f"{sum(row.parameters for row in members):,} parameters"]
        panels.append(Panel(stage or outside, boxes, footer))
    return panels


def _stage(row: Row) -> str:
    """The stage that a row belongs to; none for single layers."""
    return "" if row.kind.startswith(("conv ", "batch norm", "layer norm", "linear")) else row.name.split(".")[0]


def _box(kind: str, count: int, colour: str) -> Box:
    first, *switches = re.sub(r"(?<=\d)-(?=\d)", " \N{RIGHTWARDS ARROW} ", kind).split(", ")
    if "projection" in switches:
        colour = "shortcut"
    return Box([f"{count} x {first}" if count > 1 else first, *switches], colour)


def _draw_panel(axes: Axes, panel: Panel, x: float, top: float, height: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    def rectangle(x: float, y: float, width: float, height: float, colour: str, edge: str) -> None:
        style = "round,pad=0,rounding_size=5"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=edge, lw=0.8))

    centre = x + panel.width / 2
    rectangle(x, top, panel.width, height, _COLOURS["stage"], "#b5bdc5")
    _line(axes, centre, top + _PAD, panel.title, size=_FONT + 1, bold=True)
    y = top + 2 * _PAD + _LINE
    for box in panel.boxes:
        rectangle(x + _PAD, y, panel.width - 2 * _PAD, box.height, _COLOURS[box.colour], "#8a949e")
        for i, line in enumerate(box.lines):
            _line(axes, centre, y + _PAD + i * _LINE, line, bold=i == 0)
        y += box.height + _PAD
    for i, line in enumerate(panel.footer):
        _line(axes, centre, top + height - _PAD - (len(panel.footer) - i) * _LINE, line)


def _line(axes: Axes, centre: float, top: float, text: str, size: float = _FONT, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    axes.text(centre, top + _LINE / 2, text, fontsize=size, fontweight=weight, ha="center", va="center")
