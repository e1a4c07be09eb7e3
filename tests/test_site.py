"""The documentation site: built whole, from the code as it is, and read without a network."""

import html.parser
import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading
from argparse import _SubParsersAction
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import get_type_hints
from urllib.parse import unquote, urlsplit

import pytest
import torch
from chromium import CHROMIUM

from budgetnet import cli, models
from budgetnet.config import Config, ModelConfig, StageConfig
from budgetnet.models import blocks

ROOT = Path(__file__).parent.parent
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

# What makes a browser fetch; links that a reader may follow are not among it.
LOADS = {
    ("link", "href"),
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "srcset"),
    ("object", "data"),
}


ADDRESS = r"https?://[\w-]+(\.[\w-]+)*(:\d+)?(/\S*)?"


class Page(html.parser.HTMLParser):
    """Ids, links and what is loaded, of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.words = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.ids.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif (tag, name) in LOADS:
                self.loads.append(value)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


class Site:
    """A folder of pages."""

    def __init__(self, folder):
        self.folder = folder
        self.pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}

    def __getitem__(self, name):
        return self.pages[self.folder / name]

    def wrong_links(self):
        """Links within the site that lead nowhere, and links out of it that are no addresses."""
        for path, page in self.pages.items():
            for link in page.links:
                parts = urlsplit(link)
                if parts.scheme or parts.netloc:
                    form = r"https://arxiv\.org/abs/\d{4}\.\d{4,5}" if parts.netloc == "arxiv.org" else ADDRESS
                    if not re.fullmatch(form, link):
                        yield path.name, link
                    continue
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                if target.is_dir():
                    target /= "index.html"
                known = self.pages[target].ids if target in self.pages else set()
                # "" and __search are of the theme: the page's top, and its field of search.
                if not target.is_file() or parts.fragment not in {"", "__search", *known}:
                    yield path.name, link


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])  # the latter is the guard of the network
    environment = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return Site(folder)


# ---------------------------------------------------------------------------------------------------- links and loads


def test_every_link_and_anchor_within_the_site_leads_somewhere_and_others_are_addresses(site):
    assert len(site.pages) > 25
    assert list(site.wrong_links()) == []


def test_a_link_that_leads_nowhere_would_be_noticed(tmp_path):
    good = '<a href="other.html#here">', '<a href="#top">', '<a href="https://example.org/a?b#c">'
    bad = "other.html#there", "gone.html", "#nowhere", "https:/example.org", "https://a b/", "https://arxiv.org/abs/17"
    (tmp_path / "other.html").write_text('<p id="here">')
    links = "".join(f'<a href="{link}">' for link in bad)
    (tmp_path / "page.html").write_text('<h1 id="top">' + "".join(good) + links)
    assert [link for _, link in Site(tmp_path).wrong_links()] == list(bad)


def test_every_page_of_docs_is_in_the_site_and_no_marker_is_left(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert site.folder / page.relative_to(ROOT / "docs").with_suffix(".html") in site.pages
    assert not any("<!-- made:" in path.read_text(encoding="utf-8") for path in site.pages)


def test_nothing_is_loaded_that_is_not_a_file_of_the_site(site):
    loaded = [(path, load) for path, page in site.pages.items() for load in page.loads]
    for sheet in site.folder.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "@import" not in text
        loaded += [(sheet, match.strip("'\"")) for match in re.findall(r"url\(([^)]*)\)", text)]
    assert len(loaded) > 100
    for path, load in loaded:
        if not load.startswith(("data:", "#")):
            assert (path.parent / urlsplit(load).path).resolve().is_file(), f"{path.name} loads {load}"


# ---------------------------------------------------------------------------------------------------- from the code


def options_of(kind, prefix=""):
    for one in fields(kind):
        hint = get_type_hints(kind)[one.name]
        yield from options_of(hint, f"{prefix}{one.name}.") if is_dataclass(hint) else [f"{prefix}{one.name}"]


def test_every_option_of_a_recipe_has_an_entry_that_says_something(site):
    page = site["reference/options.html"]
    expected = {*options_of(Config), *options_of(StageConfig, "model.stages.")}
    assert expected <= page.ids
    source = (site.folder / "reference" / "options.html").read_text(encoding="utf-8")
    said = re.findall(
        r'<h3 class="option" id="([\w.]+)">.*?</h3>\s*<p class="kind">(.*?)</p>\s*<p>(.*?)</p>', source, re.S
    )
    assert {name for name, _, _ in said} == expected
    assert all("default" in kind for _, kind, _ in said)


def test_an_option_is_shown_with_its_type_its_default_and_its_docstring(site):
    text = site["reference/options.html"].text
    assert "optimizer.lr¶ number; default 0.1 Peak learning rate." in text
    assert "budget¶ whole number or null; default 5_000_000 Hard limit on trainable parameters; null is none." in text
    assert "model.name¶ text; default enhanced A name that budgetnet models lists" in text
    assert "augment.crop_border¶ zeros | reflect; default zeros" in text
    assert "augment.erase_scale¶ 2 numbers; default [0.02, 0.1] Smallest and largest erased share" in text


def commands_of(parser, name="budgetnet"):
    groups = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    inner = [commands_of(one, f"{name} {key}") for group in groups for key, one in group.choices.items()]
    return [command for commands in inner for command in commands] or [name]


def test_every_command_is_shown_with_what_its_help_prints(site):
    text = site["reference/commands.html"].text
    expected = commands_of(cli._parser())
    assert len(expected) > 10
    for command in expected:
        assert f"usage: {command} " in text
    assert "--optimizer.lr" in text
    assert "Peak learning rate." in text


def test_every_network_is_shown_with_its_parameters_and_where_it_comes_from(site):
    text = site["methods/networks.html"].text
    for name in models.names():
        with torch.device("meta"):
            count = models.count_parameters(models.build(ModelConfig(name=name), 10))
        assert f"{name} {count:,} " in text
    assert re.search(r"wrn_28_10 [\d,]+ [\d,]+ M Zagoruyko and Komodakis 2016 \(arXiv:1605.07146\)", text)


def test_every_paper_that_the_code_names_is_among_the_sources(site):
    page = site["methods/sources.html"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    papers = set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", code))
    assert len(papers) > 30
    assert {f"https://arxiv.org/abs/{paper}" for paper in papers} <= set(page.links)
    assert "Foret et al. 2021 arXiv:2010.01412 optimizer.sam, optim.ascended" in page.text
    assert not re.search(r"(?<!\d{4}) arXiv:", page.text), "a paper without its authors and year"


def test_a_function_is_shown_with_its_signature_and_its_docstring_as_lists(site):
    text = site["methods/training.html"].text
    assert "random_flip(images: Tensor, rng: Generator) -> Tensor" in text
    assert "random_crop¶" in text
    assert "Args images: (n, c, h, w), any dtype" in text
    assert "geometry.random_crop" in site["methods/training.html"].ids


def test_every_recipe_is_shown_whole(site):
    text = site["reference/recipes.html"].text
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        assert " ".join(recipe.read_text(encoding="utf-8").split()) in text


def test_the_first_page_is_readme_with_its_records_at_hand(site):
    page = site["index.html"]
    assert "budgetnet trains the best image classifier that fits a parameter budget" in page.text
    record = site.folder / "files" / "results" / "quick.json"
    assert record.read_bytes() == (ROOT / "results" / "quick.json").read_bytes()
    assert "files/results/quick.json" in page.links
    assert "reference/recipes.html#quick" in page.links


def test_the_code_that_the_guide_shows_for_a_block_a_trick_and_a_metric_works():
    listings = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide" / "extend.md").read_text(), re.DOTALL)
    names = {**vars(blocks), "Generator": torch.Generator, "math": math, "F": torch.nn.functional}
    for listing in listings:
        exec(listing, names)
    block = names["LeanBlock"](4, StageConfig(width=6, se=2), 2, blocks.BlockOptions())
    out = block(torch.randn(2, 4, 8, 8))
    assert out.shape == (2, 6, 4, 4)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    images = torch.tensor([0.25, 0.75]).view(1, 1, 1, 2).expand(400, 1, 1, 2)
    solarized = names["solarize"](images, 0.5, torch.Generator().manual_seed(0))
    kinds = {tuple(row) for row in solarized.view(400, 2).tolist()}
    assert kinds == {(0.25, 0.75), (0.25, 0.25)}
    probabilities = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    assert names["_brier"](probabilities.log(), torch.tensor([0, 0])) == (0 + 2 * 0.75**2) / 2


# ---------------------------------------------------------------------------------------------------- in a browser


def watched(browser, **options):
    """A page, and what it asks for and complains of."""
    page = browser.new_context(**options).new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, asked, complaints


# The least contrast between a text and what is behind it, with the text; hidden ones and pictures aside.
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = [21, ""];
  for (const e of document.querySelectorAll("article *, .md-tabs a, nav .md-nav__link")) {
    const own = [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !e.checkVisibility({ checkOpacity: true }) || e.matches(".headerlink")) continue;
    const ground = behind(e), [x, y] = [light(over(parse(getComputedStyle(e).color), ground)), light(ground)];
    const contrast = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (contrast < least[0]) least = [contrast, e.outerHTML.slice(0, 120)];
  }
  return least;
}"""


# At once, without the theme's passage from one colour to the other.
TO_SCHEME = """scheme => {
  document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>");
  document.body.setAttribute("data-md-color-scheme", scheme);
}"""


@pytest.mark.browser
@needs_browser
def test_on_a_phone_every_page_loads_files_alone_fits_the_width_and_can_be_read_in_light_and_in_dark(site, browser):
    page, asked, complaints = watched(browser, viewport={"width": 390, "height": 844})
    for path in site.pages:
        page.goto(path.as_uri())
        name = str(path.relative_to(site.folder))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{name} is wider than the window"
        for scheme in ("default", "slate"):
            page.evaluate(TO_SCHEME, scheme)
            contrast, text = page.evaluate(CONTRAST)
            assert contrast >= 4.5, f"{name}, {scheme}: {contrast:.2f} of {text}"
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    assert complaints == []
    page.context.close()


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize(("wanted", "scheme", "white"), [("light", "default", True), ("dark", "slate", False)])
def test_pages_are_as_light_as_the_reader_wants_all_to_be(site, browser, wanted, scheme, white):
    page, _, _ = watched(browser, color_scheme=wanted)
    page.goto((site.folder / "index.html").as_uri())
    assert page.evaluate("document.body.getAttribute('data-md-color-scheme')") == scheme
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") is white
    page.context.close()


@pytest.fixture(params=["file", "http"])
def address(request, site):
    """The site as opened from a folder, and as served on this machine."""
    if request.param == "file":
        yield site.folder.as_uri()
        return

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site.folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.browser
@needs_browser
def test_search_finds_options_and_guides_without_a_network(browser, address):
    page, asked, complaints = watched(browser, viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/index.html")
    search = page.locator(".md-search__input")
    for words, found in (
        ("label_smoothing", '[href*="/reference/options.html"][href$="#label_smoothing"]'),
        ("my run died", '[href*="/guide/died.html"]'),
    ):
        search.fill("")
        search.press_sequentially(words)
        page.locator(f".md-search-result__link{found}").first.wait_for(state="attached")
    assert all(url.startswith((address, "data:", "about:")) for url in asked), asked
    assert complaints == []
    page.context.close()


def test_the_index_of_search_leads_to_places_that_are_there(site):
    index = json.loads((site.folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert len(index["docs"]) > 300
    for entry in index["docs"]:
        path, _, anchor = entry["location"].partition("#")
        assert not anchor or anchor in site[path].ids
