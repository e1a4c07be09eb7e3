"""What one does daily: the targets of make, and the hooks that ask of a commit what is asked of it before it lands."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_the_hooks_ask_what_is_asked_before_a_change_lands():
    asked = re.findall(r"^make [a-z]+$", (ROOT / ".ci" / "run").read_text(), re.M)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"] for hook in hooks} == set(asked) == {"make test", "make slow", "make lint", "make types"}
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def targets() -> dict[str, str]:
    """Each target of the Makefile, and its line of help."""
    return dict(re.findall(r"^([a-z]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.M))


def test_make_help_names_every_target_and_each_is_there():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert set(phony[1].split()) == set(targets())
    command = ["make", "--no-print-directory", "help"]  # within `make test`, too
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split(maxsplit=2) for line in shown.splitlines()] == [["make", *row] for row in targets().items()]


@pytest.mark.parametrize("target", targets())
def test_every_target_can_be_made(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
