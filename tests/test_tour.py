"""The notebook docs/tour.ipynb runs from top to bottom, and holds no outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(TOUR, as_version=4)


def test_the_notebook_is_valid_and_holds_no_outputs_counts_or_traces_of_a_run(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert TOUR.stat().st_size < 20_000


def execute(notebook, folder: Path, monkeypatch) -> None:
    """Run it in a folder, by a kernel that finds this checkout's code and has no network."""
    from nbclient import NotebookClient

    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(folder / ".jupyter"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()


def text_of(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures_of(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_shows_what_it_promises(notebook, tmp_path, monkeypatch):
    execute(notebook, tmp_path, monkeypatch)
    cells = {cell.id: cell for cell in notebook.cells}
    for cell in cells.values():
        if cell.cell_type == "code":
            assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source
    assert cells["install"].outputs == [], "budgetnet can be imported, so nothing is installed"
    assert [name for name, cell in cells.items() if cell.cell_type == "code" and pictures_of(cell)] == [
        "data",
        "curves",
        "mistakes",
    ]
    parameters = int(
        re.search(r"([\d,]+) trainable parameters \(budget 60,000\)", text_of(cells["train"]))[1].replace(",", "")
    )
    assert 50_000 < parameters <= 60_000
    accuracy = float(re.search(r"^accuracy +([\d.]+) %", text_of(cells["evaluate"]), re.MULTILINE)[1])
    assert accuracy > 90
    assert "gaussian_noise" in text_of(cells["evaluate"])
    assert "\x1b" not in text_of(cells["train"])
    assert text_of(cells["predict"]).splitlines()[:2] == ["runs/submission.csv: 359 rows", "ID,Labels"]
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".jupyter"}


def test_without_budgetnet_the_install_cell_installs_the_checkout_or_asks_where_it_is(notebook, tmp_path, monkeypatch):
    """The cell as Python, its one magic line as a call."""
    (install,) = (cell.source for cell in notebook.cells if cell.id == "install")
    program, count = re.subn(r"%pip install --quiet \"(.*)\"", r'installed.append(f"\1")', install)
    assert count == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="set SOURCE"):
        exec(program, {"installed": []})
    installed: list[str] = []
    exec(program.replace('SOURCE = ""', 'SOURCE = "git+https://host/budgetnet"'), {"installed": installed})
    (tmp_path / "src" / "budgetnet").mkdir(parents=True)
    exec(program, {"installed": installed})
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    exec(program, {"installed": installed})
    assert installed == [
        "budgetnet[picture] @ git+https://host/budgetnet",
        f"budgetnet[picture] @ {tmp_path.as_uri()}",
        f"budgetnet[picture] @ {tmp_path.as_uri()}",
    ]
