"""Kill trainings (SIGKILL) at chosen and at random moments, resume them, and compare with one that nobody disturbed.

`python reliability/death.py` kills 100 times and writes results/reliability/death.json. A resumed training may be
killed again; each chain of kills ends with a process that is left alone, and counts as survived when weights,
metrics.csv, every other file of the run and its copy in MLflow are those of the undisturbed run. What a clock says
(seconds, images a second) is left out of every comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import torch

from budgetnet import checkpoint, words
from budgetnet.runs import read

ROOT = Path(__file__).parent.parent
OPTIONS = [str(ROOT / "recipes" / "smoke.yaml"), "--val-size", "1000", "--checkpoint-steps", "5", "--threads", "1"]
HIDDEN = ".artifact.uploading."  # MLflow's own name for a file that it has not finished copying
CLOCKS = ("seconds", "images_per_second", "minutes")
COMMITS = ("git_commit", "mlflow.source.git.commit")
LONGEST = 300  # seconds that a process may take
HELD = "weights, metrics.csv, all other files and the MLflow run equal those of an undisturbed run, each epoch once"
NAMES = {
    "time": "killed at a random time",
    "step": "killed within a training step",
    "half": "killed with half of a checkpoint, model file, row or record written",
    "sync": "killed before a file, or the names in a folder, were synced",
    "renamed": "killed right after a renaming",
    "file": "killed before any change to a file, MLflow's included",
    "sql": "killed before a statement that writes to MLflow's database",
    "database": "killed while MLflow's database was being made",
}


@dataclass
class Chain:
    """One training, killed once or more, in a folder of its own."""

    folder: Path
    track: bool
    kills: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def go_on(self, moment: str = "step", number: float = 0) -> tuple[bool, str]:
        """Begin or resume, until it ends or dies.

        Args:
            moment: "time", or one of `killed.MOMENTS`.
            number: at which of its moments, or after how many seconds; 0 is not at all.

        Returns:
            Whether it was killed, and what it said on standard error.
        """
        command = [sys.executable, str(ROOT / "reliability" / "killed.py")]
        command += ["step", "-1"] if moment == "time" else [moment, str(number)]
        # Whatever died before the configuration was written has not begun.
        command += ["train", *OPTIONS, "--output", "run", "--quiet", "--no-report"]
        command += ["--resume"] if (self.run / "config.yaml").is_file() else []
        command += [] if self.track else ["--no-track"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            said = process.communicate(timeout=number if moment == "time" and number else LONGEST)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
            if moment != "time":
                raise
        if process.returncode == -signal.SIGKILL:
            self.kills.append(moment)
            return True, said.decode()
        if process.returncode != 0:
            raise AssertionError(f"exit code {process.returncode} after {self.kills}: {said.decode()}")
        return False, said.decode()


def differences(chain: Chain, whole: Path) -> list[str]:
    """What of a run and its copy in MLflow is not as in the undisturbed one; nothing where all is."""
    if names(chain.run) != names(whole / "run"):
        return [f"files: {names(chain.run)} instead of {names(whole / 'run')}"]
    found = []
    if (chain.run / "config.yaml").read_text() != (whole / "run" / "config.yaml").read_text():
        found.append("config.yaml")
    if not equal(model(chain.run), model(whole / "run")):
        found.append("best.safetensors")
    states = [checkpoint.load_state(run / "last.ckpt") for run in (chain.run, whole / "run")]
    for state in states:
        for clock in ("seconds", "epoch_seconds"):
            del state["position"][clock]
    if not equal(*states):
        found.append("last.ckpt")
    if (chain.run / "previous.ckpt").exists():
        checkpoint.load_state(chain.run / "previous.ckpt")  # of whatever step was saved before; but it is whole
    if rows(chain.run) != rows(whole / "run"):
        found.append(f"metrics.csv: {rows(chain.run)}")
    if used(chain.run) != used(whole / "run"):
        found.append(f"system.csv: {used(chain.run)}")
    if summary(chain.run) != summary(whole / "run"):
        found.append(f"summary.json: {summary(chain.run)}")
    if chain.track and (copy := mlflow_copy(chain.folder)) != (other := mlflow_copy(whole)):
        found += [f"MLflow's {key}: {copy[key]} instead of {other[key]}" for key in copy if copy[key] != other[key]]
    return found


def names(run: Path) -> list[str]:
    """The files of a run that all have: some are not tracked, and some have saved only once since a power cut."""
    return sorted(path.name for path in run.iterdir() if path.name not in ("mlflow.json", "previous.ckpt"))


def model(run: Path) -> dict[str, Any]:
    """All of best.safetensors; the format writes the same in any order, so that bytes differ."""
    found = checkpoint.load_classifier(run)
    return {**vars(found), "network": found.network.state_dict()}


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv as text, without clocks."""
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    return [
        {name: cell for name, cell in zip(columns, line.split(","), strict=True) if name not in CLOCKS}
        for line in lines
    ]


def used(run: Path) -> list[list[str]]:
    """system.csv without what was used, which depends on the machine's day: its columns, and the epochs."""
    header, *lines = (run / "system.csv").read_text().splitlines()
    return [header.split(","), [line.split(",")[0] for line in lines]]


def summary(run: Path) -> dict[str, Any]:
    """summary.json without the clock, and the commit, which may have moved on."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    del found["final"]["minutes"], found["tags"]["git_commit"]
    return found


def is_clock(metric: str) -> bool:
    """Whether a metric of MLflow's says what a clock does, or what the machine was about."""
    return metric.removeprefix("final/") in CLOCKS or metric.startswith("system/")


def mlflow_copy(folder: Path) -> dict[str, Any]:
    """All that MLflow's database and artifacts say of the one run in them; a metric twice is there twice."""
    with sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True) as database:
        runs = database.execute("select run_uuid, name, status, lifecycle_stage from runs").fetchall()
        metrics = database.execute("select key, step, value from metrics order by key, step, value").fetchall()
        params = database.execute("select key, value from params order by key").fetchall()
        tags = database.execute("select key, value from tags order by key").fetchall()
        models = database.execute("select model_id, status, lifecycle_stage from logged_models").fetchall()
        outputs = database.execute("select destination_id from inputs").fetchall()
        inputs = database.execute(
            "select input_tags.value, datasets.name, digest, dataset_source_type, dataset_source, dataset_schema, "
            "dataset_profile from inputs join datasets on source_id = dataset_uuid "
            "left join input_tags on input_tags.input_uuid = inputs.input_uuid "
            "where inputs.source_type = 'DATASET' order by 1, 2, 3"
        ).fetchall()
    kept = [model for model, status, stage in models if stage == "active"]
    said = dict(tags)
    artifacts = folder / "mlruns" / runs[0][0] / "artifacts" if runs else folder
    return {
        "runs": [run[1:] for run in runs],
        "metrics": [metric for metric in metrics if not is_clock(metric[0])],
        "system": [metric[:2] for metric in metrics if metric[0].startswith("system/")],
        "params": params,
        "tags": [tag for tag in tags if tag[0] not in ("budgetnet.run", "mlflow.note.content", *COMMITS)],
        "description is the run's": said.get("mlflow.note.content") == words.note(read(folder / "run")),
        "inputs": inputs,
        "models": [status for _, status, stage in models if stage == "active"],
        "outputs": Counter(output in kept for (output,) in outputs)[True],
        # As MLflow lists them: a kill can leave its half-written copy of a file, which it hides and never reads.
        "files": sorted(path.name for path in artifacts.iterdir() if not path.name.startswith(HIDDEN)),
        "weights is the run's": (artifacts / "best.safetensors").read_bytes()
        == (folder / "run" / "best.safetensors").read_bytes(),
    }


def carry_out(chain: Chain, rng: random.Random, counts: dict[str, int], seconds: float, template: Path | None) -> bool:
    """Kill a training once or more, and let its last process be.

    Args:
        chain: in an empty folder.
        rng: what decides where it is killed.
        counts: how often each moment comes in an undisturbed run.
        seconds: how long that takes.
        template: MLflow's database, made already; None has the run make it, and be killed while it does.

    Returns:
        Whether `budgetnet track` had to complete MLflow's copy, which may give up when slow.
    """
    if chain.track and template is not None:
        shutil.copy(template, chain.folder / "mlflow.db")
    moments = ["time", "step", "half", "sync", "renamed", "file", *(["sql"] if chain.track else [])]
    if chain.track and template is None:
        if chain.go_on("sql", rng.randint(1, counts["database"]))[0]:
            chain.kills[-1] = "database"
        moments = ["time", "file", "sql"]
    killed = True
    while killed and (not chain.kills or rng.random() < 0.6):
        moment = rng.choice(moments)
        most = seconds if moment == "time" else counts[moment]
        killed = chain.go_on(moment, rng.uniform(0.2, most) if moment == "time" else rng.randint(1, int(most)))[0]
    said = chain.go_on()[1] if killed else ""
    slow = "MLflow tracking is off" in said
    if slow:
        command = [sys.executable, "-m", "budgetnet", "track", "run"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run(command, cwd=chain.folder, env=environment, check=True, capture_output=True, timeout=LONGEST)
    return slow


def undisturbed(folder: Path) -> tuple[dict[str, int], float, Path]:
    """Train in `folder`, as often as what is compared and counted needs.

    Returns:
        How often each moment comes in a run whose database is there (and, as "database", in the making of it), how
        long such a run takes, and a database that is made and empty.
    """
    made = Chain(folder / "made", track=True)
    made.folder.mkdir(parents=True)
    with_database = json.loads(made.go_on()[1].splitlines()[-1])
    template = folder / "mlflow.db"
    program = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", program, f"sqlite:///{template}"], check=True, capture_output=True)
    whole = Chain(folder / "whole", track=True)
    whole.folder.mkdir()
    shutil.copy(template, whole.folder / "mlflow.db")
    began = time.monotonic()
    counts = json.loads(whole.go_on()[1].splitlines()[-1])
    seconds = time.monotonic() - began
    return counts | {"database": with_database["sql"] - counts["sql"]}, seconds, template


def main() -> None:
    """Run the campaign and write its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100, help="kills (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    options = parser.parse_args()
    rng, began = random.Random(options.seed), time.monotonic()
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    slow = 0
    with tempfile.TemporaryDirectory(prefix="budgetnet-death-") as temporary:
        folder = Path(temporary)
        counts, seconds, template = undisturbed(folder)
        number = 0
        while tried.total() < options.tries:
            number += 1
            chain = Chain(folder / str(number), track=rng.random() < 0.7)
            chain.folder.mkdir()
            slow += carry_out(chain, rng, counts, seconds, template if rng.random() < 0.8 else None)
            found = differences(chain, folder / "whole")
            tried.update(chain.kills)
            if not found:
                survived.update(chain.kills)
                shutil.rmtree(chain.folder)
            print(
                f"{tried.total()} of {options.tries}: {', '.join(chain.kills)}: {found or 'as undisturbed'}", flush=True
            )
    done = [
        faults.Fault(fault=text, held=HELD, tried=tried[name], survived=survived[name])
        for name, text in NAMES.items()
        if tried[name]
    ]
    if slow:
        print(f"{slow} times MLflow was too slow, and `budgetnet track` completed its copy")
    command = "python reliability/death.py" + (
        f" --tries {options.tries} --seed {options.seed}" if (options.tries, options.seed) != (100, 0) else ""
    )
    print(faults.write("death", command, done, time.monotonic() - began))


if __name__ == "__main__":
    main()
