"""What a run was trained on, chosen by and tested on, as MLflow records data sets: by name, digest and context."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from budgetnet.download import URLS
from budgetnet.images import SIDE

_URLS = URLS | {"digits": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"}


@dataclass(frozen=True, kw_only=True)
class Input:
    """Some images of a data set, and what for; texts of JSON are as MLflow's own data sets have them."""

    context: str
    """training, validation or test."""
    name: str
    """Of the data set."""
    digest: str
    """12 characters: the same for the same images, and of other images another."""
    source_type: str
    """http where it is downloaded from, else local."""
    source: str
    """JSON: where the whole data set is from; folders are not named, which may say who trains."""
    schema: str
    """JSON: dtype and shape of images and labels."""
    profile: str
    """JSON: how many there are."""


def inputs(params: Mapping[str, str], tags: Mapping[str, str]) -> list[Input]:
    """The images of a run by its recipe and its tags, or none where they do not say which data it had.

    Args:
        params: the recipe, flat (`runs.flat`).
        tags: `data_checksum`, and `train_images`, `val_images` and `test_images`, which older runs have not.
    """
    name, checksum = params.get("dataset"), tags.get("data_checksum")
    if name is None or checksum is None:
        return []
    chosen = {key: params.get(key, "null") for key in ("val_size", "split_seed")}
    all_options = chosen | {key: params.get(key, "null") for key in ("train_size", "train_on_test")}
    parts = {"training": ("train_images", all_options)}
    if params.get("val_size", "0") != "0":
        parts["validation"] = ("val_images", chosen)
    if params.get("train_on_test") != "true":
        parts["test"] = ("test_images", {})
    side = int(params.get("image_size", SIDE)) if name == "folder" else SIDE
    found = []
    for context, (count, options) in parts.items():
        n = int(tags[count]) if count in tags else None
        digest = hashlib.sha256(json.dumps([checksum, context, options], sort_keys=True).encode()).hexdigest()[:12]
        source = {"url": _URLS[name]} if name in _URLS else {"uri": f"{name} {checksum[:12]}"}
        shapes = {"features": ("uint8", [3, side, side]), "targets": ("int64", [])}
        specs = {
            part: json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}])
            for part, (dtype, shape) in shapes.items()
        }
        sizes = {} if n is None else {"num_rows": n, "features_shape": [n, 3, side, side], "targets_shape": [n]}
        found.append(
            Input(
                context=context,
                name=name,
                digest=digest,
                source_type="http" if name in _URLS else "local",
                source=json.dumps(source),
                schema=json.dumps({"mlflow_tensorspec": specs}),
                profile=json.dumps({**sizes, "checksum": checksum}),
            )
        )
    return found
