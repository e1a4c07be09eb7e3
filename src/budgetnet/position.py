"""Where a training stands between two steps, and what time it has taken so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Position:
    """Where a training stands between two steps."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed in the current epoch."""
    images: int = 0
    """Images seen in them."""
    loss_sum: float = 0.0
    """Sum of the training loss over those images."""
    correct: int = 0
    """How many of them, as augmented, were classified right."""
    epoch_seconds: float = 0.0
    """Time of the steps of the current epoch so far."""
    seconds: float = 0.0
    """Time of the run so far: steps, validation and saving."""
    best_epoch: int = 0
    """The epoch whose weights are kept; 0 is none yet."""
    best_accuracy: float = -1.0
    """Its validation accuracy."""
    best_weights: str = "raw"
    """Which of its weights: raw, or the average."""


class Clock:
    """Keeps the times of a position, as if the run had never stopped.

    Args:
        at: the position, whose `seconds` and `epoch_seconds` it moves.
    """

    def __init__(self, at: Position) -> None:
        self._at = at
        self._began = time.monotonic() - at.seconds
        self._looked = self._saved = at.seconds

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """What is done within it counts as time of the epoch's steps."""
        started = time.monotonic()
        yield
        self._at.epoch_seconds += time.monotonic() - started
        self.read()

    def read(self) -> float:
        """Seconds of the run until now."""
        self._at.seconds = time.monotonic() - self._began
        return self._at.seconds

    def looked(self) -> None:
        """The position has just been shown."""
        self._looked = self._at.seconds

    def saved(self) -> None:
        """The position has just been saved."""
        self._saved = self._at.seconds

    @property
    def since_look(self) -> float:
        """Seconds from when the position was last shown to when the clock was last read."""
        return self._at.seconds - self._looked

    @property
    def since_save(self) -> float:
        """Seconds from when the position was last saved to when the clock was last read."""
        return self._at.seconds - self._saved
