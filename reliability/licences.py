"""docs/licences.md: what is installed beside budgetnet, and under which licence, by the packages' own metadata.

`python reliability/licences.py` writes it; a test compares it with what is installed.
"""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from budgetnet.files import atomic_write

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences

budgetnet is under the MIT licence ([LICENSE](../LICENSE)). None of the packages below is part of it: `make` installs
them, in these versions. Written by `make table` from what the packages say of themselves.

| package | version | licence |
|---|---|---|
"""
VAGUE = ("Dual License", "BSD", "BSD License", "UNKNOWN")  # classifiers say more


def plain(name: str) -> str:
    """A package's name as all tools write it: `Typing_Extensions` is `typing-extensions`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Name and version of each line of requirements.lock.

    Raises:
        ValueError: a line is no exact pin.
    """
    found = {}
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;*]+)", line)
            if not match:
                raise ValueError(f"{LOCK.name}: found {line!r}, expected NAME==VERSION")
            found[plain(match[1])] = match[2]
    return found


def installed() -> dict[str, Distribution]:
    """What the environment holds, by name; not what a package bundles, such as setuptools, and puts on the path."""
    folders = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    return {plain(found.metadata["Name"]): found for found in distributions(path=folders) if found.metadata["Name"]}


def licence(package: Distribution) -> str:
    """What a package says of its licence: its SPDX expression, else its short field, its classifiers, or its file."""
    about = package.metadata
    expression, short = about.get("License-Expression"), (about.get("License") or "").strip()
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License")]
    named = [name for name in classifiers if name != "OSI Approved"]
    if expression:
        return str(expression)
    if short and len(short) <= 40 and "\n" not in short and short not in VAGUE:
        return short
    if named:
        return ", ".join(named)
    if short in ("BSD", "BSD License"):
        return short
    files = [path for path in package.files or [] if re.search(r"licen[cs]e", path.name, re.IGNORECASE)]
    if any("Permission is hereby granted, free of charge" in path.read_text() for path in files):
        return "MIT, by its licence file"
    raise ValueError(f"{about['Name']} does not say under which licence it is: read its files")


def page() -> str:
    """docs/licences.md for what is installed."""
    versions = pinned()
    found = installed()
    rows = [f"| {name} | {versions[name]} | {licence(found[name])} |" for name in sorted(versions) if name in found]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    atomic_write(PAGE, page().encode())
