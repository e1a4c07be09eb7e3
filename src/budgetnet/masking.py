"""Secrets kept out of what is written and printed: users, passwords and tokens of URIs, and MLflow's own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def mask(text: str) -> str:
    """Hide the user, the passwords and the tokens of the URIs in a text, each as ***; masking again changes nothing."""
    # SQLAlchemy allows a slash in a password, so all up to the last @ goes; a path may have an @ of its own.
    text = re.sub(r"\b(?!sqlite|file)([a-z][a-z0-9+.-]*://)[^\s'\"]*@", r"\1***@", text, flags=re.IGNORECASE)
    text = re.sub(
        r"([?&][\w-]*(?:password|passwd|pwd|token|secret)[\w-]*=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE
    )
    for name in _SECRET_VARIABLES:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def masked(value: Any) -> Any:
    """The same mappings, lists and tuples, every text in them masked; anything else as it is."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {name: masked(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked(inner) for inner in value)
    return value
