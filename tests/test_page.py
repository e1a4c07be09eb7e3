"""The demo page in a real browser: Debian's Chromium, without a window, driven by Playwright."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from chromium import CHROMIUM
from PIL import Image
from serving import HOST, serving

from budgetnet import serve
from budgetnet.demo import Demo, Example
from budgetnet.guard import Limits

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]

CLASSES = ("red", "green", "blue")


def believe(images):
    """How much of the upper left quarter's light is red, green and blue."""
    return (images[:, :, :16, :16].float() / 255).mean((2, 3)).mul(5).softmax(1)


def plain(*colour):
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32).contiguous()


def png(*colour, size=(40, 40)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return {"name": "picture.png", "mimeType": "image/png", "buffer": file.getvalue()}


@pytest.fixture(scope="module")
def url():
    examples = [
        Example(name="red", picture=plain(250, 20, 20)),
        Example(name="<b>blue</b>", picture=plain(20, 20, 250)),
    ]
    demo = Demo(
        name="colours",
        parameters=3,
        engine="a test",
        classes=CLASSES,
        image_size=32,
        predict=believe,
        examples=examples,
        source="a set",
    )
    limits = Limits(body_bytes=100_000)
    with serving(serve.application(demo, limits), limits) as port:
        yield f"http://{HOST}:{port}"


@pytest.fixture
def page(browser, url):
    """The page, with the first example's answer; ends with the check that nothing came from elsewhere or went wrong."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(url)
    says(page, "red")
    yield page
    page.close()
    assert not [address for address in asked if not address.startswith((url, "data:", "blob:"))]
    assert not wrong


def says(page, start):
    """Wait until the answer begins so."""
    page.locator("#answer", has_text=re.compile(rf"^\s*{start}")).wait_for()
    assert page.locator("#answer").inner_text().startswith(start)


def pixels(page):
    """What the page shows as seen by the network."""
    source = page.locator("#seen").get_attribute("src")
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_the_page_begins_with_an_example_its_bars_its_map_and_its_curves(page):
    assert (
        page.locator("#about")
        .inner_text()
        .startswith("colours: 3 parameters, 3 classes, 32\N{MULTIPLICATION SIGN}32 pixels")
    )
    assert page.locator("#bars .name").all_inner_texts() == [*CLASSES]
    shares = [float(text.split()[0]) for text in page.locator("#bars .value").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    widths = [bar.bounding_box()["width"] for bar in page.locator("#bars .fill").all()]
    assert widths[0] > 5 * max(widths[1:])
    assert "there and back" in page.locator("#latency").inner_text()
    page.locator("#where:not(:empty)").wait_for()
    page.locator("#noise-curve .curve").wait_for(state="attached")
    assert page.locator("svg .curve").count() == 4
    assert page.locator("#noise-curve").get_attribute("aria-label").startswith("Probability of red: ")


def test_an_uploaded_picture_is_shown_as_the_network_sees_it_and_answered(page):
    page.locator("#file").set_input_files(png(10, 240, 10))
    says(page, "green")
    assert pixels(page).shape == (32, 32, 3)
    assert (pixels(page) == [10, 240, 10]).all()
    assert page.locator("#seen").evaluate("image => image.naturalWidth") == 32


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"},
            "notes.txt: found no readable image",
        ),
        ({"name": "large.png", "mimeType": "image/png", "buffer": b"x" * 100_001}, "The picture has 0.1 MB, expected"),
        ({"name": "nothing.png", "mimeType": "image/png", "buffer": b""}, "found an empty body, expected a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_an_alert_which_the_next_picture_clears(page, file, message):
    page.locator("#file").set_input_files(file)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert message in alert.inner_text()
    page.locator("#file").set_input_files(png(10, 10, 240))
    says(page, "blue")
    assert alert.is_hidden()


def test_sliders_corrupt_the_picture_and_mark_what_was_before_until_they_are_reset(page):
    shown = page.locator("#seen").get_attribute("src")
    page.locator("#file").set_input_files(png(200, 30, 30))
    page.wait_for_function("shown => document.getElementById('seen').src !== shown", arg=shown)
    before = pixels(page)
    assert (before == [200, 30, 30]).all()
    page.locator("#brightness").fill("-2")
    page.locator("#bars .mark").first.wait_for()
    assert page.locator("#bars .mark").count() == 3
    assert "without corruption" in page.locator("#bars-note").inner_text()
    assert (pixels(page)[0, 0] == [50, 8, 8]).all()
    assert page.locator("#brightness-value").inner_text() == "\N{MINUS SIGN}2 stops"
    assert page.locator("#brightness").get_attribute("aria-valuetext") == "\N{MINUS SIGN}2 stops"
    page.get_by_role("button", name="Reset").click()
    page.locator("#bars .mark").first.wait_for(state="detached")
    assert (pixels(page) == before).all()
    assert page.locator("#brightness").input_value() == "0"


def test_all_can_be_done_with_the_keyboard(page):
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        page.locator("#choose:focus").wait_for()
        page.keyboard.press("Enter")
    chooser.value.set_files(png(10, 240, 10))
    says(page, "green")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second example
    says(page, "blue")
    assert page.get_by_role("button", name="Example 2: <b>blue</b>").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#heat").is_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#noise-value").inner_text() == "severity 1 of 5"
    page.locator("#bars .mark").first.wait_for()


def test_a_picture_can_be_pasted_and_dropped_and_what_is_none_is_told(page):
    give = """([type, kind, bytes]) => {
        const data = new DataTransfer();
        if (bytes) data.items.add(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
        else data.setData("text/plain", "words");
        const event = type === "paste" ? new ClipboardEvent(type, { clipboardData: data, bubbles: true })
                                       : new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    for kind, colour, answer in (("paste", (10, 240, 10), "green"), ("drop", (10, 10, 240), "blue")):
        page.locator("body").evaluate(f"(_, given) => ({give})(given)", [kind, "", [*png(*colour)["buffer"]]])
        says(page, answer)
        page.locator("body").evaluate(f"(_, given) => ({give})(given)", [kind, "", None])
        page.get_by_role("alert").wait_for()


def test_names_and_alternatives_are_there_for_those_who_do_not_see(page):
    for name in ("Noise", "Blur", "Brightness", "Rotation"):
        assert page.get_by_role("slider", name=name).count() == 1
    assert page.get_by_role("status").count() == 2
    assert page.get_by_role("img", name="The picture as the network sees it, 32 by 32 pixels").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 390, 760, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("#noise-curve .curve").wait_for(state="attached")
    assert page.locator("html").evaluate("html => html.scrollWidth") <= width
    for row in page.locator("#bars .value").all():
        assert row.bounding_box()["height"] < 30


def test_the_page_says_so_when_its_server_has_gone(page):
    page.route("**/api/**", lambda route: route.abort())
    page.locator("#noise").fill("2")
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == "The server does not answer: has it been stopped?"
