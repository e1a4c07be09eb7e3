"""The space that a sweep searches: which options of a recipe vary, and between what, read from a YAML file.

optimizer.lr: {float: [0.01, 1.0], log: true}
batch_size: {int: [64, 256], step: 64}
augment.policy: {choice: [none, trivial, augmix]}
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.config import Config
from budgetnet.errors import ConfigError
from budgetnet.plainyaml import read_yaml
from budgetnet.recipe import require_option

if TYPE_CHECKING:
    from optuna import Trial

FIXED = frozenset({"seed", "split_seed", "dataset", "val_size", "train_on_test", "budget", "tta", "experiment"})
"""Options that cannot vary: trials would not be judged by the same images under the same limit, or it would be luck or
nothing that is chosen."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_DRAWS = 20  # of the other options, before a value is said to be impossible


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    """Whole numbers only."""
    log: bool = False
    """Drawn by their logarithms: 0.01 to 0.1 as often as 0.1 to 1."""
    step: int = 1
    """Between whole numbers; `high` is one of them."""

    def suggest(self, trial: Trial, name: str) -> str:
        """A value for a trial, as the command line has it."""
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), step=self.step, log=self.log))
        return repr(trial.suggest_float(name, self.low, self.high, log=self.log))

    def ends(self) -> tuple[str, ...]:
        """The values that are most likely to be impossible."""
        return tuple(str(int(end)) if self.whole else repr(end) for end in (self.low, self.high))

    def draw(self, rng: random.Random) -> str:
        """A value from all over."""
        if self.whole:
            return str(rng.randrange(int(self.low), int(self.high) + 1, self.step))
        return repr(rng.uniform(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Some values."""

    values: tuple[str, ...]
    """As the command line has them."""

    def suggest(self, trial: Trial, name: str) -> str:
        """A value for a trial."""
        return trial.suggest_categorical(name, self.values)

    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.values

    def draw(self, rng: random.Random) -> str:
        """One of them."""
        return rng.choice(self.values)


Space = Mapping[str, Range | Choice]
"""By the names of options."""


def read_space(path: Path) -> dict[str, Range | Choice]:
    """The space that a YAML file describes.

    Raises:
        ConfigError: it cannot be read; a name is no option of a recipe, or one that cannot vary; a range is impossible,
            or has but one value.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{path}: found no options, expected lines such as optimizer.lr: {{float: [0.01, 1.0], log: true}}"
        )
    space = {}
    for name, value in content.items():
        require_option(str(name), str(path))
        if name in FIXED:
            raise ConfigError(f"{path}: {name} must be the same in all trials, which are compared: leave it out")
        space[str(name)] = _dimension(f"{path}: {name}", value)
    return space


def check(space: Space, load: Callable[[Mapping[str, str]], Config], source: str) -> None:
    """Refuse values with which no configuration passes its checks, before anything is trained.

    Ends of ranges and all choices are tried in the recipe as it is, then together with 20 draws of the other options,
    as some only make sense with each other.

    Args:
        space: what varies.
        load: from values to the checked configuration; raises ConfigError.
        source: of the space, for the message.

    Raises:
        ConfigError: there is such a value.
    """
    rng = random.Random(0)
    for name, dimension in space.items():
        for value in dimension.ends():
            try:
                load({name: value})
            except ConfigError as error:
                if not any(_passes(load, _draw(space, rng) | {name: value}) for _ in range(_DRAWS)):
                    raise ConfigError(f"{source}: {name} can never be {value}: {error}") from error


def _draw(space: Space, rng: random.Random) -> dict[str, str]:
    return {name: dimension.draw(rng) for name, dimension in space.items()}


def _passes(load: Callable[[Mapping[str, str]], Config], values: Mapping[str, str]) -> bool:
    try:
        load(values)
    except ConfigError:
        return False
    return True


def _dimension(where: str, value: Any) -> Range | Choice:
    kinds = ("float", "int", "choice")
    given = [kind for kind in kinds if isinstance(value, dict) and kind in value]
    if not isinstance(value, dict) or len(given) != 1:
        raise ConfigError(
            f"{where} is {value!r}, expected one of {{float: [LOW, HIGH]}}, {{int: [LOW, HIGH]}} and {{choice: [A, B]}}"
        )
    (kind,) = given
    allowed = {"float": {"log"}, "int": {"log", "step"}, "choice": set()}[kind]
    for key in value:
        if key != kind and key not in allowed:
            also = f"{kind} and perhaps {' or '.join(sorted(allowed))}" if allowed else f"{kind} alone"
            raise ConfigError(f"{where}.{key} is not known, expected {also}")
    if kind == "choice":
        return _choice(where, value["choice"])
    return _range(where, value[kind], value.get("log", False), value.get("step", 1), whole=kind == "int")


def _choice(where: str, values: Any) -> Choice:
    if not isinstance(values, list) or any(isinstance(value, dict) for value in values):
        raise ConfigError(f"{where}.choice is {values!r}, expected a list of values")
    texts = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
    if len(set(texts)) < 2 or len(set(texts)) < len(texts):
        raise ConfigError(f"{where}.choice is {values!r}, expected two or more values that differ")
    return Choice(values=texts)


def _range(where: str, ends: Any, log: Any, step: Any, *, whole: bool) -> Range:
    kind = "int" if whole else "float"
    numbers = [_number(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else [None]
    if None in numbers or (whole and any(number != int(number) for number in numbers if number is not None)):
        what = "whole numbers" if whole else "finite numbers"
        raise ConfigError(f"{where}.{kind} is {ends!r}, expected [LOW, HIGH], two {what}")
    low, high = (number for number in numbers if number is not None)
    if low >= high:
        raise ConfigError(f"{where}.{kind} is {ends!r}, expected the lower number first and a higher one after it")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is {log!r}, expected true or false")
    if log and low <= 0:
        raise ConfigError(f"{where}.{kind} begins at {low:g} and log is true, expected numbers above 0")
    if type(step) is not int or step < 1:
        raise ConfigError(f"{where}.step is {step!r}, expected 1 or more")
    if log and step != 1:
        raise ConfigError(f"{where} has log and step: leave one of them out")
    if whole and (high - low) % step:
        last = int(high - (high - low) % step)
        raise ConfigError(f"{where}.step is {step}, by which {low:g} leads to {last}, not to {high:g}: end there")
    return Range(low=low, high=high, whole=whole, log=log, step=step)


def _number(value: Any) -> float | None:
    """A finite number, also one that YAML takes for a text, such as 1e-3."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
