"""Weights load through safetensors and torch's reader of weights alone, data through readers of ours, and nothing else.

A scan of the source: of each call or name that can run what a file says, where it may stand.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("src", "benchmarks", "results", "reliability", "examples")
FILES = sorted(path for place in PLACES for path in (ROOT / place).rglob("*.py"))

NEVER = {
    *("pickle.load", "pickle.loads", "_pickle.load", "_pickle.loads", "cPickle.load", "dill", "cloudpickle", "joblib"),
    *(
        "pandas.read_pickle",
        "jsonpickle",
        "marshal",
        "shelve",
        "dbm",
        "eval",
        "exec",
        "compile",
        "__import__",
        "runpy",
        "code.InteractiveInterpreter",
    ),
    *("importlib.import_module", "codeop", "os.system", "os.popen", "os.execv", "pty", "zipimport"),
    *(
        "yaml.load_all",
        "yaml.full_load",
        "yaml.full_load_all",
        "yaml.unsafe_load",
        "yaml.unsafe_load_all",
        "yaml.Loader",
    ),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "torch.jit.load", "torch.hub"),
    *("torch.package", "torch.serialization.load", "torch.serialization.add_safe_globals", "torch.export.load"),
    *(
        "torch.serialization.safe_globals",
        "torch._dynamo",
        "numpy.fromfile",
        "numpy.lib.npyio.load",
        "scipy.io.loadmat",
    ),
    *("shutil.unpack_archive", "xml", "lxml", "sklearn.datasets.fetch_openml", "onnxruntime.SessionOptions.register"),
    *("tensorflow", "keras", "cffi", "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "copyreg"),
}
"""Modules and functions that may be named nowhere."""
ONLY_IN = {
    "pickle.Unpickler": {"src/budgetnet/pickles.py"},
    "pickle._Unpickler": {"src/budgetnet/pickles.py"},
    # A subclass of SafeLoader, and that.
    "yaml.SafeLoader": {"src/budgetnet/plainyaml.py"},
    # Files that the engine has itself exported, in a folder of its own: nothing imports an ONNX file of strangers.
    "onnx.load": {"src/budgetnet/engine.py"},
    "onnxruntime.InferenceSession": {"src/budgetnet/engine.py"},
    "tarfile.open": {"src/budgetnet/download.py"},
    "safetensors.torch.load": {"src/budgetnet/checkpoint.py"},
    "torch.load": {"src/budgetnet/checkpoint.py"},
    "zipfile.ZipFile": {
        *("src/budgetnet/checkpoint.py", "src/budgetnet/arrays.py", "reliability/mutations.py"),
    },
    "numpy.lib.format.open_memmap": set(),
    "numpy.memmap": {"src/budgetnet/arrays.py", "src/budgetnet/cache.py"},
    "PIL.Image.open": {  # in the second, of what it has compressed itself
        "src/budgetnet/decoding.py",
        "src/budgetnet/corruptions.py",
    },
}
ALLOWED = {
    # A script of others that the comparison is with, and runs on purpose; its torch.load is replaced.
    "benchmarks/airbench.py": {"torch.load", "exec", "compile"},
    # Plain PyTorch as people write it, which says of itself that it trusts the official files.
    "benchmarks/plain.py": {"pickle.load"},
    # Of names that stand there.
    "src/budgetnet/__init__.py": {"importlib.import_module"},
    # Of what an export has itself just written; `budgetnet.load` refuses such files.
    "src/budgetnet/deployed.py": {"torch.export.load"},
    # An archive that it writes; and the model that it is the loader of, in MLflow's process, which trusts it already.
    "src/budgetnet/mlmodel.py": {"zipfile.ZipFile", "mlflow.pytorch.load_model"},
}
"""What of the above is no reader of budgetnet's."""
METHODS = {
    "extractall",
    "extract",
    "load_module",
    "exec_module",
    "unpack_archive",
    "literal_eval",
    "read_pickle",
    "loads_all",
}
"""Names of methods that may be called on nothing."""


def names(tree: ast.AST) -> dict[str, str]:
    """What each name that a file imports stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """`torch.load` of whatever it is called here; nothing of what is no chain of names."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    first = known.get(node.id, node.id)
    return ".".join([first, *reversed(parts)]).replace("np.", "numpy.", 1)


def findings(source: str, file: str) -> list[str]:
    """What of a file's source loads in a way that it should not."""
    tree = ast.parse(source)
    known, found = names(tree), []

    def forbidden(name: str) -> bool:
        return any(name == never or name.startswith(f"{never}.") for never in NEVER)

    used = [
        node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute) and type(node.ctx) is ast.Load
    ]
    mentioned: list[tuple[ast.AST, str]] = [(node, dotted(node, known)) for node in used]
    mentioned += [(node, name) for node in ast.walk(tree) if isinstance(node, ast.Import) for name in known.values()]
    for node, name in mentioned:
        if forbidden(name):
            found.append(f"{node.lineno}: {name}")
        for only, files in ONLY_IN.items():
            if name == only and file not in files:
                found.append(f"{node.lineno}: {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func, known), {word.arg: word.value for word in node.keywords}

        def says(key: str, value: object, given: dict = given) -> bool:
            return isinstance(given.get(key), ast.Constant) and given[key].value is value

        if name == "torch.load" and not says("weights_only", True):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name in ("numpy.load", "numpy.lib.format.read_array") and "allow_pickle" in given:
            found.append(f"{node.lineno}: {name} with allow_pickle")
        if name == "numpy.load" and not says("allow_pickle", False) and file.startswith("src"):
            found.append(f"{node.lineno}: numpy.load in src")
        if name == "yaml.load":
            found.append(f"{node.lineno}: yaml.load")
        if name.startswith("subprocess.") and "shell" in given and not says("shell", False):
            found.append(f"{node.lineno}: {name} with a shell")
        if name == "PIL.Image.open" and "formats" not in given and file != "src/budgetnet/corruptions.py":
            found.append(f"{node.lineno}: an image of any format")
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            found.append(f"{node.lineno}: .{node.func.attr}()")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_loads_only_as_data(path):
    file = path.relative_to(ROOT).as_posix()
    found = [what.partition(": ")[2] for what in findings(path.read_text(), file)]
    assert [what for what in found if what not in ALLOWED.get(file, ())] == []


@pytest.mark.parametrize("file", ["benchmarks/airbench.py", "benchmarks/plain.py"])
def test_what_is_allowed_is_there(file):
    found = {what.partition(": ")[2] for what in findings((ROOT / file).read_text(), file)}
    assert found == ALLOWED[file]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.load(f)",
        "from pickle import loads; loads(b)",
        "import pickle as p; p.Unpickler(f)",
        "import pickle; class_ = pickle._Unpickler",
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import torch; torch.load(f, weights_only=maybe)",
        "from torch import load; load(f)",
        "import torch as t; t.jit.load(f)",
        "import torch; torch.serialization.add_safe_globals([x])",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import numpy; numpy.load(f)",
        "from numpy import load; load(f)",
        "import yaml; yaml.load(f)",
        "import yaml; yaml.load(f, Loader=yaml.SafeLoader)",
        "import yaml; yaml.unsafe_load(f)",
        "from yaml import full_load; full_load(f)",
        "import joblib; joblib.load(f)",
        "import marshal",
        "import shelve",
        "eval(text)",
        "exec(text)",
        "x = eval",
        "import importlib; importlib.import_module(name)",
        "import tarfile; tarfile.open(f)",
        "tar.extractall(folder)",
        "tar.extract(member)",
        "import shutil; shutil.unpack_archive(f)",
        "import zipfile; zipfile.ZipFile(f)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import subprocess; subprocess.Popen(text, shell=shell)",
        "import os; os.system(text)",
        "from os import popen; popen(text)",
        "import onnx; onnx.load(f)",
        "import onnxruntime; onnxruntime.InferenceSession(f)",
        "from PIL import Image; Image.open(f)",
        "import mlflow; mlflow.pytorch.load_model(uri)",
        "import ast; ast.literal_eval(text)",
    ],
)
def test_the_scan_finds_what_would_run_or_unpack_a_file(line):
    assert findings(line, "src/budgetnet/any.py")


@pytest.mark.parametrize(
    "line",
    [
        "import json; json.load(f)",
        "import pickle; pickle.dumps(x)",
        "import yaml; yaml.safe_load(text)",
        "import subprocess; subprocess.run(['git'], check=True)",
        "import re; re.compile(text)",
        "from safetensors.torch import save; save(x)",
        "model.eval()",
    ],
)
def test_the_scan_leaves_alone_what_does_not(line):
    assert findings(line, "src/budgetnet/any.py") == []
