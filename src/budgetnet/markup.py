"""HTML and SVG as text, escaped by construction: only what `tag` and `join` return is markup, all else is shown."""

from __future__ import annotations

import html
from collections.abc import Iterable

NBSP = "\N{NO-BREAK SPACE}"

_VOID = frozenset({"br", "img", "input", "link", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def visible(text: str, *, lines: bool = False) -> str:
    """The text with the replacement character for all that shows nothing or upsets what is around it.

    Those are controls, marks that turn the direction of text, and halves of surrogate pairs, which names of files hold.

    Args:
        text: to be shown, in one line unless told otherwise.
        lines: whether line ends and tabs stay.
    """
    if text.isprintable():
        return text
    shown = f"{NBSP}\n\t" if lines else NBSP
    return "".join(c if c.isprintable() or c in shown else "\N{REPLACEMENT CHARACTER}" for c in text)


def escaped(value: object) -> Html:
    """Any value as visible text between tags or in a quoted attribute; markup stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(visible(str(value), lines=True)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, or values whose text is shown.
        attributes: a trailing underscore is dropped, others become hyphens (`class_`, `stroke_width`); numbers are
            written with two decimals at most; None and False leave the attribute out, True gives it no value.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{_attribute(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if name in _VOID else f"{opening}{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Markup and values one after another."""
    return Html("".join(map(escaped, parts)))


def percent(share: float | None, digits: int = 2) -> str:
    """A share in [0, 1] as per cent, or a dash."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.{digits}f}{NBSP}%"


def brief_percent(share: float) -> str:
    """A share as per cent, without decimals where they are 0."""
    return percent(share).replace(".00", "")


def shortened(text: str, length: int) -> str:
    """At most so many characters of a text, the cut marked."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escaped(value)
