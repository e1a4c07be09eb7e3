"""Web pages that stand alone: one file, no network, light and dark, on paper and on a phone, readable unscripted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from budgetnet.charts import COLOURS
from budgetnet.files import atomic_write
from budgetnet.markup import Html, escaped, join, tag

# Okabe and Ito's palette (2008, "Color universal design"), darker or lighter where it lacks contrast with the page.
_LIGHT = ("#0072b2", "#c04a00", "#00795a", "#9c3d7e", "#8a6d00", "#4b4fb5", "#2b87b8", "#5c5c5c")
_DARK = ("#56b4e9", "#f58a45", "#2fc79a", "#e39bc8", "#e8c33c", "#a7a9ff", "#9adcf5", "#b8b8b8")
_LIGHT_PAGE = "--page: #ffffff; --text: #1b1f23; --soft: #57606a; --panel: #f4f6f8; --edge: #d3d9df;"
_DARK_PAGE = "--page: #14181c; --text: #e4e8ec; --soft: #a3adb8; --panel: #1e242a; --edge: #3a434c;"


def _palette(colours: Sequence[str]) -> str:
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT_PAGE} {_palette(_LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK_PAGE} {_palette(_DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 1080px; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: .6rem 0 .2rem; }}
h2 {{ font-size: 1.2rem; margin: 2.4rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--edge); }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; }}
p {{ margin: .4rem 0; max-width: 46rem; }}
a {{ color: var(--c0); }}
nav {{ font-size: .88rem; display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .8rem 0 0; }}
.soft {{ color: var(--soft); font-size: .9rem; }}
.big {{ font-size: 2.9rem; font-weight: 700; line-height: 1.1; letter-spacing: -.02em; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: .7rem; margin: 1rem 0;
  padding: 0; }}
.facts > div {{ background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: .6rem .8rem; }}
.facts dt {{ color: var(--soft); font-size: .82rem; }}
.facts dd {{ margin: 0; font-weight: 600; }}
.facts dd small {{ display: block; font-weight: 400; color: var(--soft); }}
.meter {{ height: 6px; border-radius: 3px; background: var(--edge); overflow: hidden; margin: .3rem 0; }}
.meter > div {{ height: 100%; background: var(--c0); }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(390px, 100%), 1fr)); gap: 1.4rem 2rem;
  margin: .8rem 0; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .22rem .7rem .22rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--edge); }}
thead th {{ color: var(--soft); font-weight: 600; border-bottom-width: 2px; }}
.number {{ text-align: right; white-space: nowrap; }}
pre {{ background: var(--panel); border: 1px solid var(--edge); border-radius: 6px; padding: .6rem .8rem;
  overflow-x: auto;
  font-size: .82rem; line-height: 1.45; margin: .4rem 0; }}
code, pre {{ font-family: ui-monospace, "DejaVu Sans Mono", monospace; }}
details {{ margin: .5rem 0; }} summary {{ cursor: pointer; color: var(--c0); }}
.chart {{ margin: 0; min-width: 0; }}
.chart svg {{ display: block; width: 100%; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif;
  fill: currentColor; }}
.chart figcaption {{ font-weight: 600; font-size: .95rem; margin-bottom: .3rem; }}
.legend {{ font-weight: 400; font-size: .82rem; display: flex; flex-wrap: wrap; gap: 0 .9rem; }}
.legend span {{ display: inline-flex; align-items: center; gap: .35rem; }}
.legend svg {{ width: 22px; height: 8px; flex: none; }}
{"".join(f".c{i} {{ --c: var(--c{i}); }} " for i in range(COLOURS))}
.axis, .grid {{ stroke: currentColor; stroke-width: 1; fill: none; }} .grid {{ opacity: .14;
  }} .axis {{ opacity: .5; }}
.line {{ fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }}
.dot {{ fill: var(--c); }} .band {{ fill: var(--c); opacity: .16; }}
.ring {{ fill: none; stroke: var(--c); stroke-width: 1.8; }}
.whisker {{ stroke: currentColor; stroke-width: 1.3; fill: none; }}
.mark {{ stroke: currentColor; stroke-width: 1.2; stroke-dasharray: 3 3; fill: none; opacity: .75; }}
.end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }} .faint {{ opacity: .75; }}
.hit > rect:not([class]) {{ fill: transparent; }}
.hit > .guide {{ opacity: 0; }} .hit:hover > .guide {{ opacity: .75; }}
.scripted [data-pair] {{ cursor: pointer; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(98px, 1fr)); gap: .9rem .7rem;
  margin: .7rem 0; }}
.gallery figure {{ margin: 0; font-size: .76rem; line-height: 1.3; min-width: 0; break-inside: avoid; }}
.gallery img, .pair img {{ width: 100%; display: block; image-rendering: pixelated; border-radius: 4px;
  background: #808080; }}
.gallery figcaption span {{ display: block; overflow-wrap: anywhere; }}
.gallery .more {{ display: none; }} .pairs {{ grid-template-columns: repeat(auto-fill, minmax(max(165px, 22%), 1fr)); }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }}
.filters img {{ image-rendering: pixelated; max-width: 100%; height: auto; }}
select {{ font: inherit; font-size: .88rem; max-width: 100%; padding: .2rem; }}
.network {{ list-style: none; display: flex; flex-wrap: wrap; gap: .5rem 1.5rem;
  padding: 0 0 0 1.1rem; margin: .8rem 0; }}
.network > li {{ position: relative; background: var(--panel); border: 1px solid var(--edge); border-radius: 8px;
  padding: .5rem; font-size: .8rem; display: flex; flex-direction: column; gap: .4rem; flex: 0 1 auto;
  min-width: 118px; }}
.network > li + li::before {{ content: "\\2192"; position: absolute; left: -1.25rem; top: 45%; color: var(--soft); }}
.network .block {{ border: 1px solid var(--edge); border-left: 4px solid var(--c); border-radius: 4px;
  padding: .15rem .45rem;
  background: var(--page); }}
.network .block b, .network .block span {{ display: block; }}
.network .foot {{ margin-top: auto; color: var(--soft); }}
.tip {{ position: fixed; z-index: 9; max-width: 260px; pointer-events: none; background: var(--text);
  color: var(--page);
  font-size: .8rem; line-height: 1.35; padding: .3rem .5rem; border-radius: 5px; }}
.letter {{ display: inline-block; min-width: 1.5em; text-align: center; border-radius: 4px;
  border: 2px solid var(--c); font-weight: 700; }}
.beyond {{ font-weight: 700; }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10.5pt; }} nav, .tip, .controls {{ display: none; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  figure, .facts > div, tr, .network > li {{ break-inside: avoid; }} h2, h3 {{ break-after: avoid; }}
  .charts {{ grid-template-columns: 1fr 1fr; }} pre {{ white-space: pre-wrap; }}
}}
"""

# Values where the pointer rests, or a finger taps; mistakes by pair of classes. The page says all it has to without it.
SCRIPT = """
(() => {
  const root = document.documentElement, tip = document.createElement('div');
  root.classList.add('scripted');
  tip.className = 'tip'; tip.hidden = true; document.body.append(tip);
  for (const title of document.querySelectorAll('.hit > title')) {
    title.parentNode.dataset.tip = title.textContent; title.remove();
  }
  const show = event => {
    const hit = event.target.closest ? event.target.closest('[data-tip]') : null;
    tip.hidden = !hit;
    if (!hit) return;
    tip.textContent = hit.dataset.tip;
    const left = Math.min(event.clientX + 12, root.clientWidth - tip.offsetWidth - 8);
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.left = Math.max(4, left) + 'px';
    tip.style.top = (above < 4 ? event.clientY + 16 : above) + 'px';
  };
  document.addEventListener('pointermove', show);
  document.addEventListener('pointerdown', show);
  document.addEventListener('scroll', () => { tip.hidden = true; }, true);
  for (const control of document.querySelectorAll('.controls')) control.hidden = false;
  const select = document.getElementById('pairs');
  if (!select) return;
  const figures = [...document.querySelectorAll('#wrong figure')];
  const filter = () => {
    for (const figure of figures) {
      const all = select.value === '';
      figure.hidden = !all && figure.dataset.pair !== select.value;
      figure.classList.toggle('more', all && figure.dataset.first === undefined);
    }
  };
  select.addEventListener('change', filter);
  document.addEventListener('click', event => {
    const cell = event.target.closest ? event.target.closest('.hit[data-pair]') : null;
    if (!cell || ![...select.options].some(option => option.value === cell.dataset.pair)) return;
    select.value = cell.dataset.pair; filter();
    select.scrollIntoView({behavior: 'smooth', block: 'center'});
  });
})();
"""

# What a page may load is only what is in it, whatever a name in it says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, header: Html, sections: Sequence[tuple[str, str, Html]]) -> str:
    """A whole page.

    Args:
        title: of the page, as its heading and its tab have it.
        header: what stands first.
        sections: for each its anchor, heading and content.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    links = [tag("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections]
    body = [tag("section", tag("h2", heading), content, id=anchor) for anchor, heading, content in sections]
    content = tag("main", tag("h1", title), header, tag("nav", *links, aria_label="sections"), *body)
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', content, tag('script', Html(SCRIPT))), lang='en')}\n"


def write(path: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    atomic_write(path, text.encode())


def table(head: Sequence[object], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls where there is no room; `numbers` are the columns set to the right."""

    def row(name: str, cells: Sequence[object]) -> Html:
        parts = [tag(name, cell, class_="number" if i in numbers else None) for i, cell in enumerate(cells)]
        return tag("tr", *parts)

    top = tag("thead", row("th", head)) if head else Html("")
    return tag("div", tag("table", top, tag("tbody", *(row("td", cells) for cells in rows))), class_="scroll")


def facts(entries: Sequence[tuple[str, object, object]]) -> Html:
    """Names with their values and what is to be said of them."""
    cards = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", remark) if remark else ""))
        for name, value, remark in entries
    ]
    return tag("dl", *cards, class_="facts")


def soft(text: object) -> Html:
    """A remark."""
    return tag("p", text, class_="soft")


def unfolding(summary: str, content: Html) -> Html:
    """What is shown when asked for."""
    return tag("details", tag("summary", summary), content)


def pairs(values: Mapping[str, object]) -> Html:
    """Names and values as a table without a head."""
    return table((), [(tag("b", name), value) for name, value in values.items()])


def code(text: str) -> Html:
    """Text as it is."""
    return tag("pre", escaped(text))


def paragraphs(texts: Sequence[str]) -> Html:
    """Texts, one below another."""
    return join(tag("p", text) for text in texts)
