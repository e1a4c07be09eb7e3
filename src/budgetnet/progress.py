"""What a person sees of a training: one live line and a tidy row an epoch, plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from budgetnet.config import Config
from budgetnet.position import Position
from budgetnet.terminal import wrapped

if TYPE_CHECKING:
    from budgetnet.data import Dataset

COLUMNS = (
    ("epoch", "epoch", "{:>5.0f}"),
    ("lr", "lr", "{:>8.3g}"),
    ("train loss", "train_loss", "{:>10.4f}"),
    ("train acc", "train_accuracy", "{:>9.2%}"),
    ("val loss", "val_loss", "{:>9.4f}"),
    ("val acc", "val_accuracy", "{:>8.2%}"),
    ("images/s", "images_per_second", "{:>8,.0f}"),
    ("time", "seconds", "{}"),
)
# What a narrow terminal does without, the first first.
_GIVES_WAY = ("lr", "images_per_second", "train_loss", "val_loss", "train_accuracy")
_GAP = "  "
_BEST = " *"


class Progress:
    """Silence; warnings go to standard error all the same."""

    begun = False
    """Whether there is a run to be saved."""

    def begin(self, config: Config, dataset: Dataset, run: Path, tags: Mapping[str, str]) -> None:
        """The data is read and the run folder made."""
        self.begun = True

    def step(self, at: Position, steps: int, lr: float) -> None:
        """A step is done."""

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """An epoch is done: its row of metrics.csv, and whether its weights are the best so far."""

    def end(self) -> None:
        """The training is over, well or not."""
        self.begun = False

    def say(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something that the user should know, whatever the mode."""
        print(f"budgetnet: warning: {text}", file=sys.stderr, flush=True)

    def download(self, done: int, total: int | None) -> None:
        """So many bytes of a download are here."""

    def decode(self, done: int, total: int) -> None:
        """So many image files are decoded."""

    def score(self, done: int, total: int) -> None:
        """So many sets of images are scored."""


class Mute(Progress):
    """Silence, and no warnings either: of a process that another one speaks for."""

    def warn(self, text: str) -> None:
        """Nothing."""


class PlainProgress(Progress):
    """A row an epoch, for files and pipes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.columns: list[tuple[str, str, str]] = []
        self.epochs = 0
        self.downloaded = 0
        self.decoded = 0

    def begin(self, config: Config, dataset: Dataset, run: Path, tags: Mapping[str, str]) -> None:
        """Say what is trained on what, and where it goes."""
        super().begin(config, dataset, run, tags)
        self.epochs = config.epochs
        budget = f" (budget {config.budget:,})" if config.budget else ""
        used = f"{config.train_size:,} of them used, " if config.train_size else ""
        held_out = f"{config.val_size:,} to choose by" if config.val_size else "none held out"
        self.say(f"{config.model.name}: {int(tags['parameters']):,} trainable parameters{budget}")
        self.say(
            f"{dataset.name}: {len(dataset.train.images):,} training images, {used}{held_out}; "
            f"{len(dataset.test.images):,} test images{', trained on too' if config.train_on_test else ''}"
        )
        self.say(f"{tags['device']}, {config.precision}; run folder {run}")

    def epoch(self, row: Mapping[str, float], best: bool) -> None:
        """Print the row, under a header the first time."""
        if not self.columns:
            self.columns = self._that_fit([column for column in COLUMNS if column[1] in row])
            self.say("")
            self.say(_GAP.join(f"{title:>{self._width(form, key)}}" for title, key, form in self.columns))
        cells = []
        for _, key, form in self.columns:
            cells.append(f"{duration(row[key]):>7}" if key == "seconds" else form.format(row[key]))
        self.say(_GAP.join(cells) + (_BEST if best else ""))

    def say(self, text: str) -> None:
        """Print a line, or a few where it is too long for one; paths and commands stay whole."""
        print("\n".join(wrapped(text, self._room(), 2)), file=self.out, flush=True)

    def _room(self) -> int:
        """Columns that lines may take."""
        return 80

    def _that_fit(self, columns: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        for giving_way in ("", *_GIVES_WAY):
            columns = [column for column in columns if column[1] != giving_way]
            if sum(self._width(form, key) + len(_GAP) for _, key, form in columns) <= self._room():
                break
        return columns

    def download(self, done: int, total: int | None) -> None:
        """Print a line every tenth of the way."""
        tenth = max(1, (total or 170_000_000) // 10)
        if done // tenth > self.downloaded // tenth:
            self.say(f"downloaded {done / 1e6:.0f} MB" + (f" of {total / 1e6:.0f} MB" if total else ""))
        self.downloaded = done

    def decode(self, done: int, total: int) -> None:
        """Print a line every tenth of the way, unless a moment is enough for all."""
        if done < total and done * 10 // total > self.decoded * 10 // total:
            self.say(f"decoded {done:,} of {total:,} images")
        self.decoded = done % total

    def score(self, done: int, total: int) -> None:
        """Print a line every tenth of the way, unless there are few sets."""
        if total >= 10 and done * 10 // total > (done - 1) * 10 // total:
            self.say(f"scored {done} of {total} sets of images")

    @staticmethod
    def _width(form: str, key: str) -> int:
        return 7 if key == "seconds" else len(form.format(0.0))


class LiveProgress(PlainProgress):
    """The rows of `PlainProgress` over a line that follows the steps, for terminals."""

    def __init__(self, out: TextIO | None = None) -> None:
        super().__init__(out)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self.console = Console(file=self.out, highlight=False)
        self.text = Text
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.shown = 0.0

    def step(self, at: Position, steps: int, lr: float) -> None:
        """Redraw the line, at most ten times a second."""
        now = time.monotonic()
        if now - self.shown < 0.1 and at.step < steps:
            return
        self.shown = now
        self.live.start()
        speed = at.images / max(at.epoch_seconds, 1e-9)
        done = at.epoch * steps + at.step
        left = (self.epochs * steps - done) * at.seconds / done
        # Of even width, so that nothing moves from one redraw to the next; with the place in which a part gives way
        # where the terminal is narrow.
        parts = [
            (8, f"epoch {at.epoch + 1:>{len(str(self.epochs))}}/{self.epochs}"),
            (3, _bar(at.step / steps, 12)),
            (2, f"step {at.step:>{len(str(steps))}}/{steps}"),
            (6, f"loss {at.loss_sum / at.images:>5.3f}"),
            (5, f"acc {at.correct / at.images:>5.1%}"),
            (1, f"lr {lr:<8.3g}"),
            (4, f"{speed:>6,.0f} img/s"),
            (7, f"{duration(left)} left"),
        ]
        while len(line := _GAP.join(text for _, text in parts)) > self._room() and len(parts) > 1:
            parts.remove(min(parts))
        self._show(line)

    def end(self) -> None:
        """Take the line away."""
        super().end()
        self.live.stop()

    def say(self, text: str) -> None:
        """Print a line above the live one, or a few where it is too long for one."""
        style = "bold green" if text.endswith(_BEST) else ""
        for line in wrapped(text, self._room(), 2):
            self.console.print(self.text(line, style=style), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning above the live line."""
        self.live.stop()
        super().warn(text)

    def download(self, done: int, total: int | None) -> None:
        """Redraw a bar of the download, at most ten times a second."""
        now = time.monotonic()
        if now - self.shown < 0.1 and done != total:
            return
        self.shown = now
        self.live.start()
        bar = f"{_bar(done / total, 30)} " if total else ""
        whole = f" of {total / 1e6:.0f}" if total else ""
        self._show(f"downloading {bar}{done / 1e6:.0f}{whole} MB")
        if done == total:
            self.live.stop()

    def decode(self, done: int, total: int) -> None:
        """Redraw a bar of the decoding, at most ten times a second."""
        now = time.monotonic()
        if now - self.shown < 0.1 and done != total:
            return
        self.shown = now
        self.live.start()
        self._show(f"decoding {_bar(done / total, 30)} {done:,} of {total:,} images")
        if done == total:
            self.live.stop()

    def score(self, done: int, total: int) -> None:
        """Redraw a bar of the sets of images that are scored."""
        self.live.start()
        self._show(f"scoring {_bar(done / total, 30)} {done} of {total} sets of images")
        if done == total:
            self.live.stop()

    def _room(self) -> int:
        return self.console.width

    def _show(self, line: str) -> None:
        """Redraw the live line, which is cut where the terminal ends: a second line would stay behind."""
        self.live.update(self.text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def _bar(share: float, width: int) -> str:
    filled = round(width * share)
    return "━" * filled + "╌" * (width - filled)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def summary_lines(summary: Mapping[str, Any], run: Path) -> list[str]:
    """The end of a training in a few lines."""
    final = summary["final"]
    averaged = "averaged " if summary.get("weights") == "average" else ""  # older summaries do not say
    lines = [
        "",
        f"{averaged}weights of epoch {final['best_epoch']:.0f}, chosen by {summary['chosen_by']}"
        + (f" ({final['val_accuracy']:.2%})" if "val_accuracy" in final else ""),
        (f"test accuracy {final['test_accuracy']:.2%}" if "test_accuracy" in final else "no test accuracy")
        + (", as the test images were trained on" if summary.get("trained_on_test") else "")
        + (f", {final['test_accuracy_tta']:.2%} with {summary['tta']} views" if "test_accuracy_tta" in final else "")
        + f"; {summary['parameters']:,} parameters; {duration(final['minutes'] * 60)}",
        f"everything is in {run}",
    ]
    return lines
