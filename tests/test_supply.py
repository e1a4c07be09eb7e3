"""What is installed, under which licence, whom it calls, and that no test does."""

import os
import pkgutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import licences
import no_network
import pytest
from packaging.requirements import Requirement

import budgetnet

ROOT = Path(__file__).parent.parent
UNPINNED = {"openvino"}  # 181 MB for one format of `export`, with a package that reports home: not for everybody
OURS = {"budgetnet", "pip"}  # pip comes with Python and installs the rest

# ---------------------------------------------------------------------------------------------------- what is installed


def test_everything_that_is_installed_is_pinned_exactly_and_everything_pinned_is_installed():
    pins, found = licences.pinned(), licences.installed()
    # torch's builds for GPUs name the exact versions of NVIDIA's packages, which others do not have.
    by_others = {
        (licences.plain(needed.name), specifier.version)
        for package in found.values()
        for needed in map(Requirement, package.requires or [])
        for specifier in needed.specifier
        if specifier.operator == "=="
    }
    wrong = {
        name: package.version
        for name, package in found.items()
        if name not in OURS
        and not (name in pins and Requirement(f"{name}=={pins[name]}").specifier.contains(package.version))
        and (name, package.version) not in by_others
    }
    assert wrong == {}, "installed, and in requirements.lock not at all or at another version"
    assert set(pins) - set(found) == set(), "in requirements.lock, and not installed"


def test_what_a_package_bundles_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "bundled-1.0.dist-info").mkdir()
    (tmp_path / "bundled-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bundled\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "bundled" not in licences.installed()


def test_the_lock_has_all_that_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name not in UNPINNED}
    asked = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    pins = licences.pinned()
    for requirement in map(Requirement, asked):
        name = licences.plain(requirement.name)
        assert name == "budgetnet" or requirement.specifier.contains(pins[name]), requirement


def test_a_line_of_the_lock_that_is_no_exact_pin_is_noticed(tmp_path, monkeypatch):
    for line in ("numpy>=2", "numpy", "numpy==2.*", "numpy @ https://host/numpy.whl"):
        monkeypatch.setattr(licences, "LOCK", tmp_path / "requirements.lock")
        licences.LOCK.write_text(f"# a comment\npillow==13.0.0\n{line}\n")
        with pytest.raises(ValueError, match=r"expected NAME==VERSION"):
            licences.pinned()


def test_the_list_of_licences_is_current():
    assert licences.PAGE.read_text() == licences.page(), "run `make table`"


def test_no_licence_puts_conditions_on_what_is_trained_or_sold():
    found = licences.installed()
    terms = {name: licences.licence(found[name]) for name in licences.pinned()}
    assert {name: term for name, term in terms.items() if "GPL" in term or "Commercial" in term} == {}


# ---------------------------------------------------------------------------------------------------- the network


def test_the_guard_refuses_what_leaves_this_machine_and_lets_loopback_pass():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    for ask in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.create_connection(("2001:db8::1", 80), timeout=1),
        lambda: socket.getaddrinfo("host.invalid", 80),
        lambda: socket.gethostbyname("host.invalid"),
    ):
        with pytest.raises(PermissionError, match="asked for the network"):
            ask()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(PermissionError):
        datagrams.sendto(b"", ("192.0.2.1", 53))
    assert len(no_network.refused) == 5
    no_network.refused.clear()  # these were meant


def test_no_module_asks_for_a_socket_when_it_is_imported_nor_does_the_command_line():
    modules = [found.name for found in pkgutil.walk_packages(budgetnet.__path__, "budgetnet.")]
    assert "budgetnet.store" in modules
    program = f"""
import importlib, sys
def hook(event, arguments):
    if event.startswith("socket."):
        print(event, arguments)
sys.addaudithook(hook)
for name in {[name for name in modules if not name.endswith("__main__")]!r}:
    importlib.import_module(name)
from budgetnet import cli
sys.stdout = open({os.devnull!r}, "w")
cli.main(["inspect", "whitened_cnn"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# Where MLflow finds one of these it reports nothing, and the test would find nothing.
QUIETING = (
    "PYTEST_CURRENT_TEST",
    "GITHUB_ACTIONS",
    "CI",
    "CIRCLECI",
    "GITLAB_CI",
    "JENKINS_URL",
    "TRAVIS",
    "TF_BUILD",
    "BITBUCKET_BUILD_NUMBER",
    "CODEBUILD_BUILD_ARN",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "CLOUD_RUN_EXECUTION",
    "RUNBOT_HOST_URL",
    "RUNBOT_BUILD_NAME",
    "RUNBOT_WORKER_ID",
    "DO_NOT_TRACK",
)


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in QUIETING and not name.startswith("MLFLOW")}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])
    return {**kept, **more}


TELL = """
import os, subprocess, sys
from budgetnet.tracking import Tracker
from pathlib import Path
run = Path("run")
run.mkdir()
tracker = Tracker(run, experiment="x", warn=lambda text: sys.exit(text))
tracker.start("first", {"seed": 1}, {})
tracker.finish("FINISHED", [], None, {})
import mlflow
from mlflow.telemetry import get_telemetry_client
client = get_telemetry_client()
if client:
    client._config_thread.join()  # it asks whether and where to report
child = "from mlflow.telemetry import get_telemetry_client as get; print('reports' if get() else 'silent')"
subprocess.run([sys.executable, "-c", child], check=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [False, True])
def test_mlflow_reports_home_from_us_and_our_children_only_if_the_user_turned_that_on(asked, tmp_path):
    log = tmp_path / "refused"
    log.touch()
    chosen = {"MLFLOW_DISABLE_TELEMETRY": "false"} if asked else {}
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        cwd=tmp_path,
        env=environment(REFUSED_CONNECTIONS=str(log), **chosen),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["reports" if asked else "silent"], done.stderr
    assert ("telemetry" in log.read_text()) is asked
    assert bool(log.read_text()) is asked
