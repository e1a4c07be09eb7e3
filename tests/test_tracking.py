"""metrics.csv under crashes, and the MLflow copy of a run under servers that work, die, hang and talk nonsense."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from budgetnet import tracking
from budgetnet.errors import BudgetnetError, DataError, TrainingError
from budgetnet.tracking import Metrics, Tracker, read_metrics, send

PARAMS = {
    "epochs": 3,
    "budget": None,
    "experiment": "digits",
    "optimizer": {"lr": 5e-5, "betas": [0.9, 0.99], "nesterov": True},
    "model": {"stages": [{"width": 8}, {"width": 16}]},
}
FLAT = {
    "epochs": "3",
    "budget": "null",
    "experiment": "digits",
    "optimizer.lr": "5e-05",
    "optimizer.betas": "[0.9, 0.99]",
    "optimizer.nesterov": "true",
    "model.stages.0.width": "8",
    "model.stages.1.width": "16",
}
TAGS = {"git_commit": "0123abc", "data_checksum": "c58f", "parameters": "1234"}
FINAL = {"test_accuracy": 0.75}


# ---------------------------------------------------------------------------------------------------- metrics.csv


def test_metrics_read_back_bit_for_bit(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = [
        {"epoch": 1, "loss": 0.1 + 0.2, "lr": 1e-300},
        {"loss": math.inf, "lr": np.float32(0.1), "epoch": np.int64(2)},
    ]
    metrics = Metrics(path)
    for row in rows:
        metrics.append(row)
    assert read_metrics(path) == [{name: float(value) for name, value in row.items()} for row in rows]
    assert path.read_text().startswith("epoch,loss,lr\n1,0.30000000000000004,1e-300\n2,inf,")


def test_a_row_is_in_the_file_when_append_returns(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    for epoch in range(3):
        metrics.append({"epoch": epoch, "loss": 0.5})
        assert len(read_metrics(tmp_path / "metrics.csv")) == epoch + 1


def test_a_run_without_a_finished_epoch_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []
    Metrics(tmp_path / "metrics.csv").truncate(0)
    assert not (tmp_path / "metrics.csv").exists()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_file_torn_at_any_byte_loses_its_last_row_at_most_and_can_be_continued(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("run") / "metrics.csv"
    rows = [{"epoch": float(epoch), "loss": value} for epoch, value in enumerate(values)]
    for row in rows:
        Metrics(path).append(row)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = max(content[:cut].count(b"\n") - 1, 0)
    assert read_metrics(path) == rows[:whole]
    Metrics(path).append({"epoch": 99, "loss": 0.5})
    assert read_metrics(path) == [*rows[:whole], {"epoch": 99.0, "loss": 0.5}]


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_truncate_keeps_the_epochs_up_to_the_given_one(tmp_path, epoch):
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    for e in range(1, 4):
        metrics.append({"epoch": e, "loss": 1 / e})
    before = read_metrics(path)
    metrics.truncate(epoch)
    assert read_metrics(path) == [row for row in before if row["epoch"] <= epoch]


def test_truncate_removes_a_torn_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"epoch,loss\n1,0.5\n2,0.")
    Metrics(path).truncate(10)
    assert path.read_bytes() == b"epoch,loss\n1,0.5\n"


def test_other_columns_than_the_files_are_refused_and_leave_it_as_it_was(tmp_path):
    path = tmp_path / "metrics.csv"
    Metrics(path).append({"epoch": 1, "loss": 0.5})
    with pytest.raises(TrainingError, match=r"columns are epoch, loss and the new row has epoch, accuracy"):
        Metrics(path).append({"epoch": 2, "accuracy": 0.5})
    assert path.read_text() == "epoch,loss\n1,0.5\n"


@pytest.mark.parametrize(
    "line",
    ["2,x", "2", "2,0.5,1", "nan,0.5", "1e999,0.5", "2.5,0.5", "-1,0.5", "9" * 30 + ",0.5", '2,"' + "0" * 200_000],
)
def test_a_line_damaged_before_the_end_is_named(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"epoch,loss\n1,0.5\n{line}\n3,0.5\n")
    with pytest.raises(DataError, match=r"metrics\.csv: line 3 is damaged"):
        read_metrics(path)


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
        send(tmp_path, load_network=lambda path: (network(), EXAMPLE), warn=lambda line: None)


def test_metrics_that_cannot_be_written_are_the_users_error(tmp_path):
    with pytest.raises(TrainingError, match="cannot write"):
        Metrics(tmp_path / "missing" / "metrics.csv").append({"epoch": 1})


# ---------------------------------------------------------------------------------------------------- what a run does


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    return layers.eval()


EXAMPLE = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


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
        tracker.finish("KILLED", [], None, None, {})
        return
    (run / "summary.json").write_text(json.dumps({"name": "first try", "tags": TAGS, "final": FINAL}))
    (run / "best.safetensors").write_bytes(b"weights")
    files = [run / name for name in ("config.yaml", "metrics.csv", "summary.json", "best.safetensors")]
    tracker.finish("FINISHED", files, network(), EXAMPLE, FINAL)


def stored(uri, run):
    """All that the store says of a run, read by another client."""
    record = json.loads((run / "mlflow.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(record["experiment"])
        runs = client.search_runs([experiment.experiment_id], f"tags.`budgetnet.run` = '{record['key']}'")
        assert [found.info.run_id for found in runs] == [record["run_id"]], "one MLflow run a run folder"
        found = runs[0]
        points = {
            name: [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, name)]
            for name in found.data.metrics
        }
        models = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{found.info.run_id}'")
        return {
            "status": found.info.status,
            "name": found.info.run_name,
            "params": found.data.params,
            "tags": {name: tag for name, tag in found.data.tags.items() if not name.startswith("mlflow.")},
            "points": points,
            "files": {file.path: file.file_size for file in client.list_artifacts(found.info.run_id)},
            "models": [(model.model_id, str(model.status)) for model in models],
            "outputs": [output.model_id for output in found.outputs.model_outputs],
            "key": record["key"],
        }


def assert_complete(uri, run, epochs=(1, 2, 3)):
    found = stored(uri, run)
    assert found["status"] == "FINISHED"
    assert found["name"] == "first try"
    assert found["params"] == FLAT
    assert found["tags"] == {**TAGS, "budgetnet.run": found["key"]}
    assert found["points"] == {
        "train_loss": [(epoch, 1 / epoch) for epoch in epochs],
        "val_accuracy": [(epoch, epoch / 10) for epoch in epochs],
        "final.test_accuracy": [(epochs[-1], 0.75)],
    }
    names = ("config.yaml", "metrics.csv", "summary.json", "best.safetensors")
    assert found["files"] == {name: (run / name).stat().st_size for name in names}
    assert [status for _, status in found["models"]] == ["READY"]
    assert found["outputs"] == [found["models"][0][0]]
    return found


def load_network(path):
    assert path.name == "best.safetensors"
    return network(), EXAMPLE


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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database as two runs leave it that start in the same new folder at once, and what they print."""
    folder = tmp_path_factory.mktemp("two runs")
    program = """
import pathlib, sys
from budgetnet import tracking
from budgetnet.tracking import Tracker
assert "mlflow" not in sys.modules, "importing budgetnet.tracking must stay fast"
tracking._OPEN_SECONDS = 120.0  # about the race, not about the time that a busy machine takes
run = pathlib.Path(sys.argv[1])
run.mkdir()
tracker = Tracker(run, experiment="both", warn=lambda text: print("warning:", text))
tracker.start(run.name, {"seed": 1}, {})
tracker.log_epoch({"epoch": 1, "loss": 0.5})
tracker.finish("FINISHED", [], None, None, {})
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(tracking.__file__).parents[1])
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
def server(tmp_path_factory, database):
    """The port of an MLflow server process."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database[0] / "mlflow.db", folder / "mlflow.db")  # to make another takes seconds
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        "sqlite:///mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


class Gate:
    """A door before the server that can be shut, as when the server dies, and opened again on the same port."""

    def __init__(self, target):
        self._target = target
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.requests = 0
        self._open = []
        self.open()

    def open(self):
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with socket.create_connection(("127.0.0.1", gate._target)) as onward:
                    gate._open += [self.request, onward]
                    back = threading.Thread(target=pump, args=(onward, self.request))
                    back.start()
                    pump(self.request, onward, count=True)
                    back.join()

        def pump(source, sink, count=False):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    gate.requests += count
                    sink.sendall(data)
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        self._server = Server(("127.0.0.1", self.port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def shut(self):
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture
def gate(server):
    door = Gate(server)
    yield door
    door.shut()


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
    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 3, 8, 8)}
    assert info.signature.outputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 5)
    for images in (torch.randn(1, 3, 8, 8), torch.randn(7, 3, 8, 8)):
        torch.testing.assert_close(model(images), network()(images))

    assert send(run, load_network=load_network, warn=no_warning)
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
    Tracker(run, experiment="digits", warn=no_warning).start("first try", PARAMS, TAGS)
    [(step, sent)] = stored(uri, run)["points"]["val_loss"]
    assert step == 1
    assert math.isnan(sent) if math.isnan(value) else sent < -1e300


def test_other_weights_of_the_same_run_are_another_model(server, run, monkeypatch):
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(run, Tracker(run, experiment="digits", warn=no_warning), [1])
    send(run, load_network=lambda path: (network(seed=1), EXAMPLE), warn=no_warning)
    assert len(stored(uri, run)["models"]) == 2


def test_an_epoch_is_one_request_so_that_a_distant_server_costs_one_round_trip(gate, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    run.mkdir()
    tracker = Tracker(run, experiment="digits", warn=no_warning)
    tracker.start("first try", PARAMS, TAGS)
    before = gate.requests
    tracker.log_epoch(row(1))
    assert gate.requests - before <= 2  # head and body may come in two pieces


@pytest.mark.parametrize("moment", ["before the start", "after the first epoch", "before the end"])
def test_a_server_that_dies_costs_one_warning_and_send_completes_the_record(gate, run, monkeypatch, moment):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    said = []

    class Dying(Tracker):
        def start(self, *args):
            if moment == "before the start":
                gate.shut()
            super().start(*args)

        def log_epoch(self, row):
            super().log_epoch(row)
            if moment == "after the first epoch" and row["epoch"] == 1:
                gate.shut()

        def finish(self, *args):
            if moment == "before the end":
                gate.shut()
            super().finish(*args)

    began = time.monotonic()
    train(run, Dying(run, experiment="digits", warn=said.append), [1, 2, 3])
    assert time.monotonic() - began < 20
    assert len(said) == 1
    assert "\n" not in said[0]
    assert f"`budgetnet track {run}` sends it later" in said[0]
    assert gate.uri in said[0]
    with pytest.raises(BudgetnetError, match="cannot send"):
        send(run, load_network=load_network, warn=no_warning)
    gate.open()
    assert (
        send(run, load_network=load_network, warn=no_warning) == json.loads((run / "mlflow.json").read_text())["run_id"]
    )
    found = assert_complete(gate.uri, run)
    send(run, load_network=load_network, warn=no_warning)
    assert stored(gate.uri, run) == found


def test_a_run_trained_without_tracking_can_be_sent(server, run, monkeypatch):
    train(run, Tracker(run, experiment="digits", warn=no_warning, enabled=False), [1, 2, 3])
    assert not (run / "mlflow.json").exists()
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    send(run, load_network=load_network, warn=no_warning)
    assert_complete(uri, run)


def test_an_unfinished_run_is_sent_as_killed_without_a_model_and_says_so(server, run, monkeypatch):
    train(run, Tracker(run, experiment="digits", warn=no_warning, enabled=False), [1, 2], finish=False)
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = []
    send(run, load_network=load_network, warn=said.append)
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
    assert said == []
    gate.shut()
    tracker.log_epoch(row(1))
    gate.open()
    for text in ((run / "mlflow.json").read_text(), *said):
        assert f"http://***@127.0.0.1:{gate.port}" in text
        assert "s3cr" not in text
        assert "ann" not in text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Tracker(run, experiment="digits", warn=said.append).start("first try", PARAMS, TAGS)
    assert len(said) == 2
    assert "set MLFLOW_TRACKING_URI" in said[1]


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("http://h:1/a@b", "http://***@b"),  # hides too much rather than too little
        ("postgresql://u:p/w@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("file:///home/a@b", "file:///home/a@b"),
        ("https://h/?access_token=t", "https://h/?access_token=***"),
    ],
)
def test_secrets_are_hidden_in_any_kind_of_store(uri, masked):
    assert tracking._mask(uri) == masked
    assert tracking._mask(f"cannot reach {uri} now") == f"cannot reach {masked} now"


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
    monkeypatch.setattr(tracking, "_OPEN_SECONDS", 1.5)
    with Server(("127.0.0.1", 0), Handler) as bad:
        thread = threading.Thread(target=bad.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{bad.server_address[1]}")
        said = []
        began = time.monotonic()
        try:
            train(run, Tracker(run, experiment="digits", warn=said.append), [1, 2, 3])
            with pytest.raises(BudgetnetError, match="cannot send"):
                send(run, load_network=load_network, warn=no_warning)
        finally:
            bad.shutdown()
            thread.join()
    assert time.monotonic() - began < 15
    assert len(said) == 1
    assert "\n" not in said[0]
    assert [found["epoch"] for found in read_metrics(run / "metrics.csv")] == [1, 2, 3]


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
    Tracker(run, experiment="digits", warn=no_warning).start("first try", PARAMS, TAGS)
    assert stored(f"sqlite:///{here}/mlflow.db", run)["status"] == "RUNNING", "the run is continued where it is"
    assert list(elsewhere.iterdir()) == []


def test_a_locked_database_costs_seconds_and_one_warning(database, run, monkeypatch):
    shutil.copy(database[0] / "mlflow.db", "mlflow.db")
    said = []
    run.mkdir()
    tracker = Tracker(run, experiment="digits", warn=said.append)
    tracker.start("first try", PARAMS, TAGS)
    monkeypatch.setattr(tracking, "_CALL_SECONDS", 1.0)
    with contextlib.closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for epoch in (1, 2, 3):
            tracker.log_epoch(row(epoch))
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
        send(run, load_network=load_network, warn=no_warning)


def test_a_damaged_record_costs_one_warning_and_send_names_it(run):
    run.mkdir()
    (run / "mlflow.json").write_text('{"key": "1", "foo": 2}')
    said = []
    train(run, Tracker(run, experiment="digits", warn=said.append), [1])
    assert len(said) == 1
    with pytest.raises(BudgetnetError, match=r"mlflow\.json is not what budgetnet wrote"):
        send(run, load_network=load_network, warn=no_warning)


def test_send_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(BudgetnetError, match=r"cannot read .*config\.yaml"):
        send(tmp_path, load_network=load_network, warn=no_warning)
    assert list(tmp_path.glob("*.json")) == []


def test_an_example_of_one_image_is_refused_because_it_would_fix_the_batch_size(run):
    tracker = Tracker(run, experiment="digits", warn=no_warning, enabled=False)
    with pytest.raises(ValueError, match=r"expected float32 \(n, c, h, w\) with n >= 2"):
        tracker.finish("FINISHED", [], network(), EXAMPLE[:1], {})
