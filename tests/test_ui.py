"""MLflow's own page, by `budgetnet ui`: for this machine alone, in one process, and with all that a run has sent."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from chromium import CHROMIUM

from budgetnet import cli, ui, words
from budgetnet.errors import ConfigError
from budgetnet.store import Record

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# ---------------------------------------------------------------------------------------------------- which store


def test_the_store_is_the_one_that_training_uses_or_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "other.db").touch()
    assert ui.find(None) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert ui.find("other.db") == f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/db")
    assert ui.find(None) == "postgresql://host/db"
    for nothing in ("none.db", f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(ConfigError, match=r"none.db is not there: give --store"):
            ui.find(nothing)


def test_a_folder_without_a_store_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ui"]) == 1
    assert capsys.readouterr().err.startswith("budgetnet: error: there is no mlflow.db in this folder")


def test_of_a_store_that_is_a_server_only_its_own_page_is_named_without_the_password(capsys):
    assert cli.main(["ui", "--store", "http://ann:h4nter2@127.0.0.1:5000"]) == 0
    assert capsys.readouterr().out == "http://***@127.0.0.1:5000 is a server that has its page itself: open it there\n"


def test_a_port_that_is_taken_is_told_in_one_line_before_mlflow_is_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["ui", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(rf"budgetnet: error: cannot listen on 127.0.0.1, port {port}: .*--port 0 .*\n", error)


def test_a_file_that_is_no_store_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ui", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot show sqlite:///{tmp_path}/mlflow.db: MLflow says" in error


# ---------------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("method", "host", "origin", "let"),
    [
        ("GET", "127.0.0.1:5000", None, True),
        ("GET", "localhost:5000", "http://localhost:5000", True),
        ("POST", "127.0.0.1:5000", None, True),
        ("POST", "[::1]:5000", "http://[::1]:5000", True),
        ("POST", "127.0.0.1:5000", "http://localhost:5000", True),
        ("GET", "rebound.example:5000", None, False),
        ("GET", "127.0.0.1:5000", "http://127.0.0.1:8000", False),
        ("GET", "192.168.0.7:5000", None, False),
        ("GET", "127.0.0.1:5001", None, False),
        ("GET", "127.0.0.1:no", None, False),
        ("GET", "", None, False),
        ("POST", "127.0.0.1:5000", "http://rebound.example:5000", False),
        ("POST", "127.0.0.1:5000", "http://127.0.0.1:8000", False),
        ("DELETE", "127.0.0.1:5000", "https://127.0.0.1:5000", False),
        ("POST", "127.0.0.1:5000", "null", False),
    ],
)
def test_only_its_own_page_and_programs_of_this_machine_may_ask(method, host, origin, let):
    started = []
    guarded = ui.only_own(lambda environ, start: [b"let in"], 5000)
    environ = {"REQUEST_METHOD": method, "HTTP_HOST": host} | ({"HTTP_ORIGIN": origin} if origin else {})
    answer = guarded(environ, lambda status, headers: started.append(status))
    assert (answer == [b"let in"]) is let
    assert started == ([] if let else ["403 Forbidden"])


# ---------------------------------------------------------------------------------------------------- the real page


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which a run was trained, with its store."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patched.delenv(name)
        options = ["--epochs", "3", "--val_size", "100", "--train_size", "238", "--output", "first", "--quiet"]
        assert cli.main(["train", str(ROOT / "recipes" / "smoke.yaml"), *options]) == 0
    return folder


@contextlib.contextmanager
def serving(work):
    """The process that shows the store, its address, and the file in which attempts to reach the network are noted."""
    log = work / "refused"
    log.touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, "-m", "budgetnet", "ui", "--port", "0"],
        cwd=work,
        env={**kept, "PYTHONPATH": path, "REFUSED_CONNECTIONS": str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) shows sqlite:///.*/mlflow\.db; Ctrl-C stops it\n", line)
    try:
        assert found, line + process.stderr.read()
        yield process, found[1], log
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def served(work):
    """What `serving` gives, for all tests but that which ends it."""
    with serving(work) as found:
        yield found


def run_page(work, url, tab=""):
    return f"{url}/#/experiments/1/runs/{Record.load(work / 'first').run_id}{tab}"


def test_all_of_it_is_one_process_that_only_this_machine_reaches(served):
    process, url, _ = served
    assert urllib.request.urlopen(f"{url}/health", timeout=30).read() == b"OK"
    found = psutil.Process(process.pid)
    assert found.children(recursive=True) == []
    listening = [one.laddr.ip for one in found.net_connections() if one.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "rebound.example"}), timeout=30)


@pytest.fixture
def page(request):
    """A page, which ends with the check that it loaded nothing from elsewhere."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    _, url, log = request.getfixturevalue("served")
    page = request.getfixturevalue("browser").new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(30_000)
    asked = []
    page.on("request", lambda one: asked.append(one.url))
    yield page
    page.close()
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []
    assert log.read_text() == ""


@pytest.mark.browser
def test_the_table_of_runs_names_the_run_its_data_and_its_model(page, served, work):
    page.set_viewport_size({"width": 2000, "height": 900})  # columns are drawn when they are in sight
    page.goto(f"{served[1]}/#/experiments/1/runs")
    cells = page.locator(f'[row-id="{Record.load(work / "first").run_id}"] [role="gridcell"]')
    for text in ("first", "digits (", "budgetnet train", "model"):
        cells.filter(has_text=text).first.wait_for()


@pytest.mark.browser
def test_the_page_of_a_run_says_how_good_it_is_and_what_its_metrics_are(page, served, work):
    page.goto(run_page(work, served[1]))
    page.get_by_text("of 359 test images are classified right").wait_for()
    page.get_by_text("Show more").first.click()
    page.get_by_text("budgetnet train --resume --output runs/first").wait_for()
    for name in ("train_loss", "val_accuracy", "final/test_accuracy", "system/process_memory_usage_megabytes"):
        page.get_by_role("link", name=name, exact=True).wait_for()  # in the table of metrics
        assert name in words.METRICS
        assert page.locator("li", has_text=words.METRICS[name]).count() == 1


@pytest.mark.browser
@pytest.mark.parametrize(
    ("tab", "names"),
    [
        ("/model-metrics", ["train_loss", "val_accuracy", "images_per_second", "test_accuracy"]),
        ("/system-metrics", ["process_memory_usage_megabytes", "cpu_utilization_percentage"]),
    ],
)
def test_the_charts_of_a_run_are_drawn_with_a_point_an_epoch(page, served, work, tab, names):
    page.set_viewport_size({"width": 1280, "height": 3000})  # they are drawn when they are in sight
    page.goto(run_page(work, served[1], tab))
    for name in names:
        page.get_by_title(name).or_(page.get_by_text(name, exact=True)).first.wait_for()
    page.locator(".js-plotly-plot .trace .point").nth(3 * len(names) - 1).wait_for(state="attached")


@pytest.mark.browser
def test_the_pictures_among_the_artifacts_are_shown(page, served, work):
    page.goto(run_page(work, served[1], "/artifacts/pictures/confusion.png"))
    picture = page.locator('img[src^="blob:"]').first
    picture.wait_for(state="attached", timeout=60_000)
    page.wait_for_function("image => image.naturalWidth > 400", arg=picture.element_handle())


@pytest.mark.browser
def test_the_report_among_the_artifacts_is_shown_with_its_curves_and_images(page, served, work):
    page.goto(run_page(work, served[1], "/artifacts/report.html"))
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="first: report").wait_for()
    assert report.locator("svg .line").count() >= 4
    assert report.locator("#wrong img").first.evaluate("image => image.naturalWidth") == 32


def test_ctrl_c_ends_it_and_says_so(work):
    with serving(work) as (process, url, log):
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=30)
    assert (output, error, process.returncode) == ("", "budgetnet: interrupted\n", 130)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=30)
    assert log.read_text() == ""
