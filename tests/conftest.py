"""What every test can use, and what none can: the network."""

import gc
import os
import pathlib

# On networks as small as those of tests, threads cost more than they save; for commands that tests run, too.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for more of them all the same: one that waits is not to take a core from the others.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Each Python that a test starts would compile all of budgetnet for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import html.parser
import json
import re
import shutil

import no_network
import pytest
import torch
import yaml
from chromium import CHROMIUM

from budgetnet import evaluate, runs
from budgetnet.config import Config, ModelConfig, to_yaml

# Among all that tests import, to look for garbage after every 700 objects takes a fifteenth of the time.
gc.set_threshold(10_000)
# Here, and in every Python that a test starts, by the sitecustomize.py that stands there.
no_network.install()
_OFFLINE = str(pathlib.Path(no_network.__file__).parent)
if _OFFLINE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_OFFLINE, os.environ.get("PYTHONPATH")]))
# Files in memory, where there is room: a database, or what is to outlive a power cut, waits for a disk at each write.
# Containers mount that memory so that no program runs from it, which some tests install there.
_MEMORY = pathlib.Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 << 30 and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real CIFAR-10, for tests marked `real_data`."""
    folder = os.environ.get("BUDGETNET_DATA")
    if not folder:
        pytest.skip("BUDGETNET_DATA is not set: no real CIFAR-10 to test on")
    return pathlib.Path(folder)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        # As root, as in many a container, Chromium runs only without its sandbox; it visits this machine alone.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # whatever the test before has asked for


class Page(html.parser.HTMLParser):
    """A page as a browser takes it apart; it fails where elements are not balanced, or something is loaded."""

    VOID = ("br", "img", "input", "link", "meta")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} stay open"
        assert len(text.encode()) < 3_000_000
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), "an id is there twice"

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler, {name}"
            if name in ("src", "href"):
                assert value.startswith(("data:", "#")), f"{tag} loads {value[:80]}"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
        elif self.open[-1:] == ["style"]:
            assert "url(" not in data
            assert "@import" not in data

    @property
    def text(self) -> str:
        """All that is shown, white space of all kinds made even."""
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """The attributes of elements of a kind."""
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


@pytest.fixture
def parsed():
    """From a page's path, or its text, to its parts."""
    return lambda page: Page(page.read_text(encoding="utf-8") if isinstance(page, pathlib.Path) else page)


@pytest.fixture(scope="session")
def make_run():
    """Write the folder of a run that never was: what it reached is made up, all else is as `train` writes it."""
    network = ModelConfig(name="enhanced", width=8)
    usual = to_yaml(Config(dataset="digits", val_size=500, model=network))

    def make(
        folder: pathlib.Path,
        *options: str,
        val: float | None = 0.9,
        test: float | None = 0.9,
        minutes: float = 2.0,
        parameters: int = 1000,
        checksum: str = "ab" * 32,
        finished: bool = True,
        images: int = 1000,
        epochs: int = 3,
        answers: bool = False,
    ) -> pathlib.Path:
        folder.mkdir(parents=True)
        recipe = yaml.safe_load(usual)
        recipe |= {"epochs": epochs} | ({"val_size": 0} if val is None else {})
        for name, value in zip(options[::2], options[1::2], strict=True):
            *sections, last = name.removeprefix("--").split(".")
            place = recipe
            for section in sections:
                place = place[section]
            assert last in place
            place[last] = yaml.safe_load(value)
        (folder / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        columns = ["epoch", "lr", "train_loss", "train_accuracy"] + (["val_loss", "val_accuracy"] if val else [])
        lines = [",".join([*columns, "images_per_second", "seconds"])]
        for epoch in range(1, epochs + 1):
            values = [epoch, 0.1 / epoch, 2 / epoch, 0.5 + 0.1 * epoch]
            values += [1.5 / epoch, val - 0.01 * (epochs - epoch)] if val else []
            lines.append(",".join(map(str, [*values, 1234.5, 20.0 * epoch])))
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        if not finished:
            return folder
        scores = {}
        if test is not None:
            labels = torch.arange(images) % 10
            guess = torch.where(torch.arange(images) < round(test * images), labels, (labels + 1) % 10)
            logits = 3 * torch.nn.functional.one_hot(guess, 10).float()
            scores = {"none": evaluate.score(logits, labels).to_dict()}
            if answers:
                runs.keep_predictions(folder, logits, labels)
        final = {f"test_{key}": scores["none"][key] for key in ("accuracy", "loss", "ece") if scores}
        final |= {"val_accuracy": val} if val else {}
        summary = {
            "name": folder.name,
            "final": final | {"best_epoch": epochs, "epochs": epochs, "minutes": minutes},
            "chosen_by": "validation accuracy" if val else "last epoch",
            "weights": "raw",
            "tta": "none",
            "test": scores,
            "trained_on_test": recipe["train_on_test"],
            "parameters": parameters,
            "budget": recipe["budget"],
            "tags": {"data_checksum": checksum, "device": "cpu", "git_commit": "unknown"},
            "versions": {"torch": "2.0"},
            "hardware": {"device": "cpu", "threads": 2, "cpu": "A CPU"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make


@pytest.fixture(autouse=True)
def _no_network():
    """A connection that was refused fails the test, also where the code under test swallowed the error."""
    no_network.refused.clear()
    yield
    assert no_network.refused == []
