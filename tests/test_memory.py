"""How many images a step may have, by what memory there is."""

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from budgetnet import memory
from budgetnet.cli import main
from budgetnet.cli.train import without_auto_batch
from budgetnet.config import Config, ModelConfig, StageConfig, to_yaml
from budgetnet.memory import available, fitting_batch, is_out_of_memory
from budgetnet.recipe import load_recipe
from budgetnet.train import train

ELSEWHERE = torch.device("mps")  # where steps are tried; nothing is computed there
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """Each size that is tried collects garbage, which among all that other tests have imported takes half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("asked", "room", "expected"), [(500, 40, 31), (500, 500, 500), (128, 2, 2), (3, 2, 2)])
def test_the_batch_is_halved_until_a_step_does_not_run_out_of_memory(asked, room, expected):
    tried = []

    def step(size):
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError

    assert fitting_batch(asked, step, ELSEWHERE) == expected
    assert tried[0] == asked
    assert tried[-1] == expected


def test_memory_for_two_images_must_be_there_and_other_errors_are_not_about_memory():
    def full(size):
        raise torch.OutOfMemoryError

    def wrong(size):
        raise RuntimeError("the shapes do not fit")

    with pytest.raises(torch.OutOfMemoryError):
        fitting_batch(64, full, ELSEWHERE)
    with pytest.raises(RuntimeError, match="shapes"):
        fitting_batch(64, wrong, ELSEWHERE)


def test_an_allocation_that_the_cpu_refuses_is_recognised_by_what_torch_says():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def a_step(seen=None):
    """A step of layers of which each keeps its input, 4096 or 8192 bytes an image, and its weights."""
    layers = nn.Sequential(nn.Linear(1024, 2048), nn.Sigmoid(), nn.Linear(2048, 1))

    def step(size):
        if seen is not None:
            seen.append(size)
        layers(torch.ones(size, 1024)).sum().backward()

    return step


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.1])
def test_on_a_cpu_what_a_step_keeps_is_extrapolated_and_no_large_step_is_tried(share, monkeypatch):
    asked, seen = 4096, []
    kept = {size: memory._kept(a_step(), size) for size in (asked >> n for n in range(8))}
    room = int(share * 2 * kept[asked] / 0.8)
    monkeypatch.setattr(memory, "available", lambda: room)
    found = fitting_batch(asked, a_step(seen), CPU)
    assert found == max(size for size in kept if 2 * kept[size] <= 0.8 * room)
    assert max(seen) <= 16


PEAK = """
import gc, re, sys, torch
from pathlib import Path
from budgetnet import memory, models
from budgetnet.config import ModelConfig
torch.set_num_threads(1)
network = models.build(ModelConfig(name="wrn_16_4", width=16), 10).train()
def step(size):
    network(torch.ones(size, 3, 32, 32)).logsumexp(1).sum().backward()
little, more = (memory._kept(step, size) for size in (8, 16))
gc.collect()
def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = status("VmRSS")
step(256)
print((status("VmHWM") - before) / (little + (256 - 8) * (more - little) / 8))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what the peak was")
def test_the_estimate_holds_what_a_real_step_takes_at_its_peak():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < memory._TEMPORARY


def test_where_the_system_does_not_say_what_is_available_the_step_is_tried(monkeypatch):
    seen = []
    monkeypatch.setattr(memory, "available", lambda: None)
    assert fitting_batch(64, a_step(seen), CPU) == 64
    assert seen == [64]


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_GROUP_FILES", ())
    whole = available()
    (tmp_path / "max").write_text("30000000\n")
    (tmp_path / "used").write_text("10000000\n")
    monkeypatch.setattr(memory, "_GROUP_FILES", ((str(tmp_path / "max"), str(tmp_path / "used")),))
    assert available() == 20_000_000
    (tmp_path / "max").write_text("max\n")
    assert (available() is None) == (whole is None)
    assert whole is None or available() > 20_000_000


SMALL = Config(
    dataset="digits",
    val_size=100,
    train_size=238,
    model=ModelConfig(name="residual", stages=[StageConfig(width=4, depth=1, stride=4)]),
    epochs=1,
    batch_size=128,
)


def test_the_batch_size_that_was_found_is_in_the_record_and_kept_by_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    train(SMALL, tmp_path / "run", track=False, fit_memory=True)
    found = load_recipe(tmp_path / "run" / "config.yaml")
    assert 2 <= found.batch_size < 128
    assert found == replace(SMALL, batch_size=found.batch_size)
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    (tmp_path / "run" / "summary.json").unlink()
    train(SMALL, tmp_path / "run", track=False, fit_memory=True, resume=True)
    assert load_recipe(tmp_path / "run" / "config.yaml") == found


def test_looking_for_a_batch_size_changes_nothing_else(tmp_path):
    plain = train(SMALL, tmp_path / "plain", track=False)
    found = train(SMALL, tmp_path / "found", track=False, fit_memory=True)
    assert found["test"] == plain["test"]


@pytest.mark.parametrize("given", [["--batch-size", "auto"], ["--batch_size=auto"], ["--batch-size=auto"]])
def test_auto_is_taken_off_the_command_line(given):
    assert without_auto_batch(["recipe", *given, "--json"]) == (["recipe", "--json"], True)
    for other in (["--batch-size", "64"], ["--precision", "auto"], []):
        assert without_auto_batch(["recipe", *other]) == (["recipe", *other], False)


def test_the_command_line_finds_a_batch_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda: 20_000)  # what the weights take, and little more
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(replace(SMALL, train_size=38)))
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--batch-size", "auto", "--no-track", "--output", str(run)]) == 0
    assert load_recipe(run / "config.yaml").batch_size == 2
    assert "batch_size 2, of which a step fits in memory" in capsys.readouterr().out
