"""What each choice of a recipe is worth: the recipe with other options, by several seeds, compared seed by seed.

A study is a recipe, variants of it, and a number of seeds. Its runs train as any other, but are never tested: variants
are judged by the validation images alone, after the last epoch; by option also by some of them under corruption.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from budgetnet import seeds
from budgetnet.config import Config, to_yaml
from budgetnet.errors import ConfigError
from budgetnet.files import atomic_write
from budgetnet.plainyaml import read_yaml
from budgetnet.progress import duration
from budgetnet.recipe import find_recipe, load_recipe
from budgetnet.runfiles import CONFIG, CORRUPTION, METRICS
from budgetnet.terminal import fitted, wrapped

_COLUMNS = 80
_CORRUPTED = {"corruption_accuracy": float, "corrupted_images": int, "corruptions": int, "corruption_right": str}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be trained."""

    recipe: Path
    """What all variants have in common."""
    variants: Mapping[str, Sequence[str]]
    """For each name, options that differ from the recipe, as on the command line; the others are compared with the
    first."""
    always: Sequence[str] = ()
    """Options of all variants."""
    seeds: int = 3
    """Trainings of each variant, by the seeds 0, 1, ..."""
    shift: int = 0
    """So many validation images are also classified under each common corruption and severity; 0 is none."""

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"shift is {self.shift}, expected a number of validation images, or 0 for none")
        for option in itertools.chain(self.always, *self.variants.values()):
            if option.partition("=")[0] == "--seed":
                raise ConfigError("a study has seeds of its own, 0, 1, ...: leave out --seed, and give --seeds")
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}, expected 1 or more")
        if len(self.variants) < 2:
            raise ConfigError("there is one variant and nothing to compare it with: give --vary KEY=VALUE")


@dataclass(frozen=True, kw_only=True)
class _Job:
    variant: str
    options: Sequence[str]
    config: Config
    run: Path
    shift: int


def read_study(path: Path) -> Study | None:
    """The study that a YAML file describes by `recipe` (a path from it), `always`, `shift` and `variants`; None of a
    recipe.

    Raises:
        ConfigError: the file cannot be read, or describes a study wrongly.
    """
    content = read_yaml(find_recipe(path))
    if not isinstance(content, dict) or "variants" not in content:
        return None
    variants, always, recipe = content["variants"], content.get("always", ""), content.get("recipe")
    shift = content.get("shift", 0)
    texts = [always, *(variants.values() if isinstance(variants, dict) else [None])]
    if unknown := content.keys() - {"recipe", "always", "shift", "variants"}:
        raise ConfigError(
            f"{path}: {min(map(str, unknown))} is no part of a study, expected recipe, always, shift and variants"
        )
    if type(shift) is not int:
        raise ConfigError(f"{path}: shift is {shift!r}, expected a number of validation images")
    if not isinstance(recipe, str) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: found no study, expected a recipe, and variants that are names with options each")
    try:
        return Study(
            recipe=path.parent / recipe,
            always=shlex.split(always),
            variants={str(name): shlex.split(options) for name, options in variants.items()},
            shift=shift,
        )
    except ValueError as error:
        raise ConfigError(f"{path}: found options with {str(error).lower()}, expected them as in a shell") from error


def one_at_a_time(vary: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The recipe as it is, and with each value of each key in turn."""
    each = {f"{key} {value}": [f"--{key}", value] for key, values in vary.items() for value in values}
    return {"as it is": [], **each}


def grid(vary: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every value of every key with every value of the others."""
    combinations = itertools.product(*([(key, value) for value in values] for key, values in vary.items()))
    return {
        ", ".join(f"{key} {value}" for key, value in chosen): [
            part for key, value in chosen for part in (f"--{key}", value)
        ]
        for chosen in combinations
    }


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """`key=v1,v2` as keys and values; commas inside brackets belong to a value.

    Raises:
        ConfigError: a text is not of that form, or a key is given twice.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        parts = [part.strip() for part in re.split(r",(?![^\[\]]*\])", values)]
        if not (key and equals and all(parts)):
            raise ConfigError(f"--vary is {text!r}, expected KEY=VALUE,VALUE,... such as optimizer.lr=0.05,0.1")
        if key in found:
            raise ConfigError(f"--vary {key} is given twice: put all its values into one, {key}=VALUE,VALUE")
        found[key] = parts
    return found


def carry_out(
    study: Study,
    runs: Path,
    *,
    folder: Path | None = None,
    device: str = "auto",
    threads: int = 0,
    jobs: int = 1,
    say: Callable[[str], None] = lambda text: None,
    record: Path | None = None,
) -> dict[str, Any]:
    """Train what is missing of a study, seed by seed, and sum it up; finished runs are taken as they are.

    Args:
        study: what to train.
        runs: a folder, made here, with a run in it for each variant and seed; stopped ones go on.
        folder: where the data is; None is `data.default_folder()`.
        device: where to train: auto, cpu, cuda, cuda:N or mps.
        threads: CPU threads of each training; 0 is one a core, divided by `jobs`.
        jobs: trainings at a time, each in a process of its own.
        say: told of each run that is over.
        record: a JSON file that is written after each run.

    Returns:
        The recipe, `always`, and a row for each run with what it was computed on, in the order of seeds and variants.

    Raises:
        ConfigError: an option is wrong, nothing is held out to judge by, or two variants are one.
        BudgetnetError: as `train.train`.
    """
    from budgetnet import devices

    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}, expected 1 or more trainings at a time")
    devices.require_threads(threads)
    planned = _plan(study, runs)
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    rows: dict[Path, dict[str, Any]] = {}
    found: dict[str, Any] = {
        "recipe": study.recipe.name,
        "always": shlex.join(study.always),
        "seeds": study.seeds,
        "runs": [],
    }
    with workers(jobs) as pool:
        futures = {pool.submit(_train, job, folder, device, threads): job for job in planned}
        try:
            for future in as_completed(futures):
                job = futures[future]
                row = rows[job.run] = future.result()
                found["runs"] = [rows[other.run] for other in planned if other.run in rows]
                if record:
                    atomic_write(record, (json.dumps(found, indent=1) + "\n").encode())
                say(
                    f"{len(rows)} of {len(planned)}: {job.variant}, seed {row['seed']}: {row['val_accuracy']:.2%}, "
                    f"{duration(60 * row['minutes'])}"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def workers(number: int) -> ProcessPoolExecutor:
    """Processes to train in, which end when this one does, also when it is killed."""
    # Spawned, since torch's threads do not outlive a fork.
    return ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone: it would go on with all that was given to it."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # a run can be gone on with wherever it was left

    threading.Thread(target=watch, daemon=True).start()


def _plan(study: Study, runs: Path) -> list[_Job]:
    """All that is to be trained; whatever can be wrong with it is said before anything is."""
    from budgetnet import shift

    jobs: list[_Job] = []
    names: dict[str, str] = {}
    for variant in study.variants:
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", variant).strip("-.") or "variant"
        if slug in names:
            raise ConfigError(f"the variants {names[slug]!r} and {variant!r} would share a folder: rename one")
        names[slug] = variant
    seen: dict[str, str] = {}
    for seed in range(study.seeds):
        for slug, variant in names.items():
            options = study.variants[variant]
            config = load_recipe(study.recipe, [*study.always, *options, "--seed", str(seed)])
            if not config.val_size:
                raise ConfigError(f"val_size is 0 in {variant!r}: variants are judged by held-out images, give some")
            if study.shift > config.val_size:
                raise ConfigError(f"shift is {study.shift:,}, expected up to {config.val_size:,}, the images held out")
            if study.shift:
                shift.require_size(config.image_size, config.image_size)
            text = to_yaml(config)
            if seen.setdefault(text, variant) != variant:
                raise ConfigError(f"{variant!r} is the same as {seen[text]!r}: leave one of them out")
            jobs.append(
                _Job(variant=variant, options=options, config=config, run=runs / f"{slug}-{seed}", shift=study.shift)
            )
    return jobs


def _train(job: _Job, folder: Path | None, device: str, threads: int) -> dict[str, Any]:
    """In a process of its own: train a variant, or go on, and return its row."""
    import torch

    from budgetnet import devices
    from budgetnet.metrics import read_metrics
    from budgetnet.train import train

    torch.set_num_threads(threads)
    summary = train(
        job.config,
        job.run,
        folder=folder,
        device=devices.find(device),
        track=False,
        resume=(job.run / CONFIG).is_file(),
        test=False,
    )
    last = read_metrics(job.run / METRICS)[-1]
    row = {
        "variant": job.variant,
        "options": shlex.join(job.options),
        "seed": job.config.seed,
        "val_accuracy": last["val_accuracy"],
        "val_size": job.config.val_size,
        "epochs": summary["final"]["epochs"],
        "minutes": summary["final"]["minutes"],
        "parameters": summary["parameters"],
        "precision": load_recipe(job.run / CONFIG).precision,  # of auto, what it came to
        "hardware": summary["hardware"],
        "git_commit": summary["tags"]["git_commit"],
    }
    if job.shift:
        row |= _under_corruption(job, folder)
    return row


def _under_corruption(job: _Job, folder: Path | None) -> dict[str, Any]:
    """What a row says of the run's result under the common corruptions and severities of some validation images.

    It is kept in the run's folder, with what it is of, as measuring takes about as long as a short training.

    Returns:
        The mean accuracy, how many images, under how many corruptions and severities, and, two hexadecimal digits for
        each image, under how many of these it is classified right.
    """
    from budgetnet import checkpoint, data, robustness, shift, splits
    from budgetnet.logits import predict_logits
    from budgetnet.runs import read_mapping

    config, classifier = job.config, checkpoint.load_classifier(job.run)
    of = {"corrupted_images": job.shift, "weights": checkpoint.digest({}, classifier.network.state_dict())}
    kept = job.run / CORRUPTION
    before = read_mapping(kept, json.loads) if kept.is_file() else {}
    if of.items() <= before.items() and {key: type(before.get(key)) for key in _CORRUPTED} == _CORRUPTED:
        return {key: before[key] for key in _CORRUPTED}
    images = data.load(config.dataset, folder, config.image_size).train
    _, held_out = splits.split(images.targets, config.val_size, config.split_seed)
    few = job.shift < len(held_out)
    chosen = held_out[splits.split(images.targets[held_out], job.shift, 0)[1]] if few else held_out
    clean, labels = images.images[chosen], images.targets[chosen]
    (scores,) = robustness.measure(
        lambda pixels: [predict_logits(classifier.network, pixels, classifier.mean, classifier.std)],
        clean,
        labels,
        lambda name, severity: shift.corrupt(clean, name, severity, indices=chosen),
        shift.COMMON,
        shift.SEVERITIES,
    )
    mean = scores.mean(shift.COMMON)
    assert mean is not None
    found = {
        "corruption_accuracy": mean.accuracy,
        "corrupted_images": job.shift,
        "corruptions": len(shift.COMMON) * len(shift.SEVERITIES),
        "corruption_right": bytes(scores.times_right(shift.COMMON).tolist()).hex(),
    }
    atomic_write(kept, (json.dumps(of | found) + "\n").encode())
    return found


def compare(record: Mapping[str, Any], measure: str = "val_accuracy") -> list[dict[str, Any]]:
    """Each variant against the first, seed by seed.

    Args:
        record: of a study, as `carry_out` returns it.
        measure: val_accuracy, or corruption_accuracy where the study has `shift`.

    Returns:
        For each variant its name, options, number of seeds, mean and standard deviation of the accuracy
        (None of one), and against the first: the mean difference, the half-width of its 95 % interval (Student's t over
        the seeds that both have, None of fewer than two) and a verdict, as `seeds.difference` gives them. What the
        images alone may do is taken from the answers to each where the record has them, which is under corruption.
    """
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["runs"]:
        variants.setdefault(row["variant"], []).append(row)
    base = {row["seed"]: row for row in next(iter(variants.values()), [])}
    found = []
    for number, (name, rows) in enumerate(variants.items()):
        entry: dict[str, Any] = {"variant": name, "options": rows[0]["options"], "parameters": rows[0]["parameters"]}
        entry |= seeds.spread([row[measure] for row in rows])
        pairs = [(row, base[row["seed"]]) for row in rows if row["seed"] in base]
        if number and pairs:
            differences = [row[measure] - first[measure] for row, first in pairs]
            entry |= seeds.difference(differences, _images_noise(pairs, measure, entry["mean"]))
        found.append(entry)
    return found


def _images_noise(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], measure: str, accuracy: float) -> float:
    """What the images alone may make of a difference between rows of the same seeds, of which one is so accurate."""
    if measure == "val_accuracy":
        return seeds.accuracy_noise(accuracy, pairs[0][0]["val_size"])
    if not all("corruption_right" in row for pair in pairs for row in pair):  # of a study by an older version
        return seeds.accuracy_noise(accuracy, pairs[0][0]["corrupted_images"])
    each = [
        [(mine - theirs) / row["corruptions"] for mine, theirs in zip(*map(_right, (row, first)), strict=True)]
        for row, first in pairs
    ]
    return seeds.paired_noise([statistics.mean(image) for image in zip(*each, strict=True)])


def _right(row: Mapping[str, Any]) -> bytes:
    """For each image, under how many corruptions and severities it is classified right."""
    return bytes.fromhex(row["corruption_right"])


def render(record: Mapping[str, Any]) -> str:
    """The comparison as plain text, at most 80 columns wide: names that are too long go on in further lines."""
    width = _COLUMNS - 48
    lines: list[str] = []
    for measure, title in _measures(record).items():
        lines += [*([""] if lines else []), f"{'variant':{width}}  {title:>14}  {'against the first':>17}  seeds"]
        lines += ["-" * _COLUMNS, *_lines(compare(record, measure), width), "-" * _COLUMNS]
    lines.append("accuracy: mean and standard deviation in %; against the first: points, seed by")
    lines.append("seed, with the 95 % interval; * is beyond noise (of seeds, and of the images)")
    return "\n".join(lines)


def _measures(record: Mapping[str, Any]) -> dict[str, str]:
    """What the variants are judged by, with titles."""
    corrupted = record["runs"] and all("corruption_accuracy" in row for row in record["runs"])
    return {"val_accuracy": "val accuracy"} | ({"corruption_accuracy": "corrupted"} if corrupted else {})


def _lines(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    lines = []
    for row in rows:
        accuracy = seeds.percent(row["mean"], row["std"])
        against = "" if "difference" not in row else seeds.percent(row["difference"], row["interval"], sign=True)
        mark = "*" if row.get("verdict") == "beyond noise" else " "
        first, *rest = wrapped(row["variant"], width, chop=True)
        lines.append(f"{fitted(first, width)}  {accuracy:>14}  {against:>16}{mark}  {row['seeds']:>5}")
        lines += [f"  {part}" for part in rest]
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """The comparison as a table for a page; with the parameters, where variants differ in them."""
    common = f"`{record['recipe']}`" + (f", `{record['always']}`" if record["always"] else "")
    if machines := _machines(record):
        common += f", on {' and '.join(machines)}"
    if precisions := sorted({row["precision"] for row in record["runs"] if "precision" in row}):  # older ones name none
        common += f", in {' and '.join(precisions)}"
    measures = _measures(record)
    titles = {"val_accuracy": "validation accuracy", "corruption_accuracy": "mean accuracy under corruption"}
    heads = "".join(f" {titles[measure]} | against the first, points | |" for measure in measures)
    sized = len({run["parameters"] for run in record["runs"]}) > 1
    lines = [
        f"{common}:",
        "",
        f"| variant | options |{' parameters |' if sized else ''}{heads} seeds |",
        f"|---|---|{'--:|' if sized else ''}{'--:|--:|---|' * len(measures)}--:|",
    ]
    for found in zip(*(compare(record, measure) for measure in measures), strict=True):
        options = f"`{found[0]['options']}`" if found[0]["options"] else ""
        cells = [found[0]["variant"], options, *([f"{found[0]['parameters']:,}"] if sized else [])]
        for row in found:
            against = "" if "difference" not in row else seeds.percent(row["difference"], row["interval"], sign=True)
            cells += [f"{seeds.percent(row['mean'], row['std'])} %", against, row.get("verdict", "")]
        lines.append(f"| {' | '.join([*cells, str(found[0]['seeds'])])} |")
    return "\n".join(lines)


def _machines(record: Mapping[str, Any]) -> list[str]:
    """What the runs were computed on, each once; a record by an older version has one for all."""
    each = [row["hardware"] for row in record["runs"] if "hardware" in row] or [record.get("hardware")]
    names = [found.get("gpu") or found["cpu"].replace(",", " with") for found in each if found]
    return list(dict.fromkeys(names))
