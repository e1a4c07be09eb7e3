"""The specification of several processes that train one network: they are one process, but faster.

What they compute is in `together.py`. `python -m pytest -m several tests/test_distributed.py` also runs four processes,
processes that are killed and restarted by torchrun, and two network namespaces (for which it must be root).
"""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import together
import torch
from torch import nn

from budgetnet import augment, checkpoint, cli, draws, mixing
from budgetnet.config import Config, MixConfig
from budgetnet.distributed import Group, Part
from budgetnet.errors import ConfigError
from budgetnet.train import train

ROOT = Path(__file__).parent.parent
TOLERANCE = 5e-4  # of the weights' norm; docs/scale.md states it
STEPS = 26 * 8


def start(command: list[str], rank: int, size: int, port: int, **environment: str) -> subprocess.Popen:
    variables = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path(), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.Popen([sys.executable, *command], env=os.environ | variables | environment)


def path() -> str:
    return os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def all_end_well(processes: list[subprocess.Popen]) -> None:
    try:
        assert [process.wait(300) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def train_together(folder: Path, size: int, scenarios: list[str]) -> None:
    port = free_port()
    script = str(Path(together.__file__))
    all_end_well([start([script, str(folder), *scenarios], rank, size, port) for rank in range(size)])


def prepare(folder: Path) -> None:
    """What one process computes: all that the others are compared with, and what they learn from or go on with."""
    (folder / "one").mkdir()
    for name in together.CONFIGS:
        config = together.config_of(name, folder)
        if name in ("layers", "apart"):
            config = replace(config, accumulate=1)
        train(config, folder / "one" / name, track=False, test=False)
    asked = together.Asked(3)
    with pytest.raises(together.Interrupted):
        train(together.CONFIGS["short"], folder / "begun", track=False, progress=asked, stop=lambda: asked.left <= 0)
    shutil.copytree(folder / "one" / "short", folder / "tested")
    config = together.CONFIGS["apart"]
    train(replace(config, accumulate=2), folder / "one" / "two pieces", track=False, test=False)
    train(replace(together.CONFIGS["layers"], accumulate=6), folder / "one" / "six pieces", track=False, test=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    prepare(folder)
    return folder


SCENARIOS = [*together.CONFIGS, "stopped", "half", "other", "tested", "parts"]


@pytest.fixture(scope="module")
def two(one) -> Path:
    """The folder, when two processes have been through all scenarios."""
    train_together(one, 2, SCENARIOS)
    return one


def vector(run: Path, *parts: str, statistics: bool = True) -> torch.Tensor:
    state = checkpoint.load_state(run / "last.ckpt")
    values = [
        value.flatten().double()
        for part in parts or ("network", "average")
        for name, value in state.get(part, {}).items()
        if value.is_floating_point() and (statistics or "running" not in name)
    ]
    return torch.cat(values)


def distance(run: Path, other: Path, **which: bool) -> float:
    mine, theirs = vector(run, **which), vector(other, **which)
    return float((mine - theirs).norm() / theirs.norm())


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def assert_close(run: Path, other: Path) -> None:
    assert distance(run, other) < TOLERANCE
    for mine, theirs in zip(rows(run), rows(other), strict=True):
        for name, value in theirs.items():
            # One image in a hundred may be nearly undecided.
            assert mine[name] == pytest.approx(value, rel=TOLERANCE, abs=0.03 if "accuracy" in name else 1e-6), name


def assert_equal(run: Path, other: Path) -> None:
    assert torch.equal(vector(run), vector(other))
    assert rows(run) == rows(other)


def test_two_processes_give_the_weights_of_one_after_200_steps(two):
    assert checkpoint.load_state(two / "long" / "last.ckpt")["position"]["epoch"] * 8 == STEPS >= 200
    assert_close(two / "long", two / "one" / "long")
    page = " ".join((ROOT / "docs" / "scale.md").read_text().split())
    assert f"{STEPS} steps" in page
    assert f"{TOLERANCE:.4f} of their norm" in page


@pytest.mark.parametrize("name", ["muon", "adamw", "augmix", "student", "layers"])
def test_whatever_is_on_two_processes_give_the_weights_of_one(name, two):
    assert_close(two / name, two / "one" / name)


def test_the_test_and_the_record_are_those_of_one_process_and_say_how_many_there_were(two):
    theirs = train(together.CONFIGS["short"], two / "one" / "short", track=False, resume=True)
    mine = json.loads((two / "tested" / "summary.json").read_text())
    assert mine["test"] == theirs["test"]
    assert mine["hardware"].pop("processes") == 2
    assert mine["hardware"] == theirs["hardware"]
    assert {p.name for p in (two / "tested").iterdir()} == {p.name for p in (two / "one" / "short").iterdir()}


def test_without_synchronised_norms_each_process_normalises_its_own_images_as_pieces_of_a_batch_do(two):
    # The running statistics differ: processes average theirs, pieces follow each other.
    as_pieces = distance(two / "apart", two / "one" / "two pieces", statistics=False)
    assert as_pieces < TOLERANCE / 10
    assert distance(two / "apart", two / "one" / "apart", statistics=False) > 10 * as_pieces


def test_pieces_of_a_batch_are_the_batch_where_no_norm_looks_at_other_images(one):
    assert distance(one / "one" / "six pieces", one / "one" / "layers") < TOLERANCE


def test_gradients_that_were_rounded_on_their_way_lead_to_nearly_the_same_weights(two):
    assert 3e-6 < distance(two / "rounded", two / "one" / "rounded") < TOLERANCE


def test_one_process_that_is_asked_to_stop_stops_all_and_the_resumed_run_equals_the_undisturbed_one(two):
    assert_equal(two / "stopped", two / "apart")


def test_what_two_processes_have_begun_one_goes_on_with_and_the_other_way_round(two):
    assert_close(two / "begun", two / "one" / "short")
    train(together.CONFIGS["short"], two / "half", track=False, test=False, resume=True)
    assert_close(two / "half", two / "one" / "short")


def assert_parts_are_the_whole(found: dict[str, torch.Tensor]) -> None:
    for n in (0, 1, 5, 8):
        assert torch.equal(found[f"logits {n}"], 2 * torch.arange(n * 3.0).view(n, 3))
    x, weight = together.batch()
    norm = nn.BatchNorm2d(x.shape[1], momentum=0.3).double()
    for _ in range(2):
        whole = x.double().requires_grad_()
        (norm(whole) * weight).sum().backward()
    expected = {"gradient": whole.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    expected |= {"mean": norm.running_mean, "var": norm.running_var}
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-4, msg=name)
    assert found["count"] == 2


def test_synchronised_norms_are_those_of_the_whole_batch_and_logits_those_of_all_images(two):
    assert_parts_are_the_whole(torch.load(two / "parts.pt", weights_only=True))


# Sharing out, in one process


class Place(Group):
    """One of several, by itself."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("images", "size", "each"), [*itertools.product((8, 13, 32, 101), (1, 2, 4), (1, 2))])
def test_the_parts_of_a_batch_are_the_batch_each_image_once_and_about_equal(images, size, each):
    parts = [part for rank in range(size) for part in Place(rank, size).parts(images, each)]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(images))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert sum(part.share for part in parts) == pytest.approx(1)


CHAINS = {
    "reference": together.AUGMENT,
    "colours": replace(together.AUGMENT, policy="trivial", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
    "rand": replace(together.AUGMENT, policy="rand", cutout=4, crop_border="reflect", flip="alternate"),
    "augmix": replace(together.AUGMENT, policy="augmix"),
    "views": replace(together.AUGMENT, policy="augmix", consistency=1.0, erase_p=0.0),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_an_image_is_augmented_the_same_in_any_part_of_its_batch(chain):
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 3, 16, 16), generator=rng, dtype=torch.uint8)
    apply = augment.Augment(chain, (0.5,) * 3, (0.2,) * 3, seed=3)
    index = torch.arange(9) * 7
    whole = apply(images, index, 1, torch.Generator().manual_seed(5)).view(-1, 9, 3, 16, 16)
    for start, stop in ((0, 4), (4, 9), (3, 5)):
        rows = Part(start, stop, 9).rows(0, images.device)
        part = apply(images[rows], index[rows], 1, draws.Share(rows, 9).manual_seed(5))
        assert torch.equal(part.view(-1, stop - start, 3, 16, 16), whole[:, start:stop])


@pytest.mark.parametrize("name", ["mixup", "cutmix", "ricap"])
def test_an_image_is_mixed_with_the_same_others_in_any_part_of_its_batch(name):
    rng = torch.Generator().manual_seed(1)
    images, labels = torch.randn((9, 3, 16, 16), generator=rng), torch.arange(9)
    config = MixConfig(name=name, p=0.8)
    whole, targets = mixing.mix(images, labels, 10, config, torch.Generator().manual_seed(5))
    before = mixing.REACH[name]
    for start, stop in ((0, 4), (4, 9), (0, 1)):
        rows = Part(start, stop, 9).rows(before, images.device)
        mixed, shares = mixing.mix(images[rows], labels[rows], 10, config, draws.Share(rows, 9).manual_seed(5))
        assert torch.equal(mixed[before:], whole[start:stop])
        assert torch.equal(shares[before:], targets[start:stop])


def test_a_batch_too_small_to_be_shared_out_is_refused_before_the_first_step():
    with pytest.raises(ConfigError, match=r"has 7 images, expected 8 or more for 4 processes: each part needs two"):
        Place(0, 4).require_shareable(Config(), 7)
    with pytest.raises(ConfigError, match=r"expected 12 or more for 2 processes and accumulate 3"):
        Place(0, 2).require_shareable(Config(accumulate=3), 11)
    Place(0, 4).require_shareable(Config(), 8)
    Group().require_shareable(Config(), 2)


def test_the_first_process_alone_says_that_an_option_is_wrong(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", str(ROOT / "recipes" / "smoke.yaml"), "--epochz", "3"]) == 1
    assert capsys.readouterr().err.count("--epochz is not an option") == 1


def test_restarts_need_a_folder_to_be_found_again(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert cli.main(["train", str(ROOT / "recipes" / "smoke.yaml")]) == 1
    assert "needs --output RUN" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--devices", "0"], ["--devices", "2", "--batch-size", "auto"]])
def test_what_several_processes_cannot_do_is_refused_in_one_line(options, capsys):
    assert cli.main(["train", str(ROOT / "recipes" / "smoke.yaml"), *options]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# The command, as users type it


def command(run: Path, *options: str) -> list[str]:
    common = ["--no-track", "--no-report", "--precision", "fp32", "--threads", "2"]
    return ["-m", "budgetnet", "train", str(ROOT / "recipes" / "smoke.yaml"), "--output", str(run), *common, *options]


def wait_for(epoch: int, process: subprocess.Popen) -> None:
    """Until an epoch is over, and so in `last.ckpt`."""
    for line in process.stdout:
        if re.match(rf" *{epoch} +\d", line):
            return
    raise AssertionError("it has ended")


def test_the_short_command_trains_in_two_processes_and_ends_by_one_signal(tmp_path):
    run = tmp_path / "run"
    begun = subprocess.Popen(
        [sys.executable, *command(run, "--devices", "2", "--epochs", "400", "--checkpoint-steps", "5")],
        env=os.environ | {"PYTHONPATH": path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(1, begun)
    begun.send_signal(signal.SIGTERM)
    said = begun.communicate(timeout=120)[1]
    assert begun.returncode == 128 + signal.SIGTERM
    assert said.splitlines() == [
        f"saved; to go on: budgetnet train --resume --output {run} --devices 2 --threads 2 --no-track --no-report"
    ]
    assert not (run / ".lock").exists()


@pytest.mark.several
def test_a_mistake_that_all_processes_meet_is_told_in_one_line(tmp_path):
    for options, said in (
        (["--batch-size", "3"], "the smallest batch has 2 images, expected 4 or more for 2 processes"),
        (["--resume"], "holds no config.yaml: there is nothing to resume"),
    ):
        ended = subprocess.run(
            [sys.executable, *command(tmp_path / "run", "--devices", "2", *options)],
            env=os.environ | {"PYTHONPATH": path()},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 1
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


def torchrun(*options: str) -> list[str]:
    return ["-m", "torch.distributed.run", *options]


@pytest.mark.several
def test_a_killed_process_is_restarted_by_torchrun_with_the_others_and_nothing_is_lost(tmp_path):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    options = ["--epochs", "6", "--checkpoint-steps", "7"]
    for run in (whole, disturbed):
        process = subprocess.Popen(
            [
                sys.executable,
                *torchrun("--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1"),
                *command(run, *options),
            ],
            env=os.environ | {"PYTHONPATH": path(), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
        )
        if run == disturbed:
            for epoch, place in ((1, -1), (3, 0)):  # first the last process, then the one that writes
                wait_for(epoch, process)
                os.kill(children(process.pid)[place], signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert_equal(disturbed, whole)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.several
def test_four_processes_give_the_weights_of_one_too(one, tmp_path):
    names = ["long", "muon", "augmix", "layers", "parts", "apart", "stopped"]
    shutil.copytree(one / "one", tmp_path / "one")
    train_together(tmp_path, 4, names)
    for name in ("long", "muon", "augmix", "layers"):
        assert_close(tmp_path / name, tmp_path / "one" / name)
    assert_parts_are_the_whole(torch.load(tmp_path / "parts.pt", weights_only=True))
    # The order in which more than two are summed follows that in which gradients were ready in the step before.
    assert_close(tmp_path / "stopped", tmp_path / "apart")


@pytest.fixture
def namespaces():
    """The names of two network namespaces, joined by a cable, and the addresses of its ends."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and iproute2")
    names = ("budgetnet-a", "budgetnet-b")
    steps = [f"ip netns add {name}" for name in names]
    steps.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for place, name in enumerate(names, 1):
        steps += [
            f"ip -n {name} addr add 10.199.7.{place}/24 dev cable",
            f"ip -n {name} link set cable up",
            f"ip -n {name} link set lo up",
        ]
    try:
        for step in steps:
            done = subprocess.run(step.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {step}: {done.stderr.strip()}")
        yield names, ("10.199.7.1", "10.199.7.2")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.several
def test_two_machines_that_share_no_disk_train_together(namespaces, one, tmp_path):
    names, addresses = namespaces
    port = free_port()
    config = ["--epochs", "1", "--sync-norm", "true", "--optimizer.lr", "0.002"]
    nodes = []
    for place, name in enumerate(names):
        node = torchrun("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(place))
        node += ["--master-addr", addresses[0], "--master-port", str(port)]
        run = tmp_path / f"disk {place}" / "run"
        # Each would be refused a way to any other machine.
        nodes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, *node, *command(run, *config)],
                env=os.environ
                | {"PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "cable", "TP_SOCKET_IFNAME": "cable"},
            )
        )
    all_end_well(nodes)
    assert not (tmp_path / "disk 1" / "run").exists()
    alone = tmp_path / "alone"
    assert cli.main(command(alone, *config)[2:]) == 0
    assert_close(tmp_path / "disk 0" / "run", alone)
