"""Text laid out in columns: how many there are, and how many of them a text takes, which is not its length."""

from __future__ import annotations

import shutil

from rich.cells import cell_len, chop_cells, set_cell_size

__all__ = ["cell_len", "columns", "fitted", "wrapped"]


def columns() -> int:
    """The columns that text is laid out in: $COLUMNS, else the terminal's, and 80 where the output is no terminal.

    At least 40, as tables need some room.
    """
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def fitted(text: str, width: int) -> str:
    """The text in exactly `width` columns: padded by spaces, or cut, which an ellipsis shows.

    Args:
        text: without control characters.
        width: columns, 1 or more. Chinese, Japanese and Korean characters take two.
    """
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(set_cell_size(text, width - 1).rstrip() + "…", width)


def wrapped(text: str, width: int, indent: int = 0, *, chop: bool = False) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces; as it is where it fits.

    Args:
        text: without control characters. Spaces before its first word stay.
        width: columns, more than `indent` and than those spaces.
        indent: spaces before all lines but the first.
        chop: whether words that are longer than a line are broken, too. Paths and commands are not, so that they can
            be copied.

    Returns:
        One line or more. Where there are several, words have one space between them.
    """
    if cell_len(text) <= width:
        return [text]
    own = " " * (len(text) - len(text.lstrip(" ")))
    room = width - max(indent, len(own))
    lines: list[str] = []
    for word in text.split():
        first, *rest = chop_cells(word, room) if chop else [word]
        if lines and cell_len(lines[-1]) + 1 + cell_len(first) <= width:
            lines[-1] += " " + first
        else:
            lines.append((" " * indent if lines else own) + first)
        lines += [" " * indent + piece for piece in rest]
    return lines
