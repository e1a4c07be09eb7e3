"""Makes demo.svg in this folder: what `make demo` prints, from a real run in a real terminal of 80 columns.

python docs/images/demo.py

Long tables are cut to their ends; nothing else is changed. The picture's text is text: it can be selected and read out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLUMNS = 80
FIRST, LAST = 3, 2  # rows of a long table that are shown
CELL, LINE, MARGIN = 8.4, 19, 18  # pixels; a monospaced letter of 14 pixels is 8.4 wide
STYLE = """
    svg { color-scheme: light dark }
    rect { fill: #f6f8fa; stroke: #d0d7de }
    text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre;
           fill: #24292f }
    .typed { font-weight: 600; fill: #0a58ca }
    .best { font-weight: 600; fill: #1a7f37 }
    .cut { fill: #57606a }
    @media (prefers-color-scheme: dark) {
      rect { fill: #161b22; stroke: #30363d }
      text { fill: #e6edf3 }
      .typed { fill: #79c0ff }
      .best { fill: #56d364 }
      .cut { fill: #9da7b3 }
    }
"""


def in_a_terminal(command: list[str], cwd: Path, width: int, **variables: str) -> str:
    """All that a command writes to a terminal of that many columns, with whatever moves the cursor.

    Raises:
        RuntimeError: the command failed.
    """
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, width))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", **variables}
    with subprocess.Popen(command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        written = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # Linux's way to say that nobody has it open any more
                more = b""
            if not more:
                break
            written += more
    os.close(ours)
    text = written.decode()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{text}")
    return text


def screen(written: str) -> list[tuple[str, str]]:
    """What a terminal of `COLUMNS` shows in the end: lines and their colours (numbers of ECMA-48, "" is the usual)."""
    lines, row, column = [("", "")], 0, 0
    colour = ""
    for numbers, command, control, text in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", written):
        if control == "\n":
            row += 1
            lines += [("", "")] * (row == len(lines))
        elif control == "\r":
            column = 0
        elif command == "A":
            row -= int(numbers or 1)
        elif command == "K":
            lines[row] = ("", "")
        elif command == "m":
            colour = "" if numbers == "0" else numbers
        while text:
            if column == COLUMNS:
                row, column = row + 1, 0
                lines += [("", "")] * (row == len(lines))
            piece, text = text[: COLUMNS - column], text[COLUMNS - column :]
            before = lines[row][0]
            lines[row] = (f"{before[:column]:<{column}}{piece}{before[column + len(piece) :]}", colour)
            column += len(piece)
    while lines and not lines[-1][0].strip():
        lines.pop()
    return [(text.rstrip(), colour) for text, colour in lines]


def shortened(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines without the middle rows of long tables, which a line stands for that says how many they are."""
    kept: list[tuple[str, str]] = []
    rows: list[tuple[str, str]] = []
    for line in [*lines, ("", "")]:
        if re.match(r" *\d+ +\S", line[0]):
            rows.append(line)
            continue
        left_out = len(rows) - FIRST - LAST
        if left_out > 1:
            rows[FIRST:-LAST] = [(f"    ⋮  {left_out} rows more", "cut")]
        kept += [*rows, line]
        rows = []
    return kept[:-1]


def drawn(lines: list[tuple[str, str]]) -> str:
    """The lines as an SVG picture that suits light and dark pages."""
    width, height = round(COLUMNS * CELL) + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    shown = []
    typed = False
    for number, (text, colour) in enumerate(lines, 1):
        typed = text.startswith("$ ") or (typed and len(lines[number - 2][0]) == COLUMNS)  # a long one goes on
        if not text:
            continue
        kind = "typed" if typed else {"1;32": "best"}.get(colour, colour)
        about = f' class="{kind}"' if kind else ""
        # Fonts differ in width, and every column is to stand where it does in a terminal.
        room = f'textLength="{len(text) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
        place = f'x="{MARGIN}" y="{MARGIN + number * LINE - 5}"'
        shown.append(f'  <text{about} {place} {room} xml:space="preserve">{escape(text, quote=False)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" aria-labelledby="title">',
            '  <title id="title">What make demo prints</title>',
            f"  <style>{STYLE}  </style>",
            f'  <rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *shown,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Run the demo, and draw what it printed."""
    written = in_a_terminal([sys.executable, str(ROOT / "examples" / "demo.py")], ROOT, COLUMNS)
    path = HERE / "demo.svg"
    path.write_text(drawn(shortened([("$ make demo", ""), *screen(written)])), encoding="utf-8")
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
