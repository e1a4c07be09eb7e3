"""What several processes compute together, for `test_distributed.py`: run in each, with the variables of torchrun.

`python together.py FOLDER SCENARIO...` leaves what the first process has in FOLDER.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from budgetnet import distributed
from budgetnet.config import (
    AugmentConfig,
    Config,
    DistillConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
)
from budgetnet.distributed import Group, SyncNorm
from budgetnet.errors import Interrupted
from budgetnet.progress import Progress
from budgetnet.train import train

# Smooth, and trained slowly: a rounding error of 1e-7 is still one after 200 steps. With ReLU and a rate of 0.02 it was
# 0.02 of the weights' norm, in one process alone.
STAGES = [StageConfig(width=8, depth=1, stride=4, activation="silu"), StageConfig(width=8, depth=1, activation="silu")]
SMALL = ModelConfig(name="residual", stages=STAGES)

# Batches of 23 and 24, which no number of processes divides evenly.
PLAIN = Config(
    dataset="digits",
    val_size=37,
    train_size=117,
    model=SMALL,
    epochs=2,
    batch_size=30,
    optimizer=OptimizerConfig(lr=0.005, nesterov=True),
    checkpoint_minutes=None,
    sync_norm=True,
)
AUGMENT = AugmentConfig(crop_padding=2, flip="random", rotation=5, erase_p=0.3)
CONFIGS = {
    "long": replace(
        PLAIN,
        train_size=237,
        val_size=0,
        epochs=26,
        augment=AUGMENT,
        mix=MixConfig(name="mixup"),
        ema=0.9,
        label_smoothing=0.1,
        clip_norm=1.0,
        schedule=ScheduleConfig(name="onecycle"),
    ),
    "muon": replace(
        PLAIN,
        optimizer=OptimizerConfig(name="muon", lr=0.005, sam=0.05),
        mix=MixConfig(name="ricap"),
        augment=AugmentConfig(policy="trivial", brightness=0.2, hue=0.1, cutout=8),
    ),
    "adamw": replace(
        PLAIN,
        optimizer=OptimizerConfig(name="adamw", lr=0.001),
        mix=MixConfig(name="cutmix", p=0.5),
        augment=AugmentConfig(policy="rand", crop_padding=2, crop_border="reflect"),
    ),
    "augmix": replace(
        PLAIN, augment=AugmentConfig(policy="augmix", consistency=12, flip="alternate"), swa=0.6, batch_size=20
    ),
    "student": replace(PLAIN, augment=AUGMENT, distill=DistillConfig(teachers=["muon"])),
    "layers": replace(
        PLAIN,
        model=ModelConfig(
            name="residual", stages=[StageConfig(block="convnext", width=8, depth=1, stride=4, activation="gelu")]
        ),
        accumulate=3,
        sync_norm=False,
    ),
    "apart": replace(PLAIN, augment=AUGMENT, sync_norm=False, checkpoint_steps=3),
    "short": replace(PLAIN, augment=AUGMENT, mix=MixConfig(name="mixup"), ema=0.9),
    "rounded": replace(PLAIN, augment=AUGMENT, exchange="bf16"),
}


def config_of(name: str, folder: Path) -> Config:
    """A configuration; the teacher is what one process has trained."""
    config = CONFIGS[name]
    teachers = [str(folder / "one" / teacher) for teacher in config.distill.teachers]
    return replace(config, distill=replace(config.distill, teachers=teachers)) if teachers else config


class Asked(Progress):
    """Asks, in one of the processes alone, to stop after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, at, steps, lr):
        self.left -= 1


def run(name: str, folder: Path, group: Group) -> None:
    train(config_of(name, folder), folder / name, track=False, test=False, group=group)


def stopped(folder: Path, group: Group) -> None:
    """One that the last process alone is asked to stop, and that goes on."""
    asked = Asked(4 if group.rank == group.size - 1 else 10**6)
    config, run = CONFIGS["apart"], folder / "stopped"
    try:
        train(config, run, track=False, group=group, progress=asked, stop=lambda: asked.left <= 0)
    except Interrupted:
        train(config, run, track=False, test=False, group=group, resume=True)


def half(folder: Path, group: Group) -> None:
    """The beginning of "short", which another number of processes goes on with."""
    asked = Asked(7)
    try:
        train(CONFIGS["short"], folder / "half", track=False, group=group, progress=asked, stop=lambda: asked.left <= 0)
    except Interrupted:
        return
    raise AssertionError


def other(folder: Path, group: Group) -> None:
    """The rest of what one process has begun."""
    train(CONFIGS["short"], folder / "begun", track=False, test=False, group=group, resume=True)


def tested(folder: Path, group: Group) -> None:
    """The test of what one process has trained."""
    train(CONFIGS["short"], folder / "tested", track=False, group=group, resume=True)


def parts(folder: Path, group: Group) -> None:
    """Logits of sets that no number of processes divides; norms of uneven parts, and their gradients."""
    found = {}
    for n in (0, 1, 5, 8):
        rows = torch.arange(n * 3.0).view(n, 3)
        found[f"logits {n}"] = group.logits(lambda own: own * 2, rows)
    x, weight = batch()
    own = group.parts(len(x), 1)[0]
    norm = nn.BatchNorm2d(x.shape[1], momentum=0.3)
    distributed.synchronise_norms(norm)
    assert type(norm) is SyncNorm
    for _ in range(2):
        part = x[own.start : own.stop].clone().requires_grad_()
        out = norm(part)
        (out * weight[own.start : own.stop]).sum().backward()
    gradients = [torch.zeros_like(x) for _ in range(group.size)]
    for gradient in gradients:
        gradient[own.start : own.stop] = part.grad
    whole = torch.zeros_like(x)
    whole[own.start : own.stop] = part.grad
    found |= {"gradient": group.sum(whole), "weight": group.sum(norm.weight.grad), "bias": group.sum(norm.bias.grad)}
    found |= {"mean": norm.running_mean, "var": norm.running_var, "count": norm.num_batches_tracked}
    assert group.agree(group.rank == 1, False) == (True, False)
    if group.leader:
        torch.save(found, folder / "parts.pt")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images far from 0, where sums of squares lose digits, and weights of a loss."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 4, generator=rng) * torch.tensor([1.0, 0.1, 3.0]).view(1, 3, 1, 1) + 20
    return x, torch.randn(7, 3, 4, 4, generator=rng)


def main(folder: Path, scenarios: list[str]) -> None:
    torch.set_num_threads(1)
    try:
        with distributed.join(torch.device("cpu")) as group:
            leave, group.leave = group.leave, lambda: None  # there are other trainings
            for scenario in scenarios:
                if scenario in CONFIGS:
                    run(scenario, folder, group)
                else:
                    {"stopped": stopped, "half": half, "other": other, "tested": tested, "parts": parts}[scenario](
                        folder, group
                    )
            group.leave = leave
            connected = group.connect(nn.Linear(2, 2), PLAIN)
            connected(torch.ones(1, 2)).sum().backward()
            raise Interrupted
    except Interrupted:  # with all that was computed still there; yet no thread may see the interpreter end
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        assert not [name for name in names if "gloo" in name], names


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
