"""What to try when a training fails: the one line that its user reads."""

from __future__ import annotations

import torch

from budgetnet import memory
from budgetnet.config import Config
from budgetnet.errors import first_line


def diverged(what: str, config: Config, rate: float) -> str:
    """Against numbers that grew out of bounds, at that learning rate; `what` says which."""
    rise = (
        "larger --schedule.peak" if config.schedule.name in ("onecycle", "triangular") else "longer --schedule.warmup"
    )
    advice = f"a lower --optimizer.lr than {config.optimizer.lr:g}, a {rise}, or --clip-norm 1"
    if config.precision != "fp32":
        advice += f", or --precision fp32 instead of {config.precision}"
    return f"{what}, at learning rate {rate:g}: in a new run, try {advice}"


def bad_from_the_start(what: str, config: Config) -> str:
    """Against a first loss that is not finite: no update came before it, so that no rate and no clipping can fix it."""
    causes = ["the images (`budgetnet data verify`)"]
    if config.distill.teachers:
        causes.append("the teachers")
    advice = f"look at {' and '.join(causes)}"
    if config.precision != "fp32":
        advice += f", or try --precision fp32 instead of {config.precision}"
    return f"{what}, before any update: {advice}"


def against(error: BaseException, config: Config, device: torch.device) -> str:
    """Against an error of torch's that an option can fix; nothing for all others."""
    if memory.is_out_of_memory(error):
        less = max(2, config.batch_size // 2)
        return (
            f"{device} has not enough memory for batch_size {config.batch_size}: try --batch-size {less} in a new run, "
            "--batch-size auto, which finds one that fits, or a narrower network"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed ({first_line(error)}): leave it out by --compile false"
    return ""
