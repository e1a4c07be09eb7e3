"""A real MLflow server in a process of its own, a door before it that fails on demand, and what the store has of a run.

For tests and campaigns; everything stays on the loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FAULTS = ("shut", "hang", "lose", "half", "500", "garbage")


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, database: Path | None = None, *, store: str = "sqlite:///mlflow.db") -> Iterator[int]:
    """Run a server that keeps `mlflow.db` and `files/` in a folder, and give its port.

    Args:
        folder: there, and empty.
        database: a store to begin with, as to make one takes seconds.
        store: URI of the database instead of `mlflow.db`; the server is given it as docs/guide/group.md says.

    Raises:
        RuntimeError: it does not start.
    """
    if database:
        shutil.copy(database, folder / "mlflow.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = store
    with process(command, folder, environment, f"http://127.0.0.1:{port}/health"):
        yield port


@contextlib.contextmanager
def process(command: Sequence[str], folder: Path, environment: Mapping[str, str], health: str) -> Iterator[None]:
    """A program that serves within the block, ended with all of its processes; what it says is in `log`.

    Args:
        command: starts it.
        folder: where it runs.
        environment: all of its variables.
        health: an address that answers once it serves.

    Raises:
        RuntimeError: it does not start.
    """
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not start: {(folder / 'log').read_text()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=2):
                break
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(20)


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection, and a port that can be listened at again at once."""

    allow_reuse_address = True
    daemon_threads = True


class Gate:
    """A door before a server; what is asked always reaches it, and what it answers comes through or not.

    Faults, each until `recover`:

    - "shut": nobody listens at the door's port, and connections are cut, as when the server dies.
    - "hang": answers wait at the door.
    - "lose": instead of an answer, the connection is cut.
    - "half": half an answer comes, then the connection is cut.
    - "500", "garbage": another answer comes.

    Args:
        target: port of the server.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.requests = 0
        self.heard = b""
        self._fault = ""
        self._after: tuple[int, str] | None = None
        self._well = threading.Event()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._listen()

    def fail(self, fault: str, *, after: int = 0) -> None:
        """Begin a fault, now or when so many more requests have been heard."""
        if after:
            self._after = (self.requests + after, fault)
            return
        self._fault = fault
        self._well.clear()
        if fault == "shut":
            self._close()

    def recover(self) -> bool:
        """End the fault, or what was to begin; whether it had begun."""
        was, self._fault, self._after = self._fault, "", None
        self._well.set()
        if was == "shut":
            self._listen()
        return was != ""

    def close(self) -> None:
        """Be no more."""
        self._fault, self._after = "", None
        self._well.set()
        self._close()

    def _close(self) -> None:
        server = self._server
        if server is None:
            return
        server.shutdown()
        server.server_close()
        self._thread.join()
        with self._lock:
            self._server = None
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def _listen(self) -> None:
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", gate._target)) as onward:
                    with gate._lock:
                        if self.server is not gate._server:  # shut since this was accepted
                            return
                        gate._open += [self.request, onward]
                    back = threading.Thread(target=gate._answers, args=(onward, self.request))
                    back.start()
                    gate._questions(self.request, onward)
                    back.join()

        server = Server(("127.0.0.1", self.port), Handler)
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def _questions(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.requests += 1
                self.heard += data
                if self._after and self.requests >= self._after[0]:
                    _, fault = self._after
                    self._after = None
                    self.fail(fault)
                sink.sendall(data)
        _cut(source, sink)

    def _answers(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._fault == "hang":
                    self._well.wait()
                elif self._fault:
                    if self._fault != "lose":
                        sink.sendall(
                            {
                                "half": data[: len(data) // 2],
                                "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                                "garbage": b"\x00\xff garbage \xfe\r\n\r\n",
                            }.get(self._fault, b"")
                        )
                    break
                sink.sendall(data)
        _cut(source, sink)


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def stored(uri: str, run: Path) -> dict[str, Any]:
    """All that a store says of a run, read by a client of its own.

    Raises:
        AssertionError: there is not exactly one MLflow run for the run folder.
    """
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
            "inputs": sorted(
                (next(tag.value for tag in one.tags), one.dataset.name, one.dataset.digest)
                for one in found.inputs.dataset_inputs
            ),
            "note": found.data.tags.get("mlflow.note.content"),
            "seconds": (found.info.end_time - found.info.start_time) / 1000 if found.info.end_time else None,
            "outputs": [output.model_id for output in found.outputs.model_outputs],
            "key": record["key"],
        }
