"""The pictures of networks and of scores under corruption."""

import builtins
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from budgetnet import models
from budgetnet.config import ModelConfig
from budgetnet.errors import BudgetnetError, ConfigError
from budgetnet.pictures import draw_network, draw_shift
from budgetnet.robustness import Cell, ShiftScores
from budgetnet.shift import NAMES, SEVERITIES


def network_called(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return models.build(ModelConfig(name=name), 10)


@pytest.fixture
def words(monkeypatch, tmp_path):
    """Draw a network as SVG with text kept as text, and return all its lines."""
    import matplotlib

    def draw(name: str) -> list[str]:
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            draw_network(network_called(name), tmp_path / "network.svg", name, 32)
        root = ET.fromstring((tmp_path / "network.svg").read_text(encoding="utf-8"))
        return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]

    return draw


@pytest.mark.parametrize("name", ["resnet_custom", "whitened_cnn_large", "wrn_16_4"])
def test_the_picture_states_every_shape_and_the_parameters_of_every_stage(words, name):
    lines = words(name)
    rows = models.summarize(network_called(name), 32)
    text = " | ".join(lines)
    assert f"{sum(row.parameters for row in rows):,} trainable parameters" in text
    drawn = sum(int(line.split()[0].replace(",", "")) for line in lines if re.fullmatch(r"[\d,]+ parameters", line))
    assert drawn == sum(row.parameters for row in rows)
    for shape in {row.output_shape for row in rows if "." in row.name}:
        assert "out " + " x ".join(map(str, shape)) in lines


def test_the_picture_shows_the_switches_of_the_stages(words):
    lines = words("resnet_custom")
    for switch in ("stride 2", "projection", "separable", "SE 1/16 on the sum", "LeakyReLU", "ReLU"):
        assert switch in lines
    assert "4 x bottleneck" in lines
    assert lines.count("stride 2") == 3


def test_a_network_of_a_hundred_layers_still_fits_a_picture(words):
    assert "22 x bottleneck" in words("resnet101")


@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn"])
def test_nothing_is_drawn_at_the_edge_of_a_png(tmp_path, name):
    draw_network(network_called(name), tmp_path / "network.PNG", "A title that is longer than many are", 32)
    with Image.open(tmp_path / "network.PNG") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > 800
    edges = [pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:]]
    assert all((edge == 255).all() for edge in edges)
    assert (pixels < 128).any()


def test_no_line_of_text_leaves_its_box(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    for name in ("enhanced", "resnext29_32x4d", "whitened_cnn_large"):
        draw_network(network_called(name), tmp_path / "network.png", name, 32)
        axes, renderer = figures[-1].axes[0], figures[-1].canvas.get_renderer()
        boxes = [patch.get_window_extent(renderer) for patch in axes.patches]
        for text in axes.texts[2:]:
            if text.get_text():
                extent = text.get_window_extent(renderer)
                assert any(
                    box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
                    for box in boxes
                ), text.get_text()


def test_the_same_network_gives_the_same_file(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "budgetnet"}):
        for name in ("a.svg", "b.svg"):
            draw_network(network_called("resnet18"), tmp_path / name, "resnet18", 32)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", ["network.pdf", "network"])
def test_another_suffix_is_an_error_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected \.svg or \.png"):
        draw_network(network_called("resnet18"), tmp_path / name, "resnet18", 32)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_an_error_in_one_line(tmp_path):
    with pytest.raises(BudgetnetError, match=r"cannot write .*network\.png: there is no folder"):
        draw_network(network_called("resnet18"), tmp_path / "missing" / "network.png", "resnet18", 32)


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BudgetnetError, match=r"needs matplotlib .* pip install 'budgetnet\[picture\]'"):
        draw_network(network_called("resnet18"), tmp_path / "network.png", "resnet18", 32)


def shift_scores(names=NAMES, severities=SEVERITIES) -> ShiftScores:
    cells = {
        name: {s: Cell(accuracy=0.95 - i / 40 - s / 25, loss=1.0, ece=0.1) for s in severities}
        for i, name in enumerate(names)
    }
    return ShiftScores(1000, Cell(0.96, 0.1, 0.01), cells, torch.zeros(1000), {})


@pytest.mark.parametrize(("names", "severities"), [(NAMES, SEVERITIES), (("fog", "spatter"), (2,))])
def test_the_heat_map_writes_every_accuracy_and_mean(names, severities, tmp_path):
    import matplotlib

    scores = shift_scores(names, severities)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_shift(scores, tmp_path / "heat.svg", "a title")
    root = ET.fromstring((tmp_path / "heat.svg").read_text(encoding="utf-8"))
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    cells = [cell.accuracy for row in scores.cells.values() for cell in row.values()]
    means = [scores.mean([name]).accuracy for name in names]
    assert sorted(t for t in texts if re.fullmatch(r"\d+\.\d", t)) == sorted(f"{100 * x:.1f}" for x in cells + means)
    assert {*names, "a title", "mean", *map(str, severities)} <= {*texts}


def test_numbers_of_the_heat_map_stand_out_from_their_cells_and_stay_inside(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (figures.append(self), save(self, *a, **o)))
    draw_shift(shift_scores(), tmp_path / "heat.png", "a title")
    axes, renderer = figures[0].axes[0], figures[0].canvas.get_renderer()
    cells = [(patch.get_window_extent(renderer), patch.get_facecolor()) for patch in axes.patches]
    numbers = [text for text in axes.texts if re.fullmatch(r"\d+\.\d", text.get_text())]
    assert len(numbers) == len(cells) == 19 * 6
    for text in numbers:
        extent = text.get_window_extent(renderer)
        (shade,) = [
            colour for box, colour in cells if box.contains(extent.x0, extent.y0) and box.contains(extent.x1, extent.y1)
        ]
        assert abs(np.dot(shade[:3], (0.299, 0.587, 0.114)) - (text.get_color() == "white")) > 0.45
    with Image.open(tmp_path / "heat.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert all((edge == 255).all() for edge in (pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:]))


@pytest.mark.parametrize("name", ["heat.pdf", "heat"])
def test_a_heat_map_of_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"expected \.svg or \.png"):
        draw_shift(shift_scores(), tmp_path / name, "a title")
    assert not list(tmp_path.iterdir())
