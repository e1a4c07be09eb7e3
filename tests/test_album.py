"""The pictures of a run beside its report."""

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from budgetnet import album, pictures
from budgetnet.errors import ConfigError
from budgetnet.gallery import Judged
from budgetnet.recipe import load_recipe
from budgetnet.train import train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album") / "run"
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", ["--epochs", "1", "--val_size", "1300"])
    train(recipe, folder, track=False)
    return folder


def test_a_run_gets_its_confusions_its_mistakes_and_its_network(trained):
    found = album.write(trained)
    assert [path.name for path in found] == ["confusion.png", "mistakes.png", "network.png"]
    assert {*(trained / "pictures").iterdir()} == {*found}
    for path in found:
        with Image.open(path) as picture:
            assert picture.convert("L").getextrema() != (255, 255)
            assert 300 < picture.width < 3000
        assert path.stat().st_size < 500_000
    before = [path.read_bytes() for path in found]
    assert [path.read_bytes() for path in album.write(trained)] == before


def test_a_picture_that_no_longer_holds_is_removed(make_run, tmp_path):
    folder = make_run(tmp_path / "run", test=1.0)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "mistakes.png").write_bytes(b"of the weights before")
    assert [path.name for path in album.write(folder)] == ["confusion.png"]
    assert [path.name for path in (folder / "pictures").iterdir()] == ["confusion.png"]


def test_whatever_goes_wrong_is_one_line_and_no_failure(tmp_path):
    said = []
    album.for_tracking(tmp_path / "nothing", said.append)
    assert len(said) == 1
    assert said[0].startswith("no pictures (")
    assert "\n" not in said[0]


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_names_of_any_kind_and_number_are_drawn_as_they_are(tmp_path, classes):
    names = ["$\\frac{", "<b>&", "a" * 300, "", *map(str, range(classes))][:classes]
    counts = [[10_000 * (i == j) + (i + j) % 3 for j in range(classes)] for i in range(classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw_confusion(counts, names, tmp_path / "confusion.png", "$^{")
        images = torch.zeros(min(classes, 9), 3, 8, 8, dtype=torch.uint8)
        pictures.draw_grid(images, [(name, "is $x") for name in names[:9]], tmp_path / "grid.svg", "$^{")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "grid.svg"}
    with pytest.raises(ConfigError, match=r"expected \.svg or \.png"):
        pictures.draw_grid(images, [("", "")] * len(images), tmp_path / "grid.gif", "")


def test_a_caption_says_what_an_image_was_taken_for_and_what_it_is():
    judged = Judged(
        images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([1]),
        probabilities=torch.tensor([[0.7, 0.3]]),
        classes=("cat", "dog"),
    )
    taken, is_ = album._caption(judged, 0)
    assert (taken.replace("\N{NO-BREAK SPACE}", " "), is_.replace("\N{NO-BREAK SPACE}", " ")) == (
        "cat 70 %",
        "is dog 30 %",
    )
