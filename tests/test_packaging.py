"""The wheel is whole, small and named by a tag; in an environment of its own it does what README promises at once."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

import budgetnet
from budgetnet import cli
from budgetnet.recipe import load_recipe

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ALONE = {"PATH": os.defpath, "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}


def run(*command: str | Path, at: Path, **environment: str) -> str:
    """What a command prints that succeeds, in an environment that knows nothing of this one."""
    ended = subprocess.run(
        [str(part) for part in command], cwd=at, env=ALONE | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def git(at: Path, *arguments: str) -> None:
    who = (
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    )
    run(shutil.which("git") or "git", *who, *arguments, at=at, GIT_CONFIG_GLOBAL=os.devnull)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What a wheel is made of, as a repository whose last commit is v1.2.3."""
    tree = tmp_path_factory.mktemp("tree") / "budgetnet"
    made = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=made)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "All of it")
    git(tree, "tag", "v1.2.3")
    return tree


@pytest.fixture(scope="module")
def wheel(tree):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", tree, at=tree.parent)
    (wheel,) = (tree / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment into which the wheel is installed, and the folder of its programs; the dependencies are lent."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    pip = (sys.executable, "-m", "pip", "--python", Path(paths["scripts"]) / "python", "install", "--no-deps")
    run(*pip, "--no-index", "--quiet", "--disable-pip-version-check", wheel, at=folder)
    Path(paths["purelib"], "lent.pth").write_text(sysconfig.get_path("purelib"))
    return Path(paths["scripts"])


@pytest.fixture
def photo(tmp_path):
    Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


# The wheel


def test_the_version_is_that_of_the_tag_and_of_a_development_version_after_it(tree, wheel):
    assert wheel.name == "budgetnet-1.2.3-py3-none-any.whl"
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "One more")
    assert re.match(r"1\.2\.4\.dev1\+g[0-9a-f]+", run(sys.executable, "-m", "setuptools_scm", at=tree))


def test_the_wheel_is_small_and_has_the_model_recipes_pages_and_types_and_nothing_that_is_not_used(wheel):
    assert wheel.stat().st_size < 15e6
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        f"budgetnet/{path.relative_to(ROOT / 'src' / 'budgetnet')}"
        for path in (ROOT / "src" / "budgetnet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"budgetnet/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert len(recipes) > 10
    assert "budgetnet/box/model.safetensors" in source
    assert names == source | recipes


# In an environment of its own


def test_a_photo_is_classified_with_the_wheel_alone(clean, photo):
    found = run(clean / "budgetnet", "predict", photo.name, at=photo.parent)
    assert found.split()[:2] == ["photo.jpg", budgetnet.load().classes[budgetnet.load().predict(photo)[0]]]
    where = "import budgetnet; print(budgetnet.__file__, budgetnet.__version__)"
    file, version = run(clean / "python", "-c", where, at=photo.parent).split()
    assert Path(file).is_relative_to(clean.parent)
    assert version == "1.2.3"
    assert run(clean / "budgetnet", "--version", at=photo.parent) == "budgetnet 1.2.3\n"


@pytest.mark.slow
def test_with_the_wheel_alone_one_trains_exports_and_loads(clean, photo):
    at = photo.parent
    short = ("--epochs", "1", "--no-track", "--no-report", "--quiet")
    run(clean / "budgetnet", "train", "smoke", "--output", "run", *short, at=at)
    run(clean / "budgetnet", "export", "run", "--format", "hub", "--output", "hub", "--limit", "70", at=at)
    run(clean / "budgetnet", "export", "run", "--output", "run.onnx", "--limit", "70", at=at)
    script = """
import json, budgetnet, onnxruntime, numpy as np
from PIL import Image
run, hub = budgetnet.load("run"), budgetnet.load("hub")
image = np.asarray(Image.open("photo.jpg").resize((run.image_size,) * 2))
assert np.abs(run.predict_proba(image) - hub.predict_proba(image)).max() < 1e-5
session = onnxruntime.InferenceSession("run.onnx")
assert np.abs(session.run(None, {"images": image[None]})[0] - run.predict_proba(image)).max() < 1e-3
print(json.dumps([run.parameters, run.classes, run.score([image], run.predict([image]))]))
"""
    parameters, classes, accuracy = json.loads(run(clean / "python", "-c", script, at=at))
    assert (classes, accuracy) == (list("0123456789"), 1.0)
    assert 0 < parameters <= 5_000_000


# Recipes by name


@pytest.mark.parametrize("name", ["quick", "quick.yaml"])
def test_a_recipe_that_budgetnet_brings_needs_no_more_than_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path(name)) == load_recipe(ROOT / "recipes" / "quick.yaml")
    Path(name).write_text("epochs: 3\n")
    assert load_recipe(Path(name)).epochs == 3  # what is here comes first


def test_a_recipe_with_a_section_of_a_file_of_its_own_is_found_with_it():
    assert load_recipe(Path("reference")) == load_recipe(ROOT / "recipes" / "reference.yaml")


def test_a_recipe_of_a_known_name_that_is_not_there_is_one_line_with_what_to_type(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["ablate", "--vary", "epochs=1"], ["fit", "--budget", "1e5", "--recipe"]):
        assert cli.main([*command, "recipes/quick.yaml"]) == 1
        assert "recipes/quick.yaml is not there; `quick` alone is the recipe" in capsys.readouterr().err


# What stands around it


def test_without_an_installation_the_version_says_so(tmp_path):
    (tmp_path / "budgetnet").symlink_to(ROOT / "src" / "budgetnet")
    shown = run(sys.executable, "-S", "-c", "import budgetnet; print(budgetnet.__version__)", at=tmp_path)
    assert shown == "0.0+source\n"


def test_changelog_and_citation_name_one_version():
    newest = re.search(
        r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d|not released yet)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest[1] == citation["version"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_a_limit_of_time_and_steps_that_are_sound_shell(path, tmp_path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"fetch-depth": 0, "persist-credentials": False}
            for file in re.findall(r"\./[\w./-]+", step.get("run", "")):
                assert os.access(ROOT / file, os.X_OK), file
            if "run" in step:
                script = tmp_path / "step.sh"
                script.write_text("#!/bin/bash\nset -eo pipefail\n" + step["run"])
                run(Path(sys.executable).with_name("shellcheck"), script, at=tmp_path)


def test_the_release_refuses_a_tag_of_which_changelog_and_citation_do_not_know(tmp_path):
    (release,) = (path for path in WORKFLOWS if path.name == "release.yml")
    (step,) = (
        s for s in yaml.safe_load(release.read_text())["jobs"]["build"]["steps"] if "citation" in s.get("name", "")
    )
    for changelog, cited, tag, code in (
        ("## 1.2.3 (2026-12-01)", "1.2.3", "v1.2.3", 0),
        ("## 1.2.3 (not released yet)", "1.2.3", "v1.2.3", 1),
        ("## 1.2.3 (2026-12-01)", "1.2.2", "v1.2.3", 1),
        ("## 1.2.3 (2026-12-01)", "1.2.3", "v1.2.4", 1),
    ):
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}\n")
        (tmp_path / "CITATION.cff").write_text(f"version: {cited}\n")
        ended = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=ALONE | {"GITHUB_REF_NAME": tag}, capture_output=True
        )
        assert ended.returncode == code


def instructions() -> list[tuple[str, str]]:
    """Of the container file: each with its arguments."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def test_images_for_cpus_and_gpus_have_the_versions_of_the_lock_and_are_of_no_root():
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            stages[rest.split(" AS ")[1]] = stage = []
        stage.append((word, rest))
    for name in ("cpu", "cuda"):
        (install,) = (rest for word, rest in stages[name] if word == "RUN")
        assert "--constraint /requirements.lock" in install
        assert stages[name][-1] == ("USER", "1000")
    bases = {rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"} - {*stages}
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-[\w-]+", base) for base in bases)
    assert ("ENTRYPOINT", '["budgetnet"]') in stages["base"]


def test_the_container_file_has_no_fault_that_its_linter_knows():
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("there is no hadolint")
    run(linter, "--no-color", ROOT / "Dockerfile", at=ROOT)


def test_the_commands_on_the_container_file_are_commands_of_budgetnet():
    said = re.findall(r"^#   docker run .* budgetnet(?::cuda)? (.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert len(said) == 3
    for words in map(shlex.split, said):
        parsed = [*words, "--print-config"] if words[0] == "train" else [words[0], "--help"]
        ended = subprocess.run([sys.executable, "-m", "budgetnet", *parsed], cwd=ROOT / "src", capture_output=True)
        assert ended.returncode == 0, words


def test_what_git_ignores_does_not_go_to_who_builds_the_image():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    left = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"}
    assert left == ignored
