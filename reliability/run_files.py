"""Readers of what budgetnet writes itself, or the reference project: recipes, runs, checkpoints and models.

Sound files are made by the program itself, and small.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import mutations
import torch
from trials import Trial, each

from budgetnet import ablate, candidates, checkpoint, fit, metrics, models, predict, runs, store
from budgetnet.config import Config, ModelConfig, StageConfig, to_yaml
from budgetnet.plainyaml import parse_yaml
from budgetnet.recipe import load_recipe

SMALL = "wrn_10_1"
_YAML = (
    *("!!python/object/apply:os.system ['touch escaped']", "!!python/name:os.system", "!!python/module:this", "*a"),
    *(
        "&a [*a]",
        "&a {b: *a}",
        "!!bool maybe",
        "!!int ''",
        "!!timestamp x",
        "!!binary '='",
        "!!set {a, b}",
        "!!omap [a]",
    ),
    *("{class_path: this.x}", "{class_path: budgetnet.config.Config}", "'{class_path: this.x}'", "2026-99-99", "1:1:1"),
    *("<<: 1", "? [a]", "| \n a", "0x" + "f" * 5000, "-.inf", "'" + "[" * 3000 + "'", "[" * 3000, "{a: " * 30, "1e400"),
    *(
        "'!!bool maybe'",
        '"\\x5b&a [*a]"',
        "/dev/zero",
        "'\\0'",
        "x" * 70_000,
        "nested.yaml",
        "recipe.yaml",
        "[[1, 2], [3]]",
    ),
)


def _damaged_yaml(value: Any, rng: Random) -> bytes:
    """A recipe in JSON, which is YAML; now and then with what only YAML has."""
    text = mutations.as_json(mutations.varied(value, rng), rng)
    if rng.random() < 0.3:
        marks = [at for at in range(len(text)) if text[at : at + 2] == b": "]
        if marks:
            at = rng.choice(marks) + 2
            end = min((end for end in (text.find(b, at) for b in (b",", b"}")) if end > 0), default=at)
            text = text[:at] + rng.choice(_YAML).encode() + text[end:]
    return text


def _recipes(folder: Path) -> Trial:
    place, outer = folder / "nested.yaml", folder / "recipe.yaml"
    outer.write_text("augment: nested.yaml\n")
    whole = asdict(Config())
    few = {"epochs": 3, "optimizer": {"lr": 0.1, "name": "sgd"}, "augment": {"crop_padding": 2}}
    staged = {"model": {"name": "residual", "stages": [{"block": "basic", "depth": 1, "width": 8}]}, "budget": None}
    marker = b"# of a section\n"

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.2:
            return marker + _damaged_yaml(whole["augment"], rng)
        return _damaged_yaml(rng.choice((whole, few, few, staged, staged)), rng)

    def read() -> object:
        found = load_recipe(outer if place.read_bytes().startswith(marker) else place)
        assert isinstance(found, Config)
        return to_yaml(found)

    sound = [json.dumps(one).encode() for one in (whole, few, staged)]
    sound.append(marker + json.dumps(whole["augment"]).encode())
    return Trial(place=place, sound=sound, damaged=damaged, read=read)


def _studies(folder: Path) -> Trial:
    place = folder / "study.yaml"
    study = {"recipe": "recipe.yaml", "always": "--epochs 3", "variants": {"a": "", "b": "--optimizer.lr '0.1'"}}
    return Trial(
        place=place,
        sound=[json.dumps(study).encode(), b"epochs: 3\n"],
        damaged=lambda rng: _damaged_yaml(study, rng),
        read=lambda: ablate.read_study(place),
    )


def _fits(folder: Path) -> Trial:
    request = candidates.Request(budget=12_000, recipe=candidates.default_recipe("digits"), families=("preact",))
    asked = json.loads(json.dumps({**asdict(request), "classes": 10}))
    rows = [asdict(candidate) for candidate in candidates.propose(request, 10)]
    content = {"request": asked, "hardware": {}, "candidates": rows}
    place = folder / "fit.json"

    def read() -> object:
        for candidate in fit._prepare(folder, asked):
            assert "/" not in candidate.name
        return None

    return Trial(
        place=place,
        sound=[json.dumps(content).encode()],
        damaged=lambda rng: mutations.as_json(mutations.varied(content, rng), rng),
        read=read,
    )


def _runs(folder: Path) -> Trial:
    place = folder / "file"
    for name in ("metrics.csv", "summary.json", "mlflow.json", "config.yaml"):
        (folder / name).symlink_to(place)
    rows = b"epoch,train_loss,val_accuracy\n1,0.5,0.25\n2,0.25,0.5\n3,nan,0.75\n"
    summary = {"name": "a", "final": {"val_accuracy": 0.5}, "test": {"none": {"accuracy": 1}}, "tags": {"a": "b"}}
    record = {"experiment": "a", "name": "b", "tags": {"a": "b"}, "key": "c", "tracking_uri": "", "run_id": None}

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.4:
            found = mutations.damage(rows, rng)
            return found.replace(b"0.25", rng.choice((b'"', b"1e999", b"-", b"9" * 200_000, b"1\r2", b"\x0b")), 1)
        return mutations.as_json(mutations.varied(rng.choice((summary, record)), rng), rng)

    def read() -> object:
        return each(
            lambda: metrics.read_metrics(folder / "metrics.csv"),
            lambda: runs.read_summary(folder),
            lambda: store.Record.load(folder),
            lambda: runs.flat(runs.read_mapping(folder / "config.yaml", parse_yaml)),
        )

    return Trial(place=place, sound=[rows, json.dumps(summary).encode()], damaged=damaged, read=read)


def _submissions(folder: Path) -> Trial:
    place = folder / "labels.csv"
    seed = b"ID,Labels\n0,3\n1,9\n20,0\n"

    def damaged(rng: Random) -> bytes:
        return mutations.damage(seed, rng).replace(b"20", rng.choice(mutations.TEXTS).encode(errors="surrogatepass"), 1)

    return Trial(place=place, sound=[seed], damaged=damaged, read=lambda: predict.read_submission(place, 10))


def _saved(state: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _damaged_archive(members: Sequence[tuple[str, bytes]], split: Sequence[bytes], rng: Random) -> bytes:
    """What torch.save wrote, with another pickle in it, other members, or an archive that lies."""
    found = list(members)
    if rng.random() < 0.7:
        found[0] = found[0][0], mutations.program(split, rng)
    if rng.random() < 0.2:
        at = rng.randrange(len(found))
        match rng.randrange(4):
            case 0:
                del found[at]
            case 1:
                found[at] = found[at][0], mutations.damage(found[at][1], rng)
            case 2:
                found.append(found[at])
            case 3:
                found.append(
                    (rng.choice(("archive/constants.pkl", "archive/byteorder", "archive/.format_version")), b"x")
                )
    return mutations.zipped(found, rng)


def _states(folder: Path) -> Trial:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"format": 1, "checksum": "a", "position": {"epoch": 1, "seconds": 0.5}, "network": network.state_dict()}
    content = _saved(state | {"optimizer": optimizer.state_dict()})
    members = mutations.unzipped(content)
    split = mutations.tokens(members[0][1])
    place = folder / "last.ckpt"
    seal = lambda raw: raw + hashlib.sha256(raw).digest()  # noqa: E731

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.1:
            return seal(mutations.damage(content, rng))
        return seal(_damaged_archive(members, split, rng))

    def read() -> object:
        found = checkpoint.load_state(place)
        assert found["format"] == 1
        return found

    return Trial(place=place, sound=[seal(content)], damaged=damaged, read=read)


def _references(folder: Path) -> Trial:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = models.build(ModelConfig(name=SMALL), 10).state_dict()
    few = OrderedDict(itertools.islice(weights.items(), 3))  # mostly, as most of the time goes into the others
    place = folder / "ckpt.pth"
    archives = [_saved({"net": state, "acc": 95.5, "epoch": 3}) for state in (weights, few, few, few)]
    # One tensor, as several stand in the order of where they were in memory.
    one = OrderedDict(itertools.islice(weights.items(), 1))
    old = _saved({"net": one, "acc": 95.5, "epoch": 3}, zipped=False)
    members = [mutations.unzipped(archive) for archive in archives]
    split = [mutations.tokens(some[0][1]) for some in members]
    # Pickles, one after another, and then what the tensor holds, which is called by where it was in memory.
    ends, file = [0], io.BytesIO(old)
    for _ in range(5):
        list(pickletools.genops(file))
        ends.append(file.tell())
    parts = [mutations.tokens(old[a:b]) for a, b in itertools.pairwise(ends)]
    places = dict.fromkeys(
        token for part in parts for token in part if re.fullmatch(rb"X.{4}[0-9]{6,}", token, re.DOTALL)
    )
    called = {token: b"X\1\0\0\0%d" % number for number, token in enumerate(places)}
    parts = [[called.get(token, token) for token in part] for part in parts]

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.4:
            at = rng.choice((0, 1, 2, 3, 3, 3, 4))
            found = [b"".join(part) for part in parts]
            found[at] = mutations.program(parts[at], rng)
            raw = b"".join(found) + old[ends[-1] :]
            return mutations.damage(raw, rng) if rng.random() < 0.2 else raw
        at = rng.choice((0, 1, 2, 3))
        return _damaged_archive(members[at], split[at], rng)

    def read() -> object:
        return checkpoint.load_classifier(place, SMALL)

    return Trial(place=place, sound=[archives[0], _saved({"net": weights}, zipped=False)], damaged=damaged, read=read)


def _models(folder: Path) -> Trial:
    from safetensors.torch import save

    stage = StageConfig(depth=1, width=2)
    model = ModelConfig(name="residual", stages=[stage])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = models.build(model, 3, 16).state_dict()
    said: dict[str, Any] = {
        "model": {"name": "residual", "stages": [{"depth": 1, "width": 2}]},
        "classes": ["a", "b", "c"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "image_size": 16,
        "provenance": {"recipe": "a"},
    }
    place = folder / "best.safetensors"

    def sealed(metadata: dict[str, str], weights: dict[str, torch.Tensor]) -> bytes:
        found = {"format": checkpoint.MODEL_FORMAT, **metadata}
        raw = save(weights, found | {"sha256": checkpoint.digest(found, weights)})
        length = int.from_bytes(raw[:8], "little")
        header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True).encode()  # its order is another each time
        return len(header).to_bytes(8, "little") + header + raw[8 + length :]

    plain = {key: json.dumps(value) for key, value in said.items()}
    whole = sealed(plain, tensors)
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = list(tensors)

    def damaged(rng: Random) -> bytes:
        if rng.random() < 0.6:
            key = rng.choice(list(said))
            text = mutations.as_json(mutations.varied(said[key], rng), rng).decode(errors="replace")
            weights = dict(tensors)
            if rng.random() < 0.2:
                name = rng.choice(names)
                weights[name] = rng.choice((torch.zeros(0), torch.zeros(2, 2), weights[name].double(), torch.tensor(1)))
            return sealed({**plain, key: text}, weights)
        if rng.random() < 0.3:
            return mutations.damage(whole, rng)
        said_anew = mutations.as_json(mutations.varied(header, rng), rng)
        size = len(said_anew) if rng.random() < 0.9 else rng.choice(mutations.NUMBERS) % 2**64
        return size.to_bytes(8, "little") + said_anew + body

    return Trial(place=place, sound=[whole], damaged=damaged, read=lambda: checkpoint.load_classifier(place))


READERS: dict[str, Callable[[Path], Trial]] = {
    "recipes": _recipes,
    "studies": _studies,
    "fit.json": _fits,
    "files of a run": _runs,
    "submissions": _submissions,
    "last.ckpt": _states,
    "reference checkpoints": _references,
    "model files": _models,
}
"""By name: makes the files that a reader needs in an empty folder."""
