"""Makes architecture.svg in this folder: which modules there are, in groups, and which groups import which.

python docs/images/architecture.py

The groups stand here in the order in which to read them, and so do the modules in each: a module imports only those
before it (tests/test_structure.py). The picture's arrows are read off the imports, and so is what a package holds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src" / "budgetnet"
PICTURE = HERE / "architecture.svg"


@dataclass(frozen=True)
class Group:
    """Modules that do one thing together.

    Args:
        title: what the picture calls them.
        about: what they do, in a few words.
        modules: names within the package, in the order in which to read them.
        row: of the picture, from the top.
        columns: first and last of its 12 columns.
    """

    title: str
    about: str
    modules: tuple[str, ...]
    row: int
    columns: tuple[int, int] = (0, 11)


GROUPS = (
    Group(
        "Ground",
        "what knows of no image and no network",
        ("errors", "masking", "terminal", "markup", "devices", "memory", "usage", "files", "runfiles"),
        row=0,
    ),
    Group("Configuration", "what a recipe may say", ("plainyaml", "sections", "config", "options", "recipe"), row=1),
    Group(
        "Data",
        "files as images and labels",
        (
            *("pickles", "arrays", "download", "decoding", "tarballs", "tables", "workers", "cache", "images"),
            *("shards", "cifar", "audit", "splits", "sources", "data", "verification"),
        ),
        row=2,
        columns=(0, 3),
    ),
    Group(
        "Augmentation",
        "whole batches at a time",
        ("draws", "checks", "inputs", "geometry", "colors", "erasing", "policies", "augment", "mixing"),
        row=2,
        columns=(4, 7),
    ),
    Group("Networks", "and what they cost", ("models", "engine", "saliency"), row=2, columns=(8, 11)),
    Group(
        "Evaluation",
        "scores, also under corruption",
        ("logits", "evaluate", "seeds", "remedies", "streams", "filters", "corruptions", "shift", "robustness"),
        row=3,
    ),
    Group(
        "Trained models",
        "in memory and in files",
        ("classifier", "checkpoint", "origin"),
        row=4,
    ),
    Group(
        "Runs",
        "what is written of a training, in its folder and in MLflow",
        (
            "metrics",
            "runs",
            "position",
            "progress",
            "words",
            "lineage",
            "mlmodel",
            "mlclient",
            "mlrun",
            "store",
            "registry",
            "tracking",
        ),
        row=5,
    ),
    Group(
        "Training",
        "a step, the loop, several processes",
        (
            *("optim", "distill", "start", "launcher", "distributed", "advice", "training", "state"),
            *("folder", "recorder", "resume", "train"),
        ),
        row=6,
        columns=(0, 5),
    ),
    Group(
        "Reports",
        "a run in pictures and on a page",
        ("pictures", "charts", "page", "gallery", "evidence", "report", "album"),
        row=7,
        columns=(0, 5),
    ),
    Group(
        "Experiments",
        "whole trainings, and many of them",
        (
            *("api", "ablate", "compare", "compare_page", "compress", "candidates", "fit"),
            *("space", "studies", "standings", "sweep"),
        ),
        row=8,
        columns=(0, 5),
    ),
    Group(
        "Predictions, exports",
        "for programs of others",
        ("predict", "browser", "deployed", "hub", "export"),
        row=8,
        columns=(6, 8),
    ),
    Group("Servers", "pages for a browser", ("demo", "guard", "serve", "ui"), row=8, columns=(9, 11)),
    Group("Commands", "the program budgetnet", ("cli",), row=9),
)
ORDER = [module for group in GROUPS for module in group.modules]
"""All modules, in the order in which to read them."""

WIDTH, MARGIN, BETWEEN, BELOW = 800, 16, 14, 30  # pixels; the last two are between boxes of a row, and rows
INSIDE, HEAD, LINE = 12, 20, 19  # of a box: around its text, the height of its title, and of a line of modules
CELL = 7.4  # how wide a letter is: exactly in the names of modules, at most about so in other text
FOOT = "An arrow leads to a group from one that it imports; what other arrows imply is left out."
STYLE = """
    svg { color-scheme: light dark }
    .ground { fill: #f6f8fa; stroke: #d0d7de }
    .group { fill: #fff; stroke: #afb8c1 }
    text { font: 12.3px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #24292f }
    .about { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
    .title { font-weight: 600; fill: #0a58ca }
    .about, .inner { fill: #57606a }
    .line { fill: none; stroke: #6e7781; stroke-width: 1.5 }
    .head { fill: #6e7781 }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #161b22; stroke: #30363d }
      .group { fill: #0d1117; stroke: #444c56 }
      text { fill: #e6edf3 }
      .title { fill: #79c0ff }
      .about, .inner { fill: #9da7b3 }
      .line { stroke: #8b949e }
      .head { fill: #8b949e }
    }
"""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Each name that a file imports, but for types alone, and whether that happens when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in checked or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        found += [(name, node in tree.body) for name in names]
    return found


def room(dotted: str) -> str:
    """The module or package of ours that a dotted name is in, or nothing."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "budgetnet" and len(parts) > 1 and parts[1] in ORDER else ""


def arrows() -> list[tuple[Group, Group]]:
    """From each group to those that import it, without what other arrows imply."""
    of = {module: group for group in GROUPS for module in group.modules}
    direct: dict[str, set[str]] = {group.title: set() for group in GROUPS}
    for path in SOURCE.rglob("*.py"):
        own = of.get(path.relative_to(SOURCE).parts[0].removesuffix(".py"))
        if own:
            direct[own.title] |= {of[other].title for name, _ in imports(path) if (other := room(name))} - {own.title}
    reached: dict[str, set[str]] = {}
    for group in GROUPS:  # which import only groups before them
        reached[group.title] = direct[group.title].union(*(reached[title] for title in direct[group.title]))
    return [
        (before, group)
        for group in GROUPS
        for before in GROUPS
        if before.title in direct[group.title]
        and not any(before.title in reached[between] for between in direct[group.title])
    ]


def words(group: Group) -> Iterator[tuple[str, str]]:
    """Each module of a group, and those of its packages, with the class of its text."""
    for module in group.modules:
        package = SOURCE / module
        yield (f"{module}/", "") if package.is_dir() else (module, "")
        for path in sorted(package.glob("[!_]*.py")):
            yield path.stem, "inner"


@dataclass(frozen=True)
class Box:
    """A group as it is drawn, in pixels."""

    left: float
    top: float
    width: float
    height: float


def lines(group: Group, width: float) -> list[list[tuple[str, str]]]:
    """The words of a group, as many to a line as a box of that width holds, two cells apart."""
    found: list[list[tuple[str, str]]] = [[]]
    used = 0
    for word, kind in words(group):
        if found[-1] and (used + len(word)) * CELL > width - 2 * INSIDE:
            found.append([])
            used = 0
        found[-1].append((word, kind))
        used += len(word) + 2
    return found


def beside(group: Group, width: float) -> bool:
    """Whether what a group is about has room beside its title."""
    return (len(group.title) + len(group.about) + 2) * CELL < width - 2 * INSIDE


def placed() -> dict[str, Box]:
    """Where each group is drawn, by its title; as high as the highest of its row."""
    column = (WIDTH - 2 * MARGIN + BETWEEN) / 12
    widths = {group.title: (group.columns[1] - group.columns[0] + 1) * column - BETWEEN for group in GROUPS}
    found = {}
    top = float(MARGIN)
    for row in sorted({group.row for group in GROUPS}):
        groups = [group for group in GROUPS if group.row == row]
        height = max(
            2 * INSIDE
            + HEAD * (1 if beside(group, widths[group.title]) else 2)
            + LINE * len(lines(group, widths[group.title]))
            - 6
            for group in groups
        )
        for group in groups:
            left = MARGIN + group.columns[0] * column
            found[group.title] = Box(left, top, widths[group.title], height)
        top += height + BELOW
    return found


def shown(group: Group, box: Box) -> Iterator[str]:
    """A box with its text."""
    yield (
        f'  <rect class="group" x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        'rx="6"/>'
    )
    x, y = box.left + INSIDE, box.top + INSIDE + 11
    place = 'dx="9"' if beside(group, box.width) else f'x="{x:.1f}" dy="{HEAD - 2}"'
    yield (
        f'  <text class="about" x="{x:.1f}" y="{y:.1f}"><tspan class="title">{escape(group.title)}</tspan>'
        f"<tspan {place}>{escape(group.about)}</tspan></text>"
    )
    y += 0 if beside(group, box.width) else HEAD - 2
    y += HEAD
    for line in lines(group, box.width):
        at_x = x
        for word, kind in line:
            about = f' class="{kind}"' if kind else ""
            # Fonts differ in width, and no word is to leave its place.
            long = f'textLength="{len(word) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
            yield f'  <text{about} x="{at_x:.1f}" y="{y:.1f}" {long}>{word}</text>'
            at_x += (len(word) + 2) * CELL
        y += LINE


def arrow(above: Box, below: Box, others: list[Box]) -> Iterator[str]:
    """Straight down from one box to the other where nothing is between, and otherwise behind what is."""
    ways = [(max(above.left, below.left), min(above.left + above.width, below.left + below.width))]
    for other in others:
        if above.top < other.top < below.top:
            ways = [
                way
                for low, high in ways
                for way in ((low, min(high, other.left - 6)), (max(low, other.left + other.width + 6), high))
                if way[1] - way[0] > 12
            ]
    start, end = above.top + above.height, below.top
    if ways:
        low, high = max(ways, key=lambda way: way[1] - way[0])
        x = to = (low + high) / 2
    else:
        x, to = above.left + above.width / 2, below.left + below.width / 2
    middle = (start + end) / 2
    curve = f"M{x:.1f} {start:.1f}C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {end - 6:.1f}"
    yield f'  <path class="line" d="{curve}"/>'
    yield f'  <path class="head" d="M{to:.1f} {end:.1f}l-4.5 -8h9z"/>'


def picture() -> str:
    """The picture, an SVG that suits light and dark pages."""
    boxes = placed()
    foot = max(box.top + box.height for box in boxes.values()) + 22
    height = foot + MARGIN - 3
    drawn = [
        line for above, below in arrows() for line in arrow(boxes[above.title], boxes[below.title], [*boxes.values()])
    ]
    drawn += [line for group in GROUPS for line in shown(group, boxes[group.title])]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-labelledby="title">',
            '  <title id="title">The modules of budgetnet in groups, and which groups import which</title>',
            f"  <style>{STYLE}  </style>",
            f'  <rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>',
            *drawn,
            f'  <text class="about" x="{MARGIN + INSIDE}" y="{foot:.0f}">{FOOT}</text>',
            "</svg>\n",
        ]
    )


def main() -> None:
    """Draw today's imports."""
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()
