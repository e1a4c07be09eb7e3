"""What is saved of a training between two steps, and how one goes on from it.

As a step draws everything from (seed, epoch, step), weights, the optimizer's memory and a few counters are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgetnet import checkpoint
from budgetnet.errors import CheckpointError, one_line
from budgetnet.position import Position
from budgetnet.training import Training


def state_of(training: Training) -> dict[str, Any]:
    """Everything that a resumed run needs; with the checksum of the data, so that it resumes on no other."""
    state: dict[str, Any] = {
        "checksum": training.dataset.checksum,
        "position": asdict(training.at),
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "plateau": training.plateau.state_dict(),
        "scaler": training.scaler.state_dict(),
    }
    if training.start:
        state |= {"start": training.start["sha256"]}
    if training.teachers:
        state |= {"teachers": training.teachers.digests}
    if average := training.average:
        state |= {"average": average.network.state_dict(), "average_updates": average.updates}
    return state


def restore(training: Training, state: Mapping[str, Any], path: Path) -> None:
    """Bring a training to where the one that `state_of` saved stood.

    Args:
        training: of the same configuration, changed in place.
        state: from the file at `path`.
        path: what errors name.

    Raises:
        CheckpointError: the run was trained on other data, from other weights or by other teachers, or the file holds
            something else.
    """
    try:
        _require_same(training, state, path)
        _restore(training, state, path)
    # Whoever knows the format can seal anything; what is wrong with it is met by whatever reads it first.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(
            f"{path} has a checkpoint's checksum and not its content ({what}): resume from another, or train again"
        ) from error


def _require_same(training: Training, state: Mapping[str, Any], path: Path) -> None:
    """Refuse a state of other data, other teachers or another start."""
    checksum = training.dataset.checksum
    if state["checksum"] != checksum:
        raise CheckpointError(
            f"{path} belongs to a run on other data (checksum {state['checksum'][:12]}, found {checksum[:12]}): "
            "resume with the same --data"
        )
    others = [f"teacher {name}" for name in training.config.distill.teachers]
    found, saved = list(training.teachers.digests if training.teachers else ()), list(state.get("teachers", ()))
    if training.start or "start" in state:
        others.append(f"start {training.config.start}")
        found.append(training.start["sha256"] if training.start else "none")
        saved.append(state.get("start", "none"))
    for other, now, before in zip(others, found, saved, strict=True):
        if now != before:
            raise CheckpointError(
                f"{other} has changed since {path} was written (checksum {before[:12]}, found {now[:12]}): "
                "resume with the same file"
            )


def _restore(training: Training, state: Mapping[str, Any], path: Path) -> None:
    networks = {"network": training.network}
    if average := training.average:
        networks["average"], average.updates = average.network, state["average_updates"]
    for name, network in networks.items():
        checkpoint.load_strictly(network, state[name], str(path), "the run's network")
    training.optimizer.load_state_dict(state["optimizer"])
    training.plateau.load_state_dict(state["plateau"])
    training.scaler.load_state_dict(state["scaler"])
    training.at = Position(**state["position"])
    if not checkpoint.has_type(training.at, Position):
        raise TypeError(f"a position of {training.at}")
