"""The drawing functions of the pages: what stands where, in what size, and that nothing leaves the drawing."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetnet import charts
from budgetnet.markup import Html, escaped, join, percent, shortened, tag, visible

HOSTILE = '"><script>alert(1)</script>&amp;'


def parts(chart: str) -> ET.Element:
    """A chart is XML, so nothing in it is left unclosed or unescaped."""
    return ET.fromstring(chart)


def path(element: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", element.get("d"))[1:]]


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def inside(root: ET.Element) -> bool:
    """Whether all text is within its drawing, at some 6 units a letter."""
    for svg in root.iter("svg"):
        _, _, width, height = map(float, svg.get("viewBox").split())
        for text in svg.iter("text"):
            if text.get("transform"):
                continue
            x, y = float(text.get("x")), float(text.get("y"))
            room = 5.6 * len("".join(text.itertext()))
            anchor = text.get("class", "").split()[:1]
            left = x - (room if anchor == ["end"] else room / 2 if anchor == ["middle"] else 0)
            if not (left >= -4 and left + room <= width + 4 and 0 <= y <= height):
                return False
    return True


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_evenly_apart_and_reach_over_the_values(low, size):
    high = low + size
    if high - low < 1e-5 * max(1, abs(low)):
        return  # where floats themselves have no more digits
    found = charts.ticks(low, high)
    step = found[1] - found[0]
    digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(digits - each) for each in (1, 2, 5, 10)) < 1e-3
    assert found[0] <= low + 1e-3 * step
    assert found[-1] >= high - 1e-3 * step
    assert 3 <= len(found) <= 13


def test_ticks_of_a_single_value_reach_around_it_and_of_no_number_are_refused():
    found = charts.ticks(3.0, 3.0)
    assert found[0] < 3 < found[-1]
    with pytest.raises(ValueError, match="finite"):
        charts.ticks(0.0, math.nan)


def test_a_line_goes_through_its_values_in_proportion():
    values = [(1, 2.0), (2, 1.0), (4, 0.5)]
    line = charts.Line(name="training", points=values)
    root = parts(charts.lines("Loss", [line, charts.Line(name="validation", points=[(1, 3.0)])], "{:.1f}".format))
    (x1, y1), (x2, y2), (x3, y3) = path(
        next(e for e in root.iter("path") if e.get("class") == "line c0" and "L" in e.get("d"))
    )
    assert (x3 - x2) / (x2 - x1) == pytest.approx(2, rel=0.01)
    assert (y2 - y1) / (y3 - y2) == pytest.approx(2, rel=0.02)
    assert y1 < y2 < y3, "more is higher"


def test_where_the_pointer_rests_the_chart_says_all_values_of_that_epoch():
    lines = [
        charts.Line(name="training", points=[(1, 0.5), (2, 0.75)]),
        charts.Line(name="validation", points=[(2, 0.7)]),
    ]
    titles = [title.text for title in parts(charts.lines("Accuracy", lines, percent)).iter("title")]
    assert titles == ["epoch 1: training 50.00\xa0%", "epoch 2: training 75.00\xa0%, validation 70.00\xa0%"]


def test_values_that_are_not_finite_are_left_out_of_a_line():
    line = charts.Line(name="loss", points=[(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])
    text = charts.lines("Loss", [line], "{:.1f}".format)
    assert "nan" not in text
    assert "inf" not in text
    assert len(list(parts(text).iter("circle"))) == 2


def test_the_chosen_epoch_is_marked_where_it_stands():
    line = charts.Line(name="loss", points=[(epoch, 1.0 / epoch) for epoch in range(1, 12)])
    root = parts(charts.lines("Loss", [line], "{:.1f}".format, mark=6))
    mark = next(e for e in root.iter("path") if e.get("class") == "mark")
    assert mark.get("d").startswith(f"M{[float(c.get('cx')) for c in root.iter('circle')][5]:.1f}")


def test_a_long_training_is_drawn_in_few_points_and_with_its_ends():
    line = charts.Line(name="loss", points=[(epoch, 1.0 + epoch % 7) for epoch in range(1, 20_001)])
    text = charts.lines("Loss", [line], "{:.1f}".format)
    assert len(text) < 120_000
    titles = [title.text for title in parts(text).iter("title")]
    assert (titles[0].split(":")[0], titles[-1].split(":")[0]) == ("epoch 1", "epoch 20000")


def test_bars_are_as_long_as_their_shares_and_whiskers_as_their_intervals():
    bars = [
        charts.Bar(label=f"class {i}", value=value, low=value - 0.1, high=value + 0.05, tip="")
        for i, value in enumerate((0.25, 0.5))
    ]
    root = parts(charts.bars("Share", bars))
    widths = [float(e.get("width")) for e in of_class(root, "c0")]
    assert widths[1] == pytest.approx(2 * widths[0])
    first = of_class(root, "whisker")[0].get("d")
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", first).groups())
    assert (high - low) == pytest.approx(0.15 * widths[1] / 0.5, abs=0.2)


def test_a_heat_map_has_a_field_for_each_cell_the_stronger_the_deeper():
    cells = [
        [charts.Cell(text="7", strength=1.0, key="0-0"), None],
        [charts.Cell(text="5", strength=0.5), charts.Cell(text="", strength=9.0)],
    ]
    root = parts(charts.heat("Confusion", ["a", "b"], ["a", "b"], cells))
    depths = [float(re.search(r"fill-opacity: ([\d.]+)", e.get("style"))[1]) for e in of_class(root, "c0")]
    assert len(depths) == 3
    assert depths[0] == 2 * depths[1] == depths[2]
    assert [e.get("data-pair") for e in root.iter("g")] == ["0-0", None, None]


def test_a_reliability_diagram_has_a_bar_for_each_bin_with_images_and_a_mark_where_it_should_end():
    bins = [(0.0, 0.5, 0, None, None), (0.5, 1.0, 10, 0.8, 0.6)]
    root = parts(charts.reliability("Calibration", bins))
    bar, count = of_class(root, "c0")[-2:]
    mark = of_class(root, "c1")[-1]
    base = float(bar.get("y")) + float(bar.get("height"))
    assert float(bar.get("height")) == pytest.approx(0.75 * (base - float(mark.get("y")) - 1.5), abs=0.1)
    assert float(count.get("height")) > 0
    assert (
        next(root.iter("title")).text == "10 images given 50\xa0% to 100\xa0%: 80.00\xa0% on average, 60.00\xa0% right"
    )


def test_points_on_the_front_are_filled_and_costs_of_other_magnitude_are_spread_by_it():
    points = [
        charts.Point(label=name, x=x, y=y, front=front, spread=0.01)
        for name, x, y, front in (("small", 1e4, 0.8, True), ("mid", 1e5, 0.7, False), ("large", 1e6, 0.9, True))
    ]
    root = parts(charts.scatter("Cost", points, "{:.0f}".format, "parameters"))
    assert [e.get("class").split()[0] for e in root.iter("circle")] == ["dot", "ring", "dot"]
    x = [float(e.get("cx")) for e in root.iter("circle")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.1)


def test_a_difference_stands_at_its_value_with_its_interval_about_it():
    items = [
        charts.Difference(label="B", value=1.0, interval=0.5, colour=1, tip="x"),
        charts.Difference(label="C", value=-1.0, interval=None, colour=2, tip="y"),
    ]
    root = parts(charts.differences("Differences", items, "{:+.1f}".format))
    nought = float(re.match(r"M([\d.]+)", of_class(root, "axis")[0].get("d"))[1])
    right, left = (float(e.get("cx")) for e in root.iter("circle"))
    assert right - nought == pytest.approx(nought - left, abs=0.2)
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", of_class(root, "whisker")[0].get("d")).groups())
    assert (low + high) / 2 == pytest.approx(right, abs=0.1)
    assert high - low == pytest.approx(right - nought, abs=0.2)


NAMES = ["airplane", "x", "a name that is far too long to be written out", HOSTILE]
CHARTS = {
    "lines": lambda: charts.lines(
        HOSTILE,
        [charts.Line(name=name, points=[(1, 12345.678), (300, 2.0)], colour=i) for i, name in enumerate(NAMES)],
        "{:,.3f}".format,
    ),
    "bars": lambda: charts.bars(
        HOSTILE, [charts.Bar(label=name, value=1.0, low=0.5, high=1.0, tip=name) for name in NAMES]
    ),
    "heat": lambda: charts.heat(
        HOSTILE,
        NAMES,
        NAMES,
        [[charts.Cell(text="9,999", strength=1, tip=HOSTILE, key=HOSTILE)] * 4] * 4,
        row_name="is",
        column_name="taken for",
        cell_width=40,
    ),
    "reliability": lambda: charts.reliability(HOSTILE, [(0.0, 1.0, 123456, 0.5, 1.0)]),
    "scatter": lambda: charts.scatter(
        HOSTILE,
        [charts.Point(label=name, x=10.0**i, y=i / 4, tip=name) for i, name in enumerate(NAMES)],
        "{:.3g}".format,
        "cost",
    ),
    "differences": lambda: charts.differences(
        HOSTILE,
        [
            charts.Difference(label=name, value=i - 1.5, interval=None, colour=i, tip=name)
            for i, name in enumerate(NAMES)
        ],
        "{:+.2f}".format,
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_whatever_things_are_called_charts_are_whole_and_nothing_is_cut_off(name):
    text = CHARTS[name]()
    root = parts(text)
    assert inside(root)
    assert not list(root.iter("script"))
    assert "<script" not in text


def test_a_label_that_leaves_its_drawing_would_be_noticed():
    assert not inside(
        parts('<figure><svg viewBox="0 0 100 50"><text class="end" x="10" y="10">long</text></svg></figure>')
    )


def test_text_is_shown_and_never_taken_for_markup():
    assert tag("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x"), " & ", 3) == "<p><b>x</b> &amp; 3</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert tag("option", value="", selected=True, hidden=False, title=None) == '<option value="" selected></option>'


def test_what_cannot_be_seen_or_written_becomes_a_mark():
    assert escaped("a\0b\u202e\udc80") == "a\ufffdb\ufffd\ufffd"
    escaped("\udc80").encode()
    assert escaped("a\n\tb\xa0c") == "a\n\tb\xa0c"
    assert visible("a\n\tb\xa0c\x1b\u2028\r") == "a\ufffd\ufffdb\xa0c\ufffd\ufffd\ufffd"


def test_numbers_in_attributes_have_two_decimals_at_most():
    assert tag("rect", x=1.0, y=2.345, width=3) == '<rect x="1" y="2.35" width="3"></rect>'


def test_shares_are_per_cent_and_long_names_are_cut_where_it_shows():
    assert (percent(0.93641), percent(1, 0), percent(None)) == ("93.64\xa0%", "100\xa0%", "\u2013")
    assert shortened("abcdefgh", 5) == "abcd\u2026"
    assert shortened("abcde", 5) == "abcde"
