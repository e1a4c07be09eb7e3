"""Docstrings as Markdown."""

from __future__ import annotations

import re

SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")
REFERENCE = re.compile(r"(arXiv|doi):([\w./-]*\w)")


def markdown(docstring: str) -> str:
    """A docstring, clean of its indentation, as Markdown: its sections lists, its papers links, its code code.

    A section is a line `Args:` with indented lines below it, each `name: what it is`, which may go on further in.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        head, _, rest = paragraph.partition("\n")
        if head.removesuffix(":") in SECTIONS and head.endswith(":"):
            paragraphs.append(f"**{head.removesuffix(':')}**\n\n" + _entries(head, rest))
        else:
            # A list within a paragraph is a list to Python and its readers; to Markdown only after an empty line.
            paragraphs.append(
                re.sub(r"(?<!\A)(?:(?<=\n)|^)(?=- )", "\n", _text(paragraph), count=1, flags=re.MULTILINE)
            )
    return "\n\n".join(paragraphs)


def _entries(head: str, lines: str) -> str:
    """The lines of a section as a list; what it returns is often not a list, and then it is a paragraph."""
    indent = re.match(r" *", lines)
    width = len(indent[0]) if indent else 0
    entries = re.split(rf"\n(?= {{{width}}}\S)", lines)
    joined = [" ".join(entry.split()) for entry in entries]
    if head in ("Returns:", "Yields:"):
        return _text(" ".join(joined))
    named = [re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", entry) for entry in joined]
    return "\n".join(
        f"- `{match[1]}`: {_text(match[2])}" if match else f"- {_text(entry)}"
        for match, entry in zip(named, joined, strict=True)
    )


def _text(text: str) -> str:
    """Prose: what Markdown and HTML would take for theirs is escaped, but for code between backticks."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if i % 2 else REFERENCE.sub(_link, _escaped(part)) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([*\[\]])|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], text)


def _link(match: re.Match[str]) -> str:
    return f"[{match[0]}]({address(match[1], match[2])})"


def address(kind: str, number: str) -> str:
    """Where a paper is, by what a docstring calls it: `arXiv` and its number, or `doi` and its name."""
    return f"https://{'arxiv.org/abs' if kind == 'arXiv' else 'doi.org'}/{number}"
