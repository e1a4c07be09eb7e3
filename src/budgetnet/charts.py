"""Charts as SVG text, from data alone: the drawing functions of all pages.

Sizes are in units of the drawing, about a pixel each where a chart has its natural width. Colours are classes and CSS
variables (`page.STYLE`), so that a chart follows the page between light and dark. Whatever has a value says it in a
`<title>`, which browsers show where the pointer rests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from budgetnet.markup import Html, join, percent, shortened, tag

T = TypeVar("T")

COLOURS = 8  # of the palette

_DASHES = (None, "6 3", "2 3", "8 3 2 3")
_MOST_DOTS, _MOST_HITS = 24, 160


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of values over x, with the name that the legend has; dashed or not, whatever the colour."""

    name: str
    points: Sequence[tuple[float, float]]
    """By rising x; what is not finite is left out."""
    colour: int = 0
    """Which of the palette; from `COLOURS` on they come again, dashed."""
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    """x, and the lowest and highest of what the line is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A share `value` in [0, 1], its interval from `low` to `high`, its label, and the tip that a pointer shows."""

    label: str
    value: float
    low: float
    high: float
    tip: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A field of a heat map: its text, its colour of the palette, and the tip that a pointer shows."""

    text: str
    strength: float
    """Of its colour, in [0, 1]."""
    colour: int = 0
    tip: str = ""
    key: str | None = None
    """What the page's script knows it by."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place (x, y) in a scatter plot: its label, its colour of the palette, and the tip that a pointer shows."""

    label: str
    x: float
    y: float
    spread: float | None = None
    """Standard deviation of y."""
    front: bool = False
    """Whether it is on the Pareto front, which a line joins."""
    colour: int = 0
    tip: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference: its value, half-width of its interval (None is unknown), label, colour of the palette, and tip."""

    label: str
    value: float
    interval: float | None
    colour: int
    tip: str


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`.

    Raises:
        ValueError: either end is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the range is {low} to {high}, expected finite numbers")
    if high <= low:
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def drawable(series: Sequence[Line]) -> list[Line]:
    """Those that have a value to draw."""
    return [line for line in series if _finite(line).points]


def lines(
    title: str,
    series: Sequence[Line],
    show: Callable[[float], str],
    *,
    mark: float | None = None,
    x_name: str = "epoch",
) -> Html:
    """Values over epochs, each with a legend, and with all values of an epoch where the pointer rests.

    Args:
        title: of the chart.
        series: at least one, with at least one finite value among them.
        show: how a value is written.
        mark: x of a dashed line up the chart; None is none.
        x_name: what x counts.
    """
    series = [_finite(line) for line in series]
    xs = sorted({x for line in series for x, _ in line.points})
    values = [y for line in series for _, y in line.points] + [
        y for line in series for _, *pair in line.band for y in pair
    ]
    rows = ticks(min(values), max(values))
    frame = _Frame(_span(xs), (rows[0], rows[-1]), left=9 + 6.2 * max(len(show(row)) for row in rows))
    parts = [_grid(frame, rows, show), _x_axis(frame, _whole(xs), x_name)]
    if mark is not None and xs[0] <= mark <= xs[-1]:
        parts.append(tag("path", class_="mark", d=f"M{frame.x(mark):.1f} {frame.top}V{frame.bottom}"))
    for line in series:
        colour = f"c{line.colour % COLOURS}"
        if line.band:
            edge = [(x, low) for x, low, _ in line.band] + [(x, high) for x, _, high in reversed(line.band)]
            parts.append(tag("path", class_=f"band {colour}", d=frame.path(edge) + "Z"))
        curve = frame.path(_thinned(line.points, 1000))
        parts.append(tag("path", class_=f"line {colour}", d=curve, stroke_dasharray=_dash(line)))
        if len(line.points) <= _MOST_DOTS:
            parts += [
                tag("circle", class_=f"dot {colour}", cx=frame.x(x), cy=frame.y(y), r=2.2) for x, y in line.points
            ]
    parts += _hits(frame, series, xs, show, x_name)
    legend = [(line.name, line.colour, _dash(line)) for line in series if len(series) > 1 or line.name != title.lower()]
    return _figure(title, frame.width, frame.height, parts, legend)


def bars(title: str, items: Sequence[Bar], colour: int = 0) -> Html:
    """Shares from 0 to 100 % with their intervals, one below another."""
    left, right, width, row = 104.0, 54.0, 400.0, 20.0
    span = width - left - right
    height = len(items) * row + 22
    parts: list[Html] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + tick * span
        parts.append(tag("path", class_="grid", d=f"M{x:.1f} 2V{height - 20:.1f}"))
        parts.append(tag("text", percent(tick, 0), class_="middle faint", x=x, y=height - 6))
    for i, item in enumerate(items):
        y = 3 + i * row
        middle = y + 6.5
        whisker = (
            f"M{left + item.low * span:.1f} {middle}H{left + item.high * span:.1f}"
            f"M{left + item.low * span:.1f} {middle - 3}v6M{left + item.high * span:.1f} {middle - 3}v6"
        )
        parts.append(
            _hit(
                item.tip,
                tag("rect", x=0, y=y - 3, width=width, height=row),
                tag("text", shortened(item.label, 16), class_="end", x=left - 6, y=y + 10.5),
                _filled(colour, 0.55, left, y, item.value * span, 13),
                tag("path", class_="whisker", d=whisker),
                tag("text", percent(item.value, 1), class_="end", x=width, y=y + 10.5),
            )
        )
    return _figure(title, width, height, parts, natural=True)


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell | None]],
    *,
    row_name: str = "",
    column_name: str = "",
    cell_width: float = 30.0,
) -> Html:
    """A table of coloured fields; colours are so weak that the text on them reads well.

    Args:
        title: of the chart.
        rows: their names.
        columns: their names, set aslant where they are long.
        cells: a row of them for each name; None leaves a field empty.
        row_name: what the rows are.
        column_name: what the columns are.
        cell_width: of a field.
    """
    height_each = 22.0
    names = [shortened(name, 14) for name in columns]
    longest = max(map(len, names))
    slanted = longest * 6.2 > cell_width
    left = 14 + 6.3 * max(len(shortened(name, 18)) for name in rows)
    top = (20 + longest * 4.6 if slanted else 22.0) + (12 if column_name else 0)
    width = left + len(columns) * cell_width + (longest * 3.2 if slanted else 4)
    height = top + len(rows) * height_each + 6
    parts: list[Html] = []
    if column_name:
        parts.append(tag("text", column_name, class_="faint", x=left, y=11))
    if row_name:
        parts.append(tag("text", row_name, class_="end faint", x=left - 6, y=top - 6))
    for i, name in enumerate(names):
        x = left + (i + 0.5) * cell_width
        if slanted:
            parts.append(tag("text", name, x=0, y=0, transform=f"translate({x + 2:.1f} {top - 5:.1f}) rotate(-45)"))
        else:
            parts.append(tag("text", name, class_="middle", x=x, y=top - 6))
    for j, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = top + j * height_each
        parts.append(tag("text", shortened(name, 18), class_="end", x=left - 6, y=y + 15))
        for i, cell in enumerate(row):
            if cell is not None:
                parts.append(_field(cell, left + i * cell_width, y, cell_width, height_each))
    return _figure(title, width, height, parts, natural=True)


def reliability(title: str, bins: Sequence[tuple[float, float, int, float | None, float | None]]) -> Html:
    """How often a network is right (up) that is so sure (across), and how many images each bin has, below.

    Args:
        title: of the chart.
        bins: lower and upper edge, images, mean confidence, share right (None in a bin without images), by rising edge.
    """
    side, left, top, below = 250.0, 48.0, 8.0, 62.0
    width, height = left + side + 24, top + side + below + 42
    most = max(images for _, _, images, _, _ in bins) or 1
    base = top + side
    floor = base + below
    parts: list[Html] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + tick * side, base - tick * side
        parts.append(tag("path", class_="grid", d=f"M{left} {y:.1f}h{side}M{x:.1f} {top}v{side}"))
        parts.append(tag("text", percent(tick, 0), class_="end faint", x=left - 6, y=y + 4))
        parts.append(tag("text", percent(tick, 0), class_="middle faint", x=x, y=floor + 15))
    for low, high, images, confidence, accuracy in bins:
        if confidence is None or accuracy is None:
            continue
        x, wide = left + low * side, (high - low) * side
        share = images / most * (below - 12)
        parts.append(
            _hit(
                f"{images:,} images given {percent(low, 0)} to {percent(high, 0)}: "
                f"{percent(confidence)} on average, {percent(accuracy)} right",
                tag("rect", x=x, y=top, width=wide, height=side + below),
                _filled(0, 0.5, x + 1, base - accuracy * side, wide - 2, accuracy * side),
                _filled(1, 1.0, x, base - confidence * side - 1.5, wide, 3),
                _filled(0, 1.0, x + 1, floor - share, wide - 2, share),
            )
        )
    parts.append(tag("path", class_="mark", d=f"M{left} {base}L{left + side} {top}"))
    parts.append(tag("path", class_="axis", d=f"M{left} {base}h{side}M{left} {floor}h{side}"))
    parts.append(tag("text", "images", class_="end faint", x=left - 6, y=floor - 4))
    name = "probability given to the predicted class"
    parts.append(tag("text", name, class_="middle faint", x=left + side / 2, y=floor + 32))
    legend = (("share that is right", 0, None), ("probability given, on average", 1, None))
    return _figure(title, width, height, parts, legend, natural=True)


def scatter(title: str, points: Sequence[Point], show_x: Callable[[float], str], x_name: str) -> Html:
    """Accuracy against a cost, the front's points filled and joined; across by magnitude where costs differ tenfold."""
    xs = [point.x for point in points]
    by_magnitude = min(xs) > 0 and max(xs) >= 10 * min(xs)
    place: Callable[[float], float] = math.log10 if by_magnitude else lambda x: x
    reaches = [(point.y - (point.spread or 0), point.y + (point.spread or 0)) for point in points]
    rows = ticks(min(low for low, _ in reaches), max(high for _, high in reaches))
    low, high = _span([place(x) for x in xs])
    margin = 0.08 * (high - low)
    frame = _Frame((low - margin, high + margin), (rows[0], rows[-1]), left=46)
    across = _magnitudes(xs) if by_magnitude else ticks(min(xs), max(xs), 4)
    marks = [(place(x), show_x(x)) for x in across if low - margin <= place(x) <= high + margin]
    parts = [_grid(frame, rows, lambda y: percent(y, _digits(rows))), _x_axis(frame, marks, x_name)]
    front = sorted((place(point.x), point.y) for point in points if point.front)
    if len(front) > 1:
        parts.append(tag("path", class_="mark", fill="none", d=frame.path(front)))
    for point in points:
        x, y, colour = frame.x(place(point.x)), frame.y(point.y), f"c{point.colour % COLOURS}"
        anchor = "end" if x > frame.left + 0.6 * (frame.right - frame.left) else ""
        spread = point.spread or 0.0
        whisker = f"M{x:.1f} {frame.y(point.y - spread):.1f}V{frame.y(point.y + spread):.1f}" if spread else None
        parts.append(
            _hit(
                point.tip,
                tag("rect", x=x - 9, y=y - 9, width=18, height=18),
                tag("path", class_="whisker", d=whisker),
                tag("circle", class_=f"{'dot' if point.front else 'ring'} {colour}", cx=x, cy=y, r=4.5),
                tag("text", shortened(point.label, 22), class_=anchor, x=x + (-8 if anchor else 8), y=y - 6),
            )
        )
    return _figure(title, frame.width, frame.height, parts)


def differences(title: str, items: Sequence[Difference], show: Callable[[float], str]) -> Html:
    """Differences with their intervals, one below another, about a line at nought."""
    left, right, width, row = 104.0, 62.0, 400.0, 22.0
    reach = max(abs(item.value) + (item.interval or 0) for item in items) or 1.0
    across = ticks(-reach, reach, 4)
    height = len(items) * row + 24

    def place(value: float) -> float:
        return left + (value - across[0]) / (across[-1] - across[0]) * (width - left - right)

    parts: list[Html] = []
    for tick in across:
        parts.append(tag("path", class_="axis" if tick == 0 else "grid", d=f"M{place(tick):.1f} 2V{height - 22:.1f}"))
        parts.append(tag("text", f"{tick:+g}" if tick else "0", class_="middle faint", x=place(tick), y=height - 7))
    for i, item in enumerate(items):
        y = 2 + (i + 0.5) * row
        whisker = ""
        if item.interval is not None:
            low, high = place(item.value - item.interval), place(item.value + item.interval)
            whisker = f"M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8"
        parts.append(
            _hit(
                item.tip,
                tag("rect", x=0, y=y - row / 2, width=width, height=row),
                tag("text", shortened(item.label, 16), class_="end", x=left - 6, y=y + 4),
                tag("path", class_="whisker", d=whisker),
                tag("circle", class_=f"dot c{item.colour % COLOURS}", cx=place(item.value), cy=y, r=4),
                tag("text", show(item.value), class_="end", x=width, y=y + 4),
            )
        )
    return _figure(title, width, height, parts)


class _Frame:
    """Where values stand on a chart with axes."""

    width, height, top, bottom, right = 400.0, 230.0, 8.0, 192.0, 392.0

    def __init__(self, across: tuple[float, float], up: tuple[float, float], left: float) -> None:
        self.across, self.up, self.left = across, up, left

    def x(self, value: float) -> float:
        low, high = self.across
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.up
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def _figure(
    title: str,
    width: float,
    height: float,
    parts: Sequence[Html],
    legend: Sequence[tuple[str, int, str | None]] = (),
    natural: bool = False,
) -> Html:
    """A chart under its title and legend; a natural one keeps about the size it is drawn in, and scrolls if need be."""
    keys = [
        tag(
            "span",
            tag(
                "svg",
                tag(
                    "path",
                    class_=f"line c{colour % COLOURS}",
                    style="stroke-width: 3",
                    d="M0 4h22",
                    stroke_dasharray=dash,
                ),
                viewBox="0 0 22 8",
                aria_hidden="true",
            ),
            name,
        )
        for name, colour, dash in legend
    ]
    style = f"max-width: {1.15 * width:.0f}px; min-width: {0.84 * width:.0f}px" if natural else None
    svg = tag("svg", *parts, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=title, style=style)
    caption = tag("figcaption", title, *([tag("div", *keys, class_="legend")] if keys else []))
    return tag("figure", caption, tag("div", svg, class_="scroll") if natural else svg, class_="chart")


def _hit(tip: str, *children: Html, key: str | None = None) -> Html:
    """What says `tip` where the pointer rests on it."""
    return tag("g", tag("title", tip), *children, class_="hit", data_pair=key)


def _filled(colour: int, opacity: float, x: float, y: float, width: float, height: float) -> Html:
    style = f"fill: var(--c); fill-opacity: {opacity:.2f}"
    return tag("rect", class_=f"c{colour % COLOURS}", style=style, x=x, y=y, width=width, height=height)


def _field(cell: Cell, x: float, y: float, width: float, height: float) -> Html:
    strength = 0.6 * max(0.0, min(1.0, cell.strength))
    return _hit(
        cell.tip,
        _filled(cell.colour, strength, x + 0.5, y + 0.5, width - 1, height - 1),
        tag("text", cell.text, class_="middle", x=x + width / 2, y=y + 15),
        key=cell.key,
    )


def _grid(frame: _Frame, rows: Sequence[float], show: Callable[[float], str]) -> Html:
    return join(
        part
        for row in rows
        for part in (
            tag("path", class_="grid", d=f"M{frame.left:.1f} {frame.y(row):.1f}H{frame.right}"),
            tag("text", show(row), class_="end faint", x=frame.left - 6, y=frame.y(row) + 4),
        )
    )


def _x_axis(frame: _Frame, marks: Sequence[tuple[float, str]], name: str) -> Html:
    parts = [tag("path", class_="axis", d=f"M{frame.left:.1f} {frame.bottom}H{frame.right}")]
    parts += [
        tag("text", text, class_="middle faint", x=min(frame.x(x), frame.right - 3 * len(text)), y=frame.bottom + 15)
        for x, text in marks
    ]
    parts.append(tag("text", name, class_="middle faint", x=(frame.left + frame.right) / 2, y=frame.bottom + 32))
    return join(parts)


def _hits(
    frame: _Frame, series: Sequence[Line], xs: Sequence[float], show: Callable[[float], str], x_name: str
) -> list[Html]:
    """Invisible columns, each with the values at its x."""
    shown = _thinned(xs, _MOST_HITS)
    known = [dict(line.points) for line in series]
    edges = [(a + b) / 2 for a, b in itertools.pairwise(shown)]
    parts = []
    for x, low, high in zip(shown, [frame.across[0], *edges], [*edges, frame.across[1]], strict=True):
        values = [f"{line.name} {show(points[x])}" for line, points in zip(series, known, strict=True) if x in points]
        parts.append(
            _hit(
                f"{x_name} {x:g}: {', '.join(values)}",
                tag(
                    "rect",
                    x=frame.x(low),
                    y=frame.top,
                    width=frame.x(high) - frame.x(low),
                    height=frame.bottom - frame.top,
                ),
                tag("path", class_="mark guide", d=f"M{frame.x(x):.1f} {frame.top}V{frame.bottom}"),
            )
        )
    return parts


def _finite(line: Line) -> Line:
    points = [(x, y) for x, y in line.points if math.isfinite(y)]
    band = [part for part in line.band if all(map(math.isfinite, part))]
    return Line(name=line.name, points=points, colour=line.colour, dashed=line.dashed, band=band)


def _dash(line: Line) -> str | None:
    return _DASHES[(line.colour // COLOURS + line.dashed) % len(_DASHES)]


def _thinned(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the values, evenly, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _whole(xs: Sequence[float]) -> list[tuple[float, str]]:
    """Whole numbers along an axis, from the first x to the last."""
    inner = [x for x in ticks(xs[0], xs[-1], 6) if xs[0] <= x <= xs[-1] and x == int(x)] or [xs[0]]
    return [(x, f"{x:.0f}") for x in inner]


def _magnitudes(xs: Sequence[float]) -> list[float]:
    first, last = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    return [factor * 10.0**power for power in range(first, last + 1) for factor in factors]


def _digits(rows: Sequence[float]) -> int:
    """Decimals that tell neighbouring ticks, shares written as per cent, from each other."""
    return max(0, -math.floor(math.log10(100 * (rows[1] - rows[0])) + 1e-9))
