"""A group's MLflow: two trainings at once into a real server, on PostgreSQL where that is there, and models by name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import licences
import pytest
import yaml
from mlflow_server import serving, stored
from PIL import Image
from postgres import postgres, program

from budgetnet import checkpoint, mlclient, registry
from budgetnet.cli import main
from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"
COMPOSE = ROOT / "launch" / "docker-compose.yml"
GROUP = (ROOT / "docs" / "guide" / "group.md").read_text()
RUNS = ("one", "two")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder with two runs that trained at once, and the URI of the server that they were sent to."""
    folder = tmp_path_factory.mktemp("group")
    (folder / "server").mkdir()
    if program("initdb") and program("postgres"):
        with postgres() as make, serving(folder / "server", store=make("mlflow")) as port:
            yield trained(folder, port)
    else:
        print("PostgreSQL is not installed (apt-get install postgresql): on SQLite instead")
        with serving(folder / "server") as port:
            yield trained(folder, port)


def trained(folder, port):
    uri = f"http://127.0.0.1:{port}"
    paths = [str(ROOT / "src"), os.environ["PYTHONPATH"]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "budgetnet", "train", str(SMOKE), "--epochs", "1", "--train-size", "64"]
    processes = [
        subprocess.Popen(
            [*command, "--no-report", "--quiet", "--seed", str(seed), "--output", name],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, name in enumerate(RUNS)
    ]
    assert [process.communicate(timeout=170)[1] for process in processes] == ["", ""]
    return folder, uri


@pytest.fixture
def there(place, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place[1])
    monkeypatch.chdir(place[0])


def test_two_trainings_at_once_are_both_in_the_server_whole(place, there):
    for name in RUNS:
        found = stored(place[1], place[0] / name)
        assert (found["name"], found["status"]) == (name, "FINISHED")
        assert len(found["points"]["val_accuracy"]) == 1
        assert {"config.yaml", "metrics.csv", "summary.json", "best.safetensors"} <= set(found["files"])
        assert len(found["outputs"]) == 1


def test_a_registered_run_is_a_model_by_name_and_an_alias_moves(place, there, capsys):
    folder, uri = place
    assert main(["register", "one", "--name", "digits", "--alias", "champion"]) == 0
    line = "digits version 1 is now one, and champion: models:/digits@champion\n"
    assert capsys.readouterr() == (line, "")
    assert main(["register", "two", "--name", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["new"], found["alias"]) == (2, True, None)
    weights = [checkpoint.load_classifier(folder / name).network.state_dict() for name in RUNS]

    def is_model(what, number):
        with registry.fetched(what) as path:
            state = checkpoint.load_classifier(path).network.state_dict()
        return all(state[key].equal(weights[number][key]) for key in state)

    assert is_model("models:/digits@champion", 0)
    assert is_model("models:/digits/2", 1)
    assert not is_model("models:/digits/2", 0)
    assert main(["register", "two", "--name", "digits", "--alias", "champion"]) == 0
    assert capsys.readouterr().out.startswith("two is digits version 2 already, and champion")
    assert is_model("models:/digits@champion", 1)

    from mlflow import MlflowClient

    version = MlflowClient(uri).get_model_version_by_alias("digits", "champion")
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert version.run_id == json.loads((folder / "two" / "mlflow.json").read_text())["run_id"]
    assert float(version.tags["val_accuracy"]) == summary["final"]["val_accuracy"]
    assert version.tags["data_checksum"] == summary["tags"]["data_checksum"]


def test_whatever_takes_a_checkpoint_takes_a_registered_model(place, there, tmp_path, capsys):
    registry.register(place[0] / "one", "by name")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    for command in (
        ["predict", "{}", str(tmp_path / "white.png")],
        ["evaluate", "{}", "--split", "val", "--dataset", "digits"],
        ["inspect", "{}"],
        ["export", "{}", "--dataset", "digits", "--limit", "50", "--output", str(tmp_path / "model.onnx")],
    ):
        said = []
        for model in ("models:/by name/1", "one"):
            assert main([part.format(model) for part in command] + ["--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            said.append({key: value for key, value in found.items() if key not in ("checkpoint", "latency")})
        assert said[0] == said[1]


def test_a_model_that_is_not_there_is_told_with_those_that_are(place, there):
    registry.register(place[0] / "one", "known", "first")

    def refused(what, words, kind=CheckpointError):
        with pytest.raises(kind) as caught, registry.fetched(what):
            pass
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("models:/unknown@first", "has no models:/unknown@first: its models are ")
    refused("models:/known@last", "the aliases of known are @first")
    refused("models:/known/7", "has no models:/known/7: the newest version of known is 1")
    from mlflow import MlflowClient

    MlflowClient(place[1]).create_registered_model("empty")
    refused("models:/empty/1", "has no models:/empty/1: empty has no version")
    for what in ("models:/known", "models:/known@", "models:/@first", "models:/a/b/c", "models:/m-0123456789abcdef"):
        refused(what, "is not of the form models:/NAME@ALIAS or models:/NAME/VERSION", ConfigError)


def test_a_file_that_is_not_the_registered_one_is_refused(place, there):
    folder, _ = place
    registry.register(folder / "one", "swapped", "champion")
    run_id = json.loads((folder / "one" / "mlflow.json").read_text())["run_id"]
    (kept,) = (folder / "server" / "files").rglob(f"{run_id}/artifacts/best.safetensors")
    whole = kept.read_bytes()
    try:
        shutil.copy(folder / "two" / "best.safetensors", kept)  # sound, and another
        with pytest.raises(CheckpointError, match=r"^models:/swapped@champion is not the file that was registered"):
            registry.fetched("models:/swapped@champion").__enter__()
    finally:
        kept.write_bytes(whole)


def test_a_version_that_budgetnet_did_not_register_is_refused(place, there):
    from mlflow import MlflowClient

    client = MlflowClient(place[1])
    run_id = json.loads((place[0] / "one" / "mlflow.json").read_text())["run_id"]
    client.create_registered_model("foreign")
    client.create_model_version("foreign", f"runs:/{run_id}/model", run_id)
    with pytest.raises(CheckpointError, match="version 1, which `budgetnet register` did not make"):
        registry.fetched("models:/foreign/1").__enter__()


def test_a_run_without_a_finished_record_is_not_registered(place, there, tmp_path):
    def refused(words, name="x", alias=None, kind=BudgetnetError):
        with pytest.raises(kind) as caught:
            registry.register(tmp_path / "run", name, alias)
        assert words in str(caught.value)

    refused("is not there: expected a run folder")
    shutil.copytree(place[0] / "one", tmp_path / "run")
    summary = (tmp_path / "run" / "summary.json").read_bytes()
    (tmp_path / "run" / "summary.json").unlink()
    refused("has not finished")
    (tmp_path / "run" / "summary.json").write_bytes(summary)
    record = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    (tmp_path / "run" / "mlflow.json").write_text(json.dumps(record | {"sent": False}))
    refused("send it by `budgetnet track")
    (tmp_path / "run" / "mlflow.json").unlink()
    refused("send it by `budgetnet track")
    refused("name is 'a/b'", name="a/b", kind=ConfigError)
    refused("alias is 'latest'", alias="latest", kind=ConfigError)
    refused("alias is 'v2'", alias="v2", kind=ConfigError)


def test_without_a_server_the_registry_is_the_database_of_the_folder(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BudgetnetError, match=r"^there is no mlflow.db in this folder"):
        registry.fetched("models:/digits@champion").__enter__()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(BudgetnetError, match=r"^MLflow at http://\*\*\*@127.0.0.1:9 fails: "):
        registry.fetched("models:/digits@champion").__enter__()


# ---------------------------------------------------------------------------------------------------- how it is started


def test_mlflow_knows_the_options_that_the_docs_give_its_server():
    (line,) = re.findall(r"^mlflow server .*$", GROUP, re.MULTILINE)
    assert "--artifacts-destination" in line
    assert "export MLFLOW_BACKEND_STORE_URI=postgresql+pg8000://" in GROUP
    with mlclient.silence():  # what it uses of SQLAlchemy is deprecated
        import mlflow.cli

    known = {name for option in mlflow.cli.cli.commands["server"].params for name in option.opts}
    assert set(re.findall(r"--[a-z-]+", line)) <= known
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= {
        option.envvar for option in mlflow.cli.cli.commands["server"].params if isinstance(option.envvar, str)
    }


def test_the_compose_file_has_pinned_images_healthchecks_and_no_password():
    text = COMPOSE.read_text()
    found = yaml.safe_load(text)
    assert set(found) == {"name", "services", "configs", "volumes"}
    assert set(found["services"]) == {"postgres", "mlflow"}
    known = {"image", "build", "restart", "environment", "configs", "ports", "volumes", "healthcheck", "depends_on"}
    for service in found["services"].values():
        assert set(service) <= known | {"command"}
        assert re.fullmatch(r"[a-z/.-]+:\d+\.\d+[\w.-]*", service["image"]), "a tag that does not move"
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
        assert service["healthcheck"]["test"][0] == "CMD"
        for mapping in service["ports"]:
            assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", mapping), "to this machine alone, unless asked"
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in found["volumes"]
        for use in service.get("configs", []):
            assert use["source"] in found["configs"]
        for needed, how in service.get("depends_on", {}).items():
            assert needed in found["services"]
            assert how == {"condition": "service_healthy"}
    assert re.findall(r"^ *(?:POSTGRES_PASSWORD|AWS_SECRET_ACCESS_KEY): *(\S*).*$", text, re.MULTILINE) == [
        "${MLFLOW_DATABASE_PASSWORD:?set",
        "",
    ]
    built = found["services"]["mlflow"]["build"]["dockerfile_inline"]
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-", built)
    pins = licences.pinned()
    for name in ("mlflow", "pg8000"):
        assert f" {name}=={pins[name]}" in built
    assert found["services"]["mlflow"]["image"].endswith(f":{pins['mlflow']}")
    assert set(found["services"]["mlflow"]["environment"]) >= {
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_ARTIFACTS_DESTINATION",
    }
