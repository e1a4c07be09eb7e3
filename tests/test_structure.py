"""Imports follow the flow of the data, and nothing heavy is imported before it is needed."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "budgetnet"
ORDER = [
    "errors",
    "masking",
    "terminal",
    "config",
    "devices",
    "memory",
    "usage",
    "files",
    "pickles",
    "arrays",
    "download",
    "decoding",
    "tarballs",
    "tables",
    "workers",
    "cache",
    "images",
    "shards",
    "cifar",
    "audit",
    "splits",
    "sources",
    "data",
    "verification",
    "draws",
    "policies",
    "augment",
    "mixing",
    "shift",
    "models",
    "engine",
    "saliency",
    "evaluate",
    "remedies",
    "robustness",
    "optim",
    "classifier",
    "checkpoint",
    "origin",
    "deployed",
    "folder",
    "distill",
    "start",
    "launcher",
    "distributed",
    "advice",
    "training",
    "metrics",
    "runs",
    "progress",
    "markup",
    "browser",
    "hub",
    "export",
    "words",
    "lineage",
    "mlmodel",
    "mlclient",
    "mlrun",
    "store",
    "registry",
    "tracking",
    "recorder",
    "resume",
    "train",
    "seeds",
    "ablate",
    "predict",
    "pictures",
    "charts",
    "page",
    "gallery",
    "evidence",
    "report",
    "album",
    "api",
    "compare",
    "compare_page",
    "compress",
    "fit",
    "space",
    "standings",
    "studies",
    "sweep",
    "guard",
    "serve",
    "ui",
    "cli",
]
LAZY = {
    "mlflow",
    "optuna",
    "sqlalchemy",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "sklearn",
    "scipy",
    "PIL",
    "pyarrow",
    "jsonargparse",
    "safetensors",
    "openvino",
    "timm",
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Each import of a module of ours or of others, and whether it happens when the file is imported."""
    tree = ast.parse(path.read_text())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in checked or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        found += [(name, node in tree.body) for name in names]
    return found


def room(dotted: str) -> str:
    """The module or package of ours that a dotted name is in, or nothing."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "budgetnet" and len(parts) > 1 and parts[1] in ORDER else ""


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_stands_before_it_and_nothing_heavy_at_the_top(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for name, at_import in imports(path):
        other = room(name)
        assert not other or other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {name}"
        assert not at_import or name.split(".")[0] not in LAZY, f"{own} imports {name} at the top"


def test_every_module_has_its_place_in_the_order():
    modules = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("[!_]*.py")}
    assert modules - {"py"} == {*ORDER}
