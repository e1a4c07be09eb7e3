"""What README, the guide and the recipes say is true of the code and the records."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import records
import yaml

from budgetnet import cli
from budgetnet.config import to_yaml
from budgetnet.errors import BudgetnetError
from budgetnet.recipe import load_recipe

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.partition(" #")[0].strip() for line in lines if line.startswith("budgetnet ")]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_each_command_in_the_docs_is_accepted_by_the_command_line(command, monkeypatch, tmp_path):
    _, name, *arguments = shlex.split(command)
    monkeypatch.chdir(ROOT)
    if name == "train":
        # Parsed and resolved, not trained; a run to resume is stood in for by a recipe.
        if "--resume" in arguments:
            arguments.insert(0, "recipes/smoke.yaml")
        if arguments[0].startswith("runs/"):  # what a search has written, likewise
            arguments[0] = "recipes/smoke.yaml"
        assert cli.main(["train", *arguments, "--print-config"]) == 0
    else:
        parsed, further = cli._parser().parse_known_args([name, *arguments])
        if name in ("ablate", "sweep"):  # what is not its own are options of the recipe
            load_recipe(parsed.recipe if "NAME" not in str(parsed.recipe) else SMOKE, further)
        elif name == "compress":  # of the model's recipe
            load_recipe(SMOKE, further)
        else:
            assert not further


def test_there_are_commands_in_the_docs():
    assert len(commands()) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_readme_shows_the_results_that_the_records_hold():
    readme = (ROOT / "README.md").read_text()
    assert records.with_table(readme) == readme, "run `make table`"


@pytest.mark.parametrize("name", ["tiny", "tiny-again", "reference-code", "reference-code-again", "reference-again"])
def test_a_record_is_told_from_its_recipe_by_the_options_that_are_not_what_they_are_there(name):
    config = load_recipe(ROOT / "recipes" / f"{name.removesuffix('-again')}.yaml")
    settled = replace(config, precision="bf16", seed=7, model=replace(config.model, width=12))
    assert records.unlike(name, yaml.safe_load(to_yaml(settled))) == (
        {} if name.startswith("tiny") else {"model.width": 12}
    )
    other = replace(config, precision="bf16", epochs=7, optimizer=replace(config.optimizer, lr=3.0))
    assert records.unlike(name, yaml.safe_load(to_yaml(other))) == {"epochs": 7, "optimizer.lr": 3.0}
    assert records.unlike(name, {"epochs": 8, "optimizer": {"forgotten": 1}}) == {"epochs": 8}
    with pytest.raises(SystemExit, match="begin with the name of a recipe"):
        records.unlike("tinyest", {})


def test_each_machine_that_a_record_was_computed_on_is_named_once(tmp_path, monkeypatch):
    found = json.loads((ROOT / "results" / "tiny.json").read_text())
    (run,) = found["runs"]
    here, there = ({"cpu": cpu, "threads": 1} for cpu in ("A CPU, AVX", "Another, AVX"))
    found["runs"] = [run | {"hardware": hardware} for hardware in (here, there, here)]
    (tmp_path / "tiny.json").write_text(json.dumps(found))
    monkeypatch.setattr(records, "HERE", tmp_path)
    assert "| 1 core of A CPU<br>1 core of Another |" in records.table()


def test_readme_lists_every_recipe():
    readme = (ROOT / "README.md").read_text()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"(recipes/{recipe.name})" in readme


def test_a_wrong_command_would_be_noticed():
    with pytest.raises(BudgetnetError):
        cli._parser().parse_args(["evaluate", "run", "--no-such-option"])
