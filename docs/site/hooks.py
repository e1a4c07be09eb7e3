"""What MkDocs does not do by itself: pages from the code, pages from the root, links that leave docs/.

Pages below docs/ are written for readers of the repository too. Where one has a line `<!-- made: options -->`, the site
has what that line names, made from the code when the site is built, so that it cannot go stale. README.md is the site's
first page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import methods
import reference
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

MAKERS: dict[str, Callable[..., str]] = {
    "commands": reference.commands,
    "options": reference.options,
    "recipes": reference.recipes,
    "networks": methods.networks,
    "about": methods.about,
    "module": methods.module,
    "sources": methods.sources,
}
"""What a line `<!-- made: NAME -->`, or `<!-- made: NAME ARGUMENT -->`, stands for."""

# Pages of the site that are files elsewhere in the repository.
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "credits.md": "NOTICE"}

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
_MADE = re.compile(r"^<!-- made: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def on_config(config: Any) -> None:
    """Leave out the page for servers to show instead of one that is not there: its links begin at a server's root."""
    config.theme.static_templates.discard("404.html")


def on_files(files: Files, config: Any) -> Files:
    """Add pages from the root, and whatever pages link to outside docs/."""
    for place, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == "NOTICE":
            text = notice_page(text)
        elif place == "index.md":
            text = "---\nhide: [navigation]\n---\n" + text  # it would list this page alone
        files.append(File.generated(config, place, content=text))
    for page in list(files.documentation_pages()):
        for target in _LINK.findall(page.content_string):
            found = _target(page.src_uri, target[0])
            place = _placed(found)
            if place.startswith("files/") and files.get_file_from_path(place) is None and found.is_file():
                files.append(File.generated(config, place, content=found.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A page as the site has it: what is made, made, and links that leave docs/, led to where the site has them."""
    place = page.file.src_uri
    here = PurePosixPath(place).parent

    def led(match: re.Match[str]) -> str:
        found = _target(place, match[1])
        if place not in OUTSIDE and found.is_relative_to(DOCS):
            return match[0]
        recipe = f"#{found.stem}" if found.parent == ROOT / "recipes" else match[2] or ""
        return os.path.relpath(_placed(found), here) + recipe

    markdown = _LINK.sub(led, markdown)
    return _MADE.sub(lambda match: MAKERS[match[1]](*filter(None, [match[2]])), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """A page in which short pieces of code are not broken at their dashes (`--json`) and dots."""
    return re.sub(r"<code>([^<]{1,28})</code>", r'<code class="short">\1</code>', html)


def notice_page(notice: str) -> str:
    """NOTICE as a page: each work a heading, its address a link; indented lines are its text, not code."""
    text = re.sub(r"^(\S.*)\n +(https://\S+)\n", r"## \1\n\n<\2>\n\n", notice, flags=re.MULTILINE)
    return "# Credits\n\n" + re.sub(r"^ +", "", text, flags=re.MULTILINE)


def _target(place: str, link: str) -> Path:
    """The file of the repository that a link leads to; `place` is the page of the site that it is on."""
    source = ROOT / OUTSIDE[place] if place in OUTSIDE else DOCS / place
    return Path(os.path.normpath(source.parent / link))


def _placed(file: Path) -> str:
    """Where the site has a file of the repository, beginning at the site's root."""
    path = file.relative_to(ROOT).as_posix()
    for place, source in OUTSIDE.items():
        if path == source:
            return place
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if file.parent == ROOT / "recipes":
        return "reference/recipes.md"
    return f"files/{path}" + ("" if file.suffix == ".json" else ".txt")  # which browsers show and do not save
