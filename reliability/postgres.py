"""A real PostgreSQL of its own: a fresh cluster in a temporary folder, on the loopback, with a password.

For tests and campaigns. Debian has the programs in `apt-get install postgresql`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow_server import free_port

PASSWORD = "open/sesame"
"""With a slash, which SQLAlchemy allows and other readers of URIs trip over."""


def program(name: str) -> str | None:
    """The path of initdb or postgres, which Debian does not put on the PATH; None where they are not installed."""
    there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return shutil.which(name) or (str(there[-1]) if there else None)


@contextlib.contextmanager
def postgres() -> Iterator[Callable[[str], str]]:
    """Run a server, and give what makes an empty database in it, of a name, and says its URI.

    Raises:
        RuntimeError: it does not start.
    """
    initdb, server = program("initdb"), program("postgres")
    assert initdb
    assert server
    # PostgreSQL does not run as root, and pytest's folders are closed to others.
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="budgetnet-postgres-"))
    log = folder / "log"
    try:
        (folder / "password").write_text(PASSWORD)
        log.touch()
        if user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        made = subprocess.run(
            [
                *[initdb, "-D", folder / "data", "-U", "lab", "-A", "scram-sha-256", "--pwfile", folder / "password"],
                *["--no-sync", "-E", "UTF8", "--locale=C"],
            ],
            cwd=folder,
            user=user,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if made.returncode:
            raise RuntimeError(f"initdb fails: {made.stderr}")
        port = free_port()
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [server, "-D", folder / "data", "-p", str(port)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with log.open("ab") as file:
            process = subprocess.Popen(command, cwd=folder, user=user, stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + 60
            while b"ready to accept connections" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}")
                time.sleep(0.05)
            yield lambda name: _make(name, port)
        finally:
            process.send_signal(signal.SIGINT)  # end sessions, and stop
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)
    finally:
        shutil.rmtree(folder)


def _make(name: str, port: int) -> str:
    import pg8000.native

    connection = pg8000.native.Connection("lab", "127.0.0.1", "postgres", port, PASSWORD)
    connection.run(f"CREATE DATABASE {name}")
    connection.close()
    return f"postgresql+pg8000://lab:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{port}/{name}"
