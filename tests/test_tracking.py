"""The MLflow copy of a run, under servers that work, die, hang, lose answers and talk nonsense."""

import base64
import contextlib
import json
import math
import os
import shutil
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from mlflow_server import Gate, Server, serving, stored
from torch import nn

from budgetnet import checkpoint, cli, lineage, mlclient, runs, store, tracking, words
from budgetnet.classifier import Classifier
from budgetnet.config import ModelConfig
from budgetnet.errors import BudgetnetError, DataError
from budgetnet.metrics import Metrics, read_metrics
from budgetnet.recipe import load_recipe
from budgetnet.tracking import Tracker, send
from budgetnet.train import train as train_alone

SMOKE = str(Path(__file__).parent.parent / "recipes" / "smoke.yaml")
PARAMS = {
    "dataset": "digits",
    "val_size": 200,
    "epochs": 3,
    "budget": None,
    "experiment": "digits",
    "optimizer": {"lr": 5e-5, "betas": [0.9, 0.99], "nesterov": True},
    "model": {"stages": [{"width": 8}, {"width": 16}]},
}
FLAT = {
    "dataset": "digits",
    "val_size": "200",
    "epochs": "3",
    "budget": "null",
    "experiment": "digits",
    "optimizer.lr": "5e-05",
    "optimizer.betas": "[0.9, 0.99]",
    "optimizer.nesterov": "true",
    "model.stages.0.width": "8",
    "model.stages.1.width": "16",
}
TAGS = {"git_commit": "0123abc", "data_checksum": "c58f", "parameters": "1234", "train_images": "1238"}
FINAL = {"test_accuracy": 0.75}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: &a [1]\nb: *a\n"),
        ("config.yaml", "[" * 50_000),
        ("config.yaml", "a: !!bool maybe"),
        ("summary.json", "[" * 100_000),
        ("summary.json", '{"tags": [1]}'),
        ("summary.json", '{"final": 5}'),
        ("mlflow.json", "{" * 5),
        ("mlflow.json", '{"experiment": 1, "more": 2}'),
    ],
)
def test_a_run_folder_with_a_damaged_file_is_not_sent_and_the_file_is_named(tmp_path, name, content):
    (tmp_path / "config.yaml").write_text("experiment: a\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        send(tmp_path, load_classifier=lambda path: classifier(), warn=lambda line: None)


# ---------------------------------------------------------------------------------------------------- what a run does


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    return layers.eval()


def classifier(seed=0):
    return Classifier(
        network=network(seed),
        model=ModelConfig(),
        classes=("a", "b", "c", "d", "e"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        image_size=8,
    )


def row(epoch):
    return {"epoch": epoch, "train_loss": 1 / epoch, "val_accuracy": epoch / 10}


def train(run, tracker, epochs, params=PARAMS, finish=True):
    """What the training loop does with a tracker, for the epochs given."""
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(params))
    metrics = Metrics(run / "metrics.csv")
    tracker.start("first try", params, TAGS)
    for epoch in epochs:
        metrics.append(row(epoch))
        tracker.log_epoch(row(epoch))
    if not finish:
        tracker.finish("KILLED", [], None, {})
        return
    (run / "summary.json").write_text(json.dumps({"name": "first try", "tags": TAGS, "final": FINAL}))
    (run / "best.safetensors").write_bytes(b"weights")
    files = [run / name for name in ("config.yaml", "metrics.csv", "summary.json", "best.safetensors")]
    tracker.finish("FINISHED", files, classifier(), FINAL)


def assert_complete(uri, run, epochs=(1, 2, 3)):
    found = stored(uri, run)
    assert found["status"] == "FINISHED"
    assert found["name"] == "first try"
    assert found["params"] == FLAT
    assert found["tags"] == {**TAGS, "budgetnet.run": found["key"]}
    assert found["points"] == {
        "train_loss": [(epoch, 1 / epoch) for epoch in epochs],
        "val_accuracy": [(epoch, epoch / 10) for epoch in epochs],
        "final/test_accuracy": [(epochs[-1], 0.75)],
    }
    names = ("config.yaml", "metrics.csv", "summary.json", "best.safetensors")
    assert found["files"] == {name: (run / name).stat().st_size for name in names}
    assert found["note"] == words.note(runs.read(run))
    assert found["inputs"] == sorted((each.context, each.name, each.digest) for each in lineage.inputs(FLAT, TAGS))
    assert len(found["inputs"]) == 3
    assert [status for _, status in found["models"]] == ["READY"]
    assert found["outputs"] == [found["models"][0][0]]
    return found


def load_classifier(path):
    assert path.name == "best.safetensors"
    return classifier()


def no_warning(text):
    raise AssertionError(f"unexpected warning: {text}")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No store of the user's, and a current folder of the test's own, whose name needs quoting."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "my work 100%"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run one"


# ---------------------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database as two runs leave it that start in the same new folder at once, and what they print."""
    folder = tmp_path_factory.mktemp("two runs")
    program = """
import pathlib, sys
from budgetnet import mlclient
from budgetnet.tracking import Tracker
assert "mlflow" not in sys.modules, "importing budgetnet.tracking must stay fast"
mlclient.OPEN_SECONDS = 120.0  # about the race, not about the time that a busy machine takes
run = pathlib.Path(sys.argv[1])
run.mkdir()
tracker = Tracker(run, experiment="both", warn=lambda text: print("warning:", text))
tracker.start(run.name, {"seed": 1}, {})
tracker.log_epoch({"epoch": 1, "loss": 0.5})
tracker.finish("FINISHED", [], None, {})
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(tracking.__file__).parents[1]), os.environ["PYTHONPATH"]])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, name],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in ("a", "b")
    ]
    return folder, [process.communicate(timeout=120)[0].decode() for process in processes]


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory):
    """Where the server keeps its database, its artifacts and its log."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(server_folder, database):
    """The port of an MLflow server process."""
    with serving(server_folder, database[0] / "mlflow.db") as port:
        yield port


@pytest.fixture
def gate(server):
    door = Gate(server)
    yield door
    door.close()


def test_a_run_is_copied_to_the_server_with_its_model_once(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1, 2, 3])
    found = assert_complete(uri, run)

    import mlflow.pytorch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = mlflow.models.get_model_info(f"models:/{found['models'][0][0]}")
        model = mlflow.pytorch.load_model(info.model_uri)
    assert info.signature.inputs.input_names() == ["image"]
    assert info.signature.outputs.input_names() == ["class", "label", "probabilities"]
    for images in (torch.randn(1, 3, 8, 8), torch.randn(7, 3, 8, 8)):
        torch.testing.assert_close(model(images), network()(images))

    assert send(run, load_classifier=load_classifier, warn=no_warning)
    assert stored(uri, run) == found, "sending a complete run adds nothing"


def test_a_resumed_run_continues_its_mlflow_run_with_each_epoch_once(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1, 2], finish=False)
    assert stored(uri, run)["status"] == "KILLED"
    Metrics(run / "metrics.csv").truncate(1)  # the checkpoint was older: epoch 2 is trained again
    train(run, Tracker(run, experiment="digits", warn=no_warning), [2, 3])
    assert_complete(uri, run)


def test_a_parameter_changed_by_a_resume_keeps_its_value_and_the_new_one_is_a_tag(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1], finish=False)
    tracker = Tracker(run, experiment="digits", warn=no_warning)
    tracker.start("first try", {**PARAMS, "epochs": 9}, TAGS)
    tracker._settle()
    found = stored(uri, run)
    assert found["status"] == "RUNNING"
    assert found["params"]["epochs"] == "3"
    assert found["tags"]["resumed.epochs"] == "9"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_metric_that_is_not_finite_is_kept_and_sent(server, run, monkeypatch, value):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run.mkdir()
    Metrics(run / "metrics.csv").append({"epoch": 1, "val_loss": value})
    tracker = Tracker(run, experiment="digits", warn=no_warning)
    tracker.start("first try", PARAMS, TAGS)
    tracker._settle()
    [(step, sent)] = stored(uri, run)["points"]["val_loss"]
    assert step == 1
    assert math.isnan(sent) if math.isnan(value) else sent < -1e300


def test_other_weights_of_the_same_run_are_another_model(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1])
    send(run, load_classifier=lambda path: classifier(seed=1), warn=no_warning)
    assert len(stored(uri, run)["models"]) == 2


def test_an_epoch_is_one_request_so_that_a_distant_server_costs_one_round_trip(gate, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    run.mkdir()
    tracker = Tracker(run, experiment="digits", warn=no_warning)
    tracker.start("first try", PARAMS, TAGS)
    tracker._settle()
    before = gate.requests
    tracker.log_epoch(row(1))
    tracker._settle()
    assert gate.requests - before <= 2  # head and body may come in two pieces


@pytest.mark.parametrize("moment", ["before the start", "after the first epoch", "before the end"])
def test_a_server_that_dies_costs_one_warning_and_send_completes_the_record(gate, run, monkeypatch, moment):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    said = []

    class Dying(Tracker):
        def start(self, *args):
            if moment == "before the start":
                gate.fail("shut")
            super().start(*args)

        def log_epoch(self, row):
            super().log_epoch(row)
            if moment == "after the first epoch" and row["epoch"] == 1:
                self._settle()
                gate.fail("shut")

        def finish(self, *args):
            if moment == "before the end":
                gate.fail("shut")
            super().finish(*args)

    began = time.monotonic()
    train(run, Dying(run, experiment="digits", warn=said.append), [1, 2, 3])
    assert time.monotonic() - began < 20
    assert len(said) == 1
    assert "\n" not in said[0]
    assert f"`budgetnet track {run}` sends it later" in said[0]
    assert gate.uri in said[0]
    with pytest.raises(BudgetnetError, match="cannot send"):
        send(run, load_classifier=load_classifier, warn=no_warning)
    gate.recover()
    assert (
        send(run, load_classifier=load_classifier, warn=no_warning)
        == json.loads((run / "mlflow.json").read_text())["run_id"]
    )
    found = assert_complete(gate.uri, run)
    send(run, load_classifier=load_classifier, warn=no_warning)
    assert stored(gate.uri, run) == found


def test_epochs_do_not_wait_for_a_server_that_has_yet_to_answer_and_arrive_when_it_does(gate, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)

    class Waiting(Tracker):
        def start(self, *args):
            gate.fail("hang")
            super().start(*args)  # nor does this

        def finish(self, *args):
            gate.recover()  # only now: all epochs have been logged without an answer
            super().finish(*args)

    train(run, Waiting(run, experiment="digits", warn=no_warning), [1, 2, 3])
    assert_complete(gate.uri, run)


@pytest.mark.parametrize("moment", ["at the start", "after the first epoch"])
def test_what_the_server_did_without_being_able_to_say_so_is_not_done_again(gate, run, monkeypatch, moment):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    said = []

    class Losing(Tracker):
        def start(self, *args):
            super().start(*args)
            if moment != "at the start":
                self._settle()
                gate.fail("lose")

    if moment == "at the start":
        lose_from_the_creation_on(gate, monkeypatch)
    train(run, Losing(run, experiment="digits", warn=said.append), [1, 2, 3])
    assert len(said) == 1
    gate.recover()
    if moment == "at the start":
        assert json.loads((run / "mlflow.json").read_text())["run_id"] is None
    send(run, load_classifier=load_classifier, warn=no_warning)
    assert_complete(gate.uri, run)


def lose_from_the_creation_on(gate, monkeypatch):
    """The door loses answers from the one to the creation of the run on; MLflow repeats that request of its own."""
    with mlclient.silence():
        import mlflow
    create = mlflow.MlflowClient.create_run

    def create_run(client, *args, **kwargs):
        gate.fail("lose")
        return create(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create_run)


def test_a_run_that_the_server_makes_late_is_deleted_when_the_record_is_completed(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1, 2, 3])
    found, record = stored(uri, run), store.Record.load(run)
    with mlclient.silence():
        client = mlclient.import_mlflow()(uri)
        experiment = client.get_experiment_by_name("digits").experiment_id
        tags = {"budgetnet.run": record.key}
        client.create_run(experiment, start_time=0, tags=tags)  # asked for before all others
    assert send(run, load_classifier=load_classifier, warn=no_warning) == record.run_id
    assert stored(uri, run) == found


def test_two_that_send_the_same_epochs_at_once_leave_each_point_once(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1])
    record = store.Record.load(run)
    with mlclient.silence():
        both = [store.open_copy(run, record, uri) for _ in range(2)]  # each has seen epoch 1 alone
        for one in both:
            one.rows([row(1), {**row(2), "seconds": 1.5}])
    assert stored(uri, run)["points"]["train_loss"] == [(1, 1.0), (2, 0.5)]


def test_what_a_run_took_of_its_machine_and_how_long_it_took_are_sent_with_its_epochs(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning, enabled=False), [])
    for epoch in (1, 2):
        Metrics(run / "metrics.csv").append({**row(epoch), "seconds": 1.5 * epoch})
        Metrics(run / "system.csv").append({"epoch": epoch, "process_memory_usage_megabytes": 10.0 * epoch})
    (run / "pictures").mkdir()
    (run / "pictures" / "network.png").write_bytes(b"a picture")
    for _ in range(2):
        send(run, load_classifier=load_classifier, warn=no_warning)
        found = stored(uri, run)
        assert found["points"]["system/process_memory_usage_megabytes"] == [(1, 10.0), (2, 20.0)]
        assert found["seconds"] == 3.0
        assert {"pictures", "system.csv"} <= found["files"].keys()


def test_a_run_trained_without_tracking_can_be_sent(server, run, monkeypatch):
    train(run, Tracker(run, experiment="digits", warn=no_warning, enabled=False), [1, 2, 3])
    assert not (run / "mlflow.json").exists()
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    send(run, load_classifier=load_classifier, warn=no_warning)
    assert_complete(uri, run)


def test_half_an_answer_about_a_run_does_not_keep_it_from_being_sent_later_by_the_same_process(
    server, run, monkeypatch
):
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}")
    whole, told = TrackingServiceClient.get_run, []

    def half(client, run_id):
        found = whole(client, run_id)
        found.info._artifact_uri = ""  # as MLflow reads an answer without its end
        return found

    with monkeypatch.context() as broken:
        broken.setattr(TrackingServiceClient, "get_run", half)
        train(run, Tracker(run, experiment="digits", warn=told.append), [1, 2, 3])
    assert len(told) == 1
    send(run, load_classifier=load_classifier, warn=no_warning)
    assert_complete(f"http://127.0.0.1:{server}", run)


def test_an_unfinished_run_is_sent_as_killed_without_a_model_and_says_so(server, run, monkeypatch):
    train(run, Tracker(run, experiment="digits", warn=no_warning, enabled=False), [1, 2], finish=False)
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = []
    send(run, load_classifier=load_classifier, warn=said.append)
    assert len(said) == 1
    found = stored(uri, run)
    assert (found["status"], found["models"]) == ("KILLED", [])
    assert [step for step, _ in found["points"]["train_loss"]] == [1, 2]


def test_a_password_in_the_tracking_uri_is_used_but_neither_kept_nor_shown(gate, run, monkeypatch):
    secret = "s3cr/et"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{secret.replace('/', '%2F')}@127.0.0.1:{gate.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    said = []
    run.mkdir()
    tracker = Tracker(run, experiment="digits", warn=said.append)
    tracker.start("first try", PARAMS, TAGS)
    tracker._settle()
    assert said == []
    gate.fail("shut")
    tracker.log_epoch(row(1))
    tracker._settle()
    gate.recover()
    for text in ((run / "mlflow.json").read_text(), *said):
        assert f"http://***@127.0.0.1:{gate.port}" in text
        assert "s3cr" not in text
        assert "ann" not in text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Tracker(run, experiment="digits", warn=said.append).start("first try", PARAMS, TAGS)
    assert len(said) == 2
    assert "set MLFLOW_TRACKING_URI" in said[1]
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    gate.heard = b""
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1, 2, 3])
    assert b"Basic " + base64.b64encode(f"ann:{secret}".encode()) in gate.heard
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    assert_complete(gate.uri, run)
    assert json.loads((run / "mlflow.json").read_text())["tracking_uri"] == f"http://***@127.0.0.1:{gate.port}"


def test_no_secret_is_written_or_said_by_any_command(gate, server_folder, run, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:h4nter2@127.0.0.1:{gate.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("SOME_SECRET_KEY", "battery/staple")
    options = ["--output", str(run), "--epochs", "1", "--experiment", "https://bob:correct-horse@host/team"]
    assert cli.main(["train", SMOKE, *options]) == 0
    gate.fail("shut")
    assert cli.main(["track", str(run), "--debug"]) == 1
    gate.recover()
    assert cli.main(["track", str(run)]) == 0
    assert cli.main(["train", SMOKE, "--resume", *options]) == 0
    found = stored(gate.uri, run)
    assert found["params"]["experiment"] == "https://***@host/team"
    said = "".join(capfd.readouterr())
    assert f"http://***@127.0.0.1:{gate.port}" in said
    files = [path for folder in (run, server_folder) for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "best.safetensors", "mlflow.json", "mlflow.db", "log"} <= {path.name for path in files}
    for secret in ("h4nter2", "correct-horse", "battery/staple"):
        assert secret not in said
        assert [path.name for path in files if secret.encode() in path.read_bytes()] == []


def test_a_training_under_a_server_that_hangs_is_the_same_as_under_none_bit_for_bit(gate, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    recipe = load_recipe(Path(SMOKE), ["--epochs", "2"])
    train_alone(recipe, run.with_name("alone"), track=False)
    gate.fail("hang")
    monkeypatch.setattr(mlclient, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(mlclient, "CALL_SECONDS", 0.5)
    train_alone(recipe, run)
    one, other = (checkpoint.load_state(each / "last.ckpt") for each in (run, run.with_name("alone")))
    assert all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())
    names = ("epoch", "train_loss", "val_accuracy")
    rows = [
        [[row[name] for name in names] for row in read_metrics(each / "metrics.csv")]
        for each in (run, run.with_name("alone"))
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


# ---------------------------------------------------------------------------------------------------- bad servers


def answer(text):
    def handle(connection):
        connection.recv(65536)
        connection.sendall(text)

    return handle


def hang(connection):
    while connection.recv(65536):
        pass


def trickle(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    connection.settimeout(0.05)
    while True:  # ends with the connection
        connection.sendall(b"{")
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1):
                return


BAD = {
    "hangs": hang,
    "trickles": trickle,
    "closes": lambda connection: None,
    "answers 500": answer(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "answers a page": answer(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"),
    "answers later": answer(b"HTTP/1.1 503 Busy\r\nRetry-After: 600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "answers half": answer(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\nConnection: close\r\n\r\n{"experiment":'),
    "answers garbage": answer(b"\x00\xff\x00\xff garbage\r\n\r\n"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_server_costs_seconds_and_one_warning_and_the_run_is_kept(run, monkeypatch, kind):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                BAD[kind](self.request)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setattr(mlclient, "OPEN_SECONDS", 1.0)
    monkeypatch.setattr(mlclient, "CALL_SECONDS", 0.5)
    with Server(("127.0.0.1", 0), Handler) as bad:
        thread = threading.Thread(target=bad.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{bad.server_address[1]}")
        said = []
        began = time.monotonic()
        try:
            train(run, Tracker(run, experiment="digits", warn=said.append), [1, 2, 3])
            with pytest.raises(BudgetnetError, match="cannot send"):
                send(run, load_classifier=load_classifier, warn=no_warning)
        finally:
            bad.shutdown()
            thread.join()
    assert time.monotonic() - began < 15
    assert len(said) == 1
    assert "\n" not in said[0]
    assert [found["epoch"] for found in read_metrics(run / "metrics.csv")] == [1, 2, 3]


def test_a_link_that_somebody_else_put_where_the_lock_goes_is_not_followed(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    with store._locked("sqlite:///mlflow.db"):
        (lock,) = shared.iterdir()
    lock.unlink()
    (tmp_path / "mine").write_text("mine")
    lock.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"), store._locked("sqlite:///mlflow.db"):
        raise AssertionError("the lock is somebody else's")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("uri", ["nonsense://x", "http://", "http://127.0.0.1:port", "sqlite:////proc/none/mlflow.db"])
def test_a_tracking_uri_that_makes_no_sense_costs_one_warning(run, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = []
    train(run, Tracker(run, experiment="digits", warn=said.append), [1])
    assert len(said) == 1
    assert uri in said[0]


# ---------------------------------------------------------------------------------------------------- no server


def test_two_runs_that_start_at_once_share_one_new_database_and_print_nothing(database):
    folder, printed = database
    assert printed == ["", ""]
    for name in ("a", "b"):
        assert stored(f"sqlite:///{folder}/mlflow.db", folder / name)["points"] == {"loss": [(1, 0.5)]}


def test_without_a_server_the_store_is_mlflow_db_in_the_current_folder_with_artifacts_beside_it(
    database, run, monkeypatch
):
    here = Path.cwd()
    shutil.copy(database[0] / "mlflow.db", here)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1, 2, 3])
    assert_complete(f"sqlite:///{here}/mlflow.db", run)
    assert sorted(path.name for path in here.iterdir()) == ["mlflow.db", "mlruns"]
    assert len(list(here.glob("mlruns/**/best.safetensors"))) == 1

    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    tracker = Tracker(run, experiment="digits", warn=no_warning)
    tracker.start("first try", PARAMS, TAGS)
    tracker._settle()
    assert stored(f"sqlite:///{here}/mlflow.db", run)["status"] == "RUNNING", "the run is continued where it is"
    assert list(elsewhere.iterdir()) == []


def test_a_locked_database_costs_seconds_and_one_warning(database, run, monkeypatch):
    shutil.copy(database[0] / "mlflow.db", "mlflow.db")
    said = []
    run.mkdir()
    tracker = Tracker(run, experiment="digits", warn=said.append)
    tracker.start("first try", PARAMS, TAGS)
    tracker._settle()
    monkeypatch.setattr(mlclient, "CALL_SECONDS", 1.0)
    with contextlib.closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for epoch in (1, 2, 3):
            tracker.log_epoch(row(epoch))
        tracker._settle()
        assert time.monotonic() - began < 3
        other.execute("ROLLBACK")
    assert len(said) == 1
    assert "no end after 1 s" in said[0]


def test_without_mlflow_training_goes_on_and_says_once_that_tracking_is_off(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    said = []
    train(run, Tracker(run, experiment="digits", warn=said.append), [1, 2, 3])
    assert said == [
        f"MLflow tracking is off: MLflow is not installed (pip install mlflow); everything is kept in {run}"
    ]
    with pytest.raises(BudgetnetError, match="not installed"):
        send(run, load_classifier=load_classifier, warn=no_warning)


def test_a_damaged_record_costs_one_warning_and_send_names_it(run):
    run.mkdir()
    (run / "mlflow.json").write_text('{"key": "1", "foo": 2}')
    said = []
    train(run, Tracker(run, experiment="digits", warn=said.append), [1])
    assert len(said) == 1
    with pytest.raises(BudgetnetError, match=r"mlflow\.json is not what budgetnet wrote"):
        send(run, load_classifier=load_classifier, warn=no_warning)


def test_send_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(BudgetnetError, match=r"cannot read .*config\.yaml"):
        send(tmp_path, load_classifier=load_classifier, warn=no_warning)
    assert list(tmp_path.glob("*.json")) == []
