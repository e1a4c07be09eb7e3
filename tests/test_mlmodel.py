"""The model that a run leaves in MLflow: by MLflow's own server, and loaded in Python, it says what the run does."""

import base64
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import licences
import numpy as np
import pytest
import torch
import yaml
from mlflow_server import free_port, process
from packaging.requirements import Requirement
from PIL import Image

import budgetnet
from budgetnet import __version__, mlclient, mlmodel
from budgetnet.cli import main
from budgetnet.errors import CheckpointError
from budgetnet.inputs import normalize

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "recipes" / "smoke.yaml")
PAGE = (ROOT / "docs" / "deploy.md").read_text()

# An environment in which only what the model pins is installed, with what that needs, and budgetnet is not.
PINNED_ALONE = """
import importlib.machinery, json, os, sys
import no_network

no_network.install()
absent = set(json.loads(os.environ["ABSENT"]))
sys.path[:] = [entry for entry in sys.path if not os.path.isdir(os.path.join(entry, "budgetnet"))]


class Present(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)


sys.meta_path[:] = [Present if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder, with a run of no score that is cifar@champion."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(folder)
        training = [
            "train",
            SMOKE,
            "--epochs",
            "1",
            "--train-size",
            "64",
            "--no-report",
            "--quiet",
            "--output",
            "first",
        ]
        assert main(training) == 0
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        assert main(["register", "first", "--name", "cifar", "--alias", "champion"]) == 0
        yield folder


@pytest.fixture(scope="module")
def logged(place):
    (found,) = (place / "mlruns" / "models").glob("*/artifacts")
    return found


@pytest.fixture(scope="module")
def server(place, logged):
    """The port of a server started as docs/deploy.md says, where there is nothing but what the model asks for."""
    (line,) = re.findall(r"^(mlflow models serve .*--env-manager local.*)$", PAGE, re.MULTILINE)
    port = free_port()
    program, *arguments = shlex.split(line.replace("5001", str(port)))
    (place / "sitecustomize.py").write_text(PINNED_ALONE)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # where uvicorn is
        "PYTHONPATH": os.pathsep.join([str(place), os.environ["PYTHONPATH"]]),
        "ABSENT": json.dumps(absent((logged / "requirements.txt").read_text().split())),
    }
    with process([sys.executable, "-m", program, *arguments], place, environment, f"http://127.0.0.1:{port}/ping"):
        yield port


def absent(requirements):
    """The modules of all that is installed here and would not be, if only these were."""
    installed, wanted = licences.installed(), [Requirement(line) for line in requirements]
    needed = set()
    while wanted:
        name = licences.plain(wanted.pop().name)
        if name in needed or name not in installed:
            continue
        needed.add(name)
        asked = map(Requirement, installed[name].requires or [])
        wanted += [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert {"mlflow", "torch", "uvicorn", "pillow"} <= needed
    modules = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not {licences.plain(package) for package in packages} & needed
    }
    assert {"onnx", "onnxruntime", "safetensors", "jsonargparse"} <= modules
    return sorted(modules - {"budgetnet"})  # which the model brings


def ask(port, body):
    """The status and the answer, both as the server gives them."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", content, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(question, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def text_of(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def pixels(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


SMALL = pixels(3, 32, 32, 3)
LARGE, OTHER = pixels(50, 70, 3), pixels(50, 40, 3)
QUESTIONS = {
    "pixels": ({"inputs": SMALL.tolist()}, [*SMALL]),
    "pixels of other sizes": (
        {"inputs": [LARGE.tolist(), OTHER.tolist(), SMALL[0].tolist()]},
        [LARGE, OTHER, SMALL[0]],
    ),
    "pixels by row": ({"instances": [{"image": SMALL[0].tolist()}]}, [SMALL[0]]),
    "pictures": ({"inputs": [text_of(LARGE), text_of(SMALL[0])]}, [LARGE, SMALL[0]]),
    "one picture": ({"inputs": text_of(LARGE)}, [LARGE]),
    "pictures by name": ({"inputs": {"image": [text_of(LARGE)]}}, [LARGE]),
    "a picture as a browser writes it": ({"inputs": [f"data:image/png;base64,{text_of(LARGE)}"]}, [LARGE]),
    "pictures by row": ({"instances": [{"image": text_of(LARGE)}, {"image": text_of(OTHER)}]}, [LARGE, OTHER]),
    "records": ({"dataframe_records": [{"image": text_of(LARGE)}]}, [LARGE]),
    "a table": (
        {"dataframe_split": {"columns": ["image"], "data": [[text_of(LARGE)], [text_of(OTHER)]]}},
        [LARGE, OTHER],
    ),
    "both": ({"inputs": [text_of(LARGE), SMALL[0].tolist()]}, [LARGE, SMALL[0]]),
    "more than go through the network at once": ({"inputs": [text_of(OTHER)] * 70}, [OTHER] * 70),
    "nothing": ({"inputs": []}, []),
}


def agrees(rows, model, images):
    """Whether the rows of an answer say what the run's classifier does."""
    expected = model.predict_proba(images)
    assert len(rows) == len(images)
    for row, each in zip(rows, expected, strict=True):
        assert list(row) == ["class", "label", "probabilities"]
        assert list(row["probabilities"]) == list(model.classes)
        np.testing.assert_allclose(list(row["probabilities"].values()), each, atol=1e-5)
        assert row["label"] == np.argmax(list(row["probabilities"].values()))
        assert row["class"] == model.classes[row["label"]]
    return True


@pytest.mark.parametrize("kind", QUESTIONS)
def test_the_server_answers_pixels_and_pictures_as_the_run_does(server, place, kind):
    question, images = QUESTIONS[kind]
    status, answer = ask(server, question)
    assert (status, list(answer)) == (200, ["predictions"]), answer
    assert agrees(answer["predictions"], budgetnet.load(place / "first"), images)


def test_the_server_answers_the_example_that_is_logged_with_the_model(server, logged):
    status, answer = ask(server, (logged / "serving_input_example.json").read_bytes())
    assert (status, len(answer["predictions"])) == (200, 2)


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("base64")), reason="there is no curl: apt-get install curl"
)
def test_what_the_docs_ask_by_curl_is_answered(server, place):
    (block,) = re.findall(r"```sh\n([^`]*curl [^`]*)```", PAGE)
    Image.fromarray(LARGE).save(place / "photo.jpg", quality=90)
    done = subprocess.run(
        ["sh", "-c", block.replace("5001", str(server))], cwd=place, capture_output=True, text=True, timeout=60
    )
    answers = [json.loads(line)["predictions"] for line in re.sub(r"\}(?=\{)", "}\n", done.stdout).splitlines()]
    assert len(answers) == block.count("curl ")
    assert agrees(answers[0], budgetnet.load(place / "first"), [Image.open(place / "photo.jpg")])


WRONG = {
    "no base64": (
        ["hello!"],
        "image 0: found text that is no base64 (Only base64 data is allowed), expected that of a PNG",
    ),
    "no ascii": (["é"], "image 0: found text that is no base64 "),
    "no picture": (
        ["aGVsbG8="],
        "image 0: found no readable image (of no known format), expected PNG, JPEG or the like",
    ),
    "a damaged picture": ([text_of(SMALL[0]), text_of(LARGE)[:400]], "image 1: found no readable image ("),
    "normalised": ([[[[0.5, 0.5, 0.5]]]], "image 0: found numbers with fractions, expected integers from 0 to 255"),
    "too bright": ([[[[1, 2, 300]]]], "image 0: found 300 among the pixels, expected integers from 0 to 255"),
    "too dark": ([[[[1, -2, 3]]]], "image 0: found -2 among the pixels, expected integers from 0 to 255"),
    "beyond 64 bits": ([[[[1, 2, 10**30]]]], "image 0: found neither the text of a picture in base64 nor integers"),
    "uneven": ([[[[1, 2, 3], [1, 2]]]], "image 0: found neither the text of a picture in base64 nor integers"),
    "nothing": ([None], "image 0: found neither the text of a picture in base64 nor integers"),
    "grey": (
        SMALL[..., 0].tolist(),
        "image 0: found pixels of shape (32, 32), expected a list of images of (height, wid",
    ),
    "one image": (
        SMALL[0].tolist(),
        "image 0: found pixels of shape (32, 3), expected a list of images of (height, wid",
    ),
    "with alpha": (
        [pixels(8, 8, 4).tolist()],
        "image 0: found pixels of shape (8, 8, 4), expected a list of images of (h",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused_with_status_400_and_a_sentence(server, kind):
    images, words = WRONG[kind]
    status, answer = ask(server, {"inputs": images})
    assert (status, answer["error_code"]) == (400, "BAD_REQUEST")
    assert answer["message"].startswith(words)
    assert len(answer["message"].splitlines()) == 1
    assert "stack_trace" not in answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"hello", "Ensure that input is a valid JSON"),
        ({"images": []}, "exactly one of the input fields"),
        ({"dataframe_records": [{"picture": "x"}]}, "Model is missing inputs ['image']"),
        ({"dataframe_records": [{"image": SMALL[0].tolist()}]}, "should be either scalar value"),
    ],
)
def test_what_mlflow_itself_refuses_has_status_400_too(server, body, words):
    status, answer = ask(server, body)
    assert status == 400
    assert words in answer["message"]
    assert "stack_trace" not in answer


# ---------------------------------------------------------------------------------------------------- in Python


@pytest.fixture
def quiet(monkeypatch):
    """What MLflow warns of is its own; and the path that it puts the model's source on is this test's alone."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    with mlclient.silence():
        yield


def test_loaded_as_pyfunc_and_as_torch_it_says_what_the_run_does(place, quiet):
    import mlflow
    import pandas

    model = budgetnet.load(place / "first")
    run_id = json.loads((place / "first" / "mlflow.json").read_text())["run_id"]
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    for images, given in (
        ([*SMALL], SMALL),
        ([LARGE, OTHER], pandas.DataFrame({"image": [text_of(LARGE), text_of(OTHER)]})),
        ([LARGE], pandas.DataFrame({"image": [base64.b64decode(text_of(LARGE))]})),
        ([LARGE], {"image": LARGE[None]}),
    ):
        found = loaded.predict(given)
        assert isinstance(found, pandas.DataFrame)
        assert agrees(found.to_dict("records"), model, images)
    assert len(loaded.predict(loaded.input_example)) == 2
    with pytest.raises(mlflow.MlflowException, match=r"^image 0: found numbers with fractions"):
        loaded.predict(SMALL / 255)

    network = mlflow.pytorch.load_model("models:/cifar@champion")
    with torch.no_grad():
        logits = network(normalize(torch.from_numpy(SMALL).permute(0, 3, 1, 2), model.mean, model.std))
    np.testing.assert_allclose(logits.softmax(1), model.predict_proba(SMALL), atol=1e-5)


def test_a_network_that_is_damaged_is_no_fault_of_the_picture(quiet):
    from mlflow import MlflowException

    def network(images):
        return torch.full((len(images), 2), float("nan"))

    served = mlmodel.Served(network=network, classes=("a", "b"), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=8)
    with pytest.raises(MlflowException, match=r"^the network gives numbers that are not finite") as caught:
        served.predict({"image": SMALL})
    assert caught.value.get_http_status_code() == 500


def test_a_model_of_another_format_is_refused(logged, tmp_path, quiet):
    about = json.loads((logged / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(about | {"format": 7, "budgetnet": "9.0"}))
    with pytest.raises(CheckpointError, match=r"has format 7, expected 1: budgetnet 9\.0 wrote it"):
        mlmodel._load_pyfunc(str(tmp_path))


# ---------------------------------------------------------------------------------------------------- what is logged


def test_the_environment_pins_what_serving_imports_at_the_versions_in_use_and_no_more(logged):
    pins = licences.pinned()
    expected = [f"{name}=={pins[name]}" for name in ("mlflow", "torch", "numpy", "pillow")]
    assert (logged / "requirements.txt").read_text().split() == expected
    conda = yaml.safe_load((logged / "conda.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": expected}
    environment = yaml.safe_load((logged / "python_env.yaml").read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["dependencies"] == ["-r requirements.txt"]


def test_the_model_holds_a_graph_and_the_source_of_budgetnet_and_no_pickle_of_code(logged):
    files = {str(file.relative_to(logged)) for file in logged.rglob("*") if file.is_file()}
    assert sorted(files - {"registered_model_meta"}) == [  # MLflow writes that one when it serves a model by name
        "MLmodel",
        "classifier.json",
        "code/budgetnet.zip",
        "conda.yaml",
        "data/model.pt2",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ]
    with zipfile.ZipFile(logged / "code" / "budgetnet.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    package = ROOT / "src"
    assert held == {str(path.relative_to(package)): path.read_bytes() for path in package.rglob("*.py")}
    assert sum(len(content) for content in held.values()) > 2 * (logged / "code" / "budgetnet.zip").stat().st_size
    found = yaml.safe_load((logged / "MLmodel").read_text())
    assert found["flavors"]["python_function"]["loader_module"] == "budgetnet.mlmodel"
    assert found["flavors"]["python_function"]["budgetnet"] == __version__
    assert found["model_size_bytes"] == pytest.approx(
        sum(file.stat().st_size for file in logged.rglob("*") if file.is_file()), abs=2000
    )
