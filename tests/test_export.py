"""A model written for other programs says there what it says here, or is not written."""

import functools
import http.server
import io
import json
import pathlib
import re
import sys
import threading
import zipfile
from dataclasses import asdict, replace

import deploy
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from chromium import CHROMIUM
from PIL import Image
from torch import nn

import budgetnet
from budgetnet import browser, checkpoint, cli, data, deployed, export, hub, models
from budgetnet.checkpoint import load_classifier, save_classifier
from budgetnet.classifier import Classifier, pixels_of
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.errors import BudgetError, BudgetnetError, CheckpointError, ConfigError

ROOT = pathlib.Path(__file__).parent.parent
RUNTIME = ROOT / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.js"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the digits that has learnt something."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    recipe = ROOT / "recipes" / "smoke.yaml"
    budgetnet.train(recipe, output=folder, epochs=5, track=False, report=False, quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return load_classifier(run)


@pytest.fixture(scope="module")
def raw(digits):
    """Real images as a program elsewhere has them: uint8 (n, h, w, 3)."""
    return digits.test.images[:40].permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def expected(model, digits):
    return model.logits(digits.test.images[:40]).softmax(1).numpy()


def exported(run, path, *options):
    assert cli.main(["export", str(run), "--output", str(path), "--limit", "150", *options]) == 0
    return path


# ---------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.2)])
def test_an_onnx_file_takes_raw_pixels_of_any_number_and_knows_its_classes(
    precision, close, run, raw, expected, tmp_path, capsys
):
    path = exported(run, tmp_path / "m.onnx", "--precision", precision, "--json")
    told = json.loads(capsys.readouterr().out)
    # As somebody would who has the file and nothing of ours.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["n", 32, 32, 3])
    assert (made.name, made.type, made.shape) == ("probabilities", "tensor(float)", ["n", 10])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(about["precision"]) == precision
    for n in (1, 7, 40):
        probabilities = session.run(None, {"images": raw[:n]})[0]
        assert abs(probabilities - expected[:n]).max() < close
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (told["format"], told["precision"], told["bytes"]) == ("onnx", precision, path.stat().st_size)
    assert (told["images"], told["split"]) == (150, "val")
    assert told["largest_difference"].keys() == told["latency"].keys() == {"1", "7"}
    assert told["points_lost"] == pytest.approx(100 * (told["original_accuracy"] - told["accuracy"]))


def test_int8_is_smaller_than_fp16_and_that_than_fp32_where_weights_are_many(digits, tmp_path):
    torch.manual_seed(0)
    network = models.build(ModelConfig(name="wrn_10_1", width=64), 10).eval()
    large = Classifier(
        network=network,
        model=ModelConfig(name="wrn_10_1", width=64),
        classes=digits.classes,
        mean=digits.mean,
        std=digits.std,
        image_size=32,
    )
    inputs = np.zeros((2, 3, 32, 32), np.float32)
    sizes = [len(deployed.to_onnx(large, precision, inputs)) for precision in ("fp32", "fp16", "int8")]
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 1.8 * sizes[2]


@pytest.mark.parametrize("name", ["enhanced", "whitened_cnn", "wrn_10_1", "mobilenet_v2", "convnext_atto"])
def test_the_graph_calls_its_parts_what_the_network_calls_them(name):
    torch.manual_seed(0)
    config = ModelConfig(name=name, width=8)
    network = models.build(config, 3, image_size=16).eval()
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    small = Classifier(network=network, model=config, classes=("a", "b", "c"), image_size=16, **statistics)
    graph = onnx.load_from_string(deployed.to_onnx(small, "fp32", None)).graph
    modules = {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    nodes = [node.name for node in graph.node]
    assert len(set(nodes)) == len(nodes)
    kinds = ("Conv", "Gemm", "MatMul")
    assert {node.input[1].removesuffix(".weight") for node in graph.node if node.op_type in kinds} == modules
    state = network.state_dict()
    for tensor in graph.initializer:
        assert "::" not in tensor.name
        if tensor.name in state and state[tensor.name].ndim > 1:
            assert tuple(tensor.dims) in (state[tensor.name].shape, state[tensor.name].shape[::-1])


# ---------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_program_of_torch_needs_nothing_of_ours_and_holds_its_classes(precision, run, raw, expected, tmp_path):
    path = exported(run, tmp_path / "m.pt2", "--format", "torch", "--precision", precision)
    extra = {"about.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(json.loads(extra["about.json"])["classes"])[3] == "3"
    for n in (1, 7, 40):
        found = program(torch.from_numpy(raw[:n])).numpy()
        assert abs(found - expected[:n]).max() < (1e-5 if precision == "fp32" else 5e-3)


def test_no_file_that_is_written_holds_a_pickle_of_the_network(run, tmp_path):
    """torch's own format has small ones, of sample inputs; the weights are plain bytes."""
    path = exported(run, tmp_path / "m.pt2", "--format", "torch")
    with zipfile.ZipFile(path) as archive:
        weights = [name for name in archive.namelist() if "/weights/" in name and "config" not in name]
        assert len(weights) > 10
        assert not [name for name in weights if zipfile.is_zipfile(io.BytesIO(archive.read(name)))]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_gets_two_files_that_say_the_same(precision, run, raw, expected, tmp_path):
    openvino = pytest.importorskip("openvino", reason="there is no openvino: pip install openvino")
    path = exported(run, tmp_path / "m.xml", "--format", "openvino", "--precision", precision)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    loaded = openvino.Core().read_model(path)
    assert json.loads(loaded.get_rt_info(["budgetnet", "classes"]).value)[3] == "3"
    # Where the processor can, OpenVINO would compute in bfloat16.
    compiled = openvino.Core().compile_model(loaded, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 7):
        assert abs(compiled(raw[:n])[0] - expected[:n]).max() < {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2}[precision]


def test_openvino_that_is_missing_is_told_in_a_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "openvino" else True)
    assert cli.main(["export", str(run), "--format", "openvino", "--output", str(tmp_path / "m.xml")]) == 1
    assert capsys.readouterr().err == "budgetnet: error: --format openvino needs openvino: pip install openvino\n"
    assert not list(tmp_path.iterdir())


def test_a_model_file_is_read_back_exactly_and_in_16_bits_nearly(run, model, raw, expected, tmp_path):
    whole = load_classifier(exported(run, tmp_path / "m.safetensors", "--format", "safetensors"))
    assert checkpoint.digest({}, whole.network.state_dict()) == checkpoint.digest({}, model.network.state_dict())
    path = exported(run, tmp_path / "h.safetensors", "--format", "safetensors", "--precision", "fp16")
    half = load_classifier(path)
    assert {value.dtype for value in half.network.parameters()} == {torch.float32}
    assert 0 < abs(half.predict_proba(raw) - expected).max() < 5e-3
    for key, value in half.network.state_dict().items():
        own = model.network.state_dict()[key]
        assert torch.equal(value, own.half().float() if own.ndim > 1 else own), key


# ---------------------------------------------------------------------------------------------------- Hugging Face


def test_a_folder_for_the_hub_is_read_back_exactly(run, model, tmp_path):
    folder = exported(run, tmp_path / "hub", "--format", "hub")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = budgetnet.load(folder)
    assert checkpoint.digest({}, back.network.state_dict()) == checkpoint.digest({}, model.network.state_dict())
    assert replace(back, network=model.network) == model
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["3"] == "3"
    assert config["num_parameters"] == model.parameters
    assert config["model"] == asdict(model.model)


def test_the_card_has_in_its_metadata_what_the_run_measured(run, tmp_path):
    card = (exported(run, tmp_path / "hub", "--format", "hub") / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    found = yaml.safe_load(metadata)
    read = budgetnet.runs.read(run)
    assert (found["library_name"], found["pipeline_tag"]) == ("budgetnet", "image-classification")
    results = {result["dataset"]["split"]: result["metrics"] for result in found["model-index"][0]["results"]}
    assert results["test"][0] == {"type": "accuracy", "name": "accuracy", "value": read.test.accuracy}
    assert results["validation"][0]["value"] == read.find("final.val_accuracy", float)
    assert f"{100 * read.test.accuracy:.2f} % of {read.test.n}" in text
    assert "    name: residual" in text


def test_a_model_of_which_nothing_is_known_has_a_card_that_says_so(model):
    text = hub.card("x", replace(model, provenance={}), {})
    assert "model-index" not in text
    assert "Nothing: the file says of no measurement." in text


def test_names_from_a_file_are_text_on_the_card(model):
    names = ("</details><script>", "[a](http://x)", *model.classes[2:])
    text = hub.card("# `x`", replace(model, classes=names, provenance={}), {}).split("---\n", 2)[2]
    assert "<script>" not in text
    assert "\\[a\\]\\(http://x\\)" in text


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_file_that_differs_is_not_written_and_what_was_there_stays(run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an earlier one")
    usual = deployed.load_onnx

    def off(path):
        return lambda images: np.roll(usual(path)(images), 1, axis=1)

    monkeypatch.setattr(deployed, "load_onnx", off)
    assert cli.main(["export", str(run), "--output", str(path), "--limit", "50"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"budgetnet: error: .*m\.onnx is not written: loaded again, .* differs by .*\n", err)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"an earlier one"
    for load in ("load_onnx", "load_safetensors"):
        monkeypatch.setattr(deployed, load, lambda path: lambda images: np.full((len(images), 10), np.nan))
    assert cli.main(["export", str(run), "--output", str(path), "--limit", "50"]) == 1
    assert cli.main(["export", str(run), "--format", "hub", "--output", str(tmp_path / "hub"), "--limit", "50"]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def comparison(**changes):
    fields = {
        "format": "onnx",
        "precision": "int8",
        "images": 1000,
        "split": "val",
        "largest_difference": {1: 0.1, 7: 0.2},
        "agreement": 0.97,
        "original_accuracy": 0.9,
        "accuracy": 0.895,
        "points_lost": 0.5,
        "original_bytes": 4,
        "bytes": 1,
        "latency": {},
    }
    return export.Comparison(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points_lost": 1.2}, "loses 1.20 points of accuracy .* expected at most 1; .* or --max-loss"),
        ({"agreement": 0.8}, "80.00% of the images are of the same class, expected 90% or more"),
        ({"precision": "fp32"}, "a probability differs by 0.2, expected at most 0.0001"),
        ({"precision": "fp16"}, "a probability differs by 0.2, expected at most 0.05"),
        ({"largest_difference": {1: 0.1, 7: float("nan")}}, "a probability differs by nan"),
        ({"largest_difference": {1: float("nan"), 7: 0.1}}, "a probability differs by nan"),
    ],
)
def test_what_a_file_may_differ_by_depends_on_its_precision(changes, message):
    export.require_likeness(comparison(), pathlib.Path("m.onnx"), 1.0)
    with pytest.raises(BudgetnetError, match=message):
        export.require_likeness(comparison(**changes), pathlib.Path("m.onnx"), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torch", "--precision", "int8", "--output", "m.pt2"], "written in fp32 or fp16, not in int8"),
        (["--output", "m.pt2"], "expected a name that ends in .onnx"),
        (["--format", "torch", "--output", "m.pt2", "--page"], "leave out --page"),
        (["--output", "m.onnx", "--max-loss", "-1"], "expected 0 or more percentage points"),
        (["--output", "m.onnx", "--max-loss", "nan"], "expected 0 or more percentage points"),
        (["--output", "m.onnx", "--limit", "0"], "expected 1 or more images"),
        (["--output", "nowhere/m.onnx"], "there is no folder nowhere"),
        (["--format", "hub", "--output", "full"], "not an empty folder"),
        (["--output", "m.onnx", "--dataset", "cifar10", "--data", "."], "expected cifar-10-batches"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(options, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert cli.main(["export", str(run), *options]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_program_of_torch_is_no_model_to_load(run, tmp_path):
    path = exported(run, tmp_path / "m.pt2", "--format", "torch")
    for other in (path, path.with_suffix(".onnx")):
        other.write_bytes(path.read_bytes())
        with pytest.raises(CheckpointError, match="is for other programs: give the run that it was exported from"):
            budgetnet.load(other)


# ---------------------------------------------------------------------------------------------------- timm

TIMM = '''
"""Stands in for timm, which is not installed here: two networks of the forms that it has."""
from torch import nn

def create_model(name, pretrained, num_classes, in_chans):
    assert pretrained is False
    if name == "resnet":
        network = nn.Sequential()
        network.conv1 = nn.Conv2d(in_chans, 8, 7, stride=2, padding=3, bias=False)
        network.maxpool = nn.MaxPool2d(3, 2, 1)
        network.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        network.pool = nn.AdaptiveAvgPool2d(1)
        network.flatten = nn.Flatten()
        network.fc = nn.Linear(16, num_classes)
        return network
    if name == "fixed":
        return nn.Sequential(nn.Conv2d(in_chans, 8, 16, stride=16), nn.Flatten(), nn.Linear(8 * 14 * 14, num_classes))
    raise RuntimeError(f"Unknown model ({name})")
'''


@pytest.fixture
def _timm(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "timm.py").write_text(TIMM)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    sys.modules.pop("timm", None)


@pytest.mark.usefixtures("_timm")
def test_a_network_of_timm_is_for_small_images_fits_the_budget_and_is_saved_and_read_like_any_other(tmp_path):
    config = ModelConfig(name="timm:resnet")
    network = models.build(config, 10, image_size=32, budget=2000)
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.bias) == ((3, 3), (1, 1), None)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    seen = []
    network.conv2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2:]))
    network(torch.zeros(1, 3, 32, 32))
    assert seen == [(32, 32)]
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "image_size": 32}
    own = Classifier(network=network.eval(), model=config, classes=tuple("abcdefghij"), **statistics)
    save_classifier(tmp_path / "m.safetensors", own)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(load_classifier(tmp_path / "m.safetensors").logits(images), own.logits(images))


@pytest.mark.usefixtures("_timm")
def test_a_network_of_timm_over_the_budget_or_of_another_width_is_refused():
    with pytest.raises(BudgetError, match=r"timm:resnet has 1,554 .* 554 over .* 1,000; raise the budget or choose"):
        models.build(ModelConfig(name="timm:resnet"), 10, budget=1000)
    for width in (16, "auto"):
        with pytest.raises(ConfigError, match=r"timm:resnet has one size: leave out model\.width"):
            models.build(ModelConfig(name="timm:resnet", width=width), 10, budget=9000)
    with pytest.raises(ConfigError, match=r"timm has no network nothing, .*Unknown model"):
        models.build(ModelConfig(name="timm:nothing"), 10)
    with pytest.raises(ConfigError, match="timm:fixed does not take images of 32x32"):
        models.build(ModelConfig(name="timm:fixed"), 10)


def test_timm_that_is_missing_and_names_that_would_fetch_are_told_in_a_line():
    if "timm" not in sys.modules:
        with pytest.raises(ConfigError, match=r"needs the package timm: pip install timm|cannot be imported"):
            models.build(ModelConfig(name="timm:resnet18"), 10)
    for name in ("hf-hub:owner/model", "local-dir:/tmp", "", "a/b", "resnet18.a1_in1k"):
        with pytest.raises(ConfigError, match="is no name of timm's"):
            models.build(ModelConfig(name=f"timm:{name}"), 10)


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_lets_nothing_in_but_what_lies_beside_it(model, tmp_path):
    browser.write(tmp_path / "index.html", "</script> 1.onnx", replace(model, classes=("<b>", *model.classes[1:])))
    text = (tmp_path / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'sha256-" in text
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', text) == ["node_modules/onnxruntime-web/dist/ort.wasm.min.js"]
    assert "<b>" not in text
    assert text.count("</script>") == 3
    assert not re.findall("@[a-z]+@", text)


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    """The address of a folder with a model and its page, on a server of plain files."""
    if not RUNTIME.is_file():
        pytest.skip(f"there is no onnxruntime-web: npm install --no-save {browser.RUNTIME}, in the checkout")
    folder = tmp_path_factory.mktemp("site")
    exported(run, folder / "m.onnx", "--page")
    (folder / "node_modules").symlink_to(ROOT / "node_modules")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_the_page_says_of_a_dropped_picture_what_the_command_says(site, model):
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install playwright")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    large, small = Image.fromarray(noise).resize((301, 97)), Image.fromarray(noise[:20, :11])
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()
        page.set_default_timeout(30_000)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.goto(f"{site}/index.html")
        page.locator("#status", has_text="Ready").wait_for()
        loaded = len(asked)
        for picture in (large, small):
            file = io.BytesIO()
            picture.save(file, "PNG")
            # As a browser hands over what somebody drops.
            transfer = page.evaluate_handle(
                """bytes => {
                  const transfer = new DataTransfer();
                  transfer.items.add(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
                  return transfer;
                }""",
                list(file.getvalue()),
            )
            page.locator("#note").evaluate("note => { note.textContent = ''; }")
            page.dispatch_event("body", "drop", {"dataTransfer": transfer})
            page.locator("#note", has_text="ms in this browser").wait_for()
            seen = page.locator("#seen").evaluate(
                "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 32, 32).data)"
            )
            shown = np.array(seen, np.uint8).reshape(32, 32, 4)[..., :3]
            np.testing.assert_array_equal(shown, pixels_of(picture, 32)[0].permute(1, 2, 0))
            rows = page.locator("#bars li").evaluate_all(
                "rows => rows.map(row => [row.firstChild.textContent, Number(row.dataset.probability)])"
            )
            own = model.predict_proba(picture)[0]
            assert [name for name, _ in rows[:1]] == [model.classes[own.argmax()]]
            for name, probability in rows:
                assert probability == pytest.approx(own[model.classes.index(name)], abs=1e-5)
        chromium.close()
    assert not wrong
    assert not [address for address in asked[loaded:] if not address.startswith(("blob:", "data:"))]
    assert all(address.startswith((site, "blob:", "data:")) for address in asked)


def test_the_documentation_shows_the_table_that_the_record_holds():
    page = deploy.PAGE.read_text()
    assert deploy.with_table(page) == page, "run `make table`"
    assert browser.RUNTIME in page


def test_the_version_of_the_runtime_is_the_one_that_ci_installs():
    assert "src/budgetnet/browser.py" in (ROOT / ".ci" / "run").read_text()
    assert re.search(r'^RUNTIME = "onnxruntime-web@\d+\.\d+\.\d+"$', pathlib.Path(browser.__file__).read_text(), re.M)


def test_stages_of_ones_own_are_exported_too(digits, tmp_path):
    torch.manual_seed(0)
    stages = [StageConfig(block=kind, depth=1, width=8) for kind in ("basic", "inverted", "convnext")]
    config = ModelConfig(name="residual", stages=stages)
    network = models.build(config, 10).eval()
    own = Classifier(
        network=network, model=config, classes=digits.classes, mean=digits.mean, std=digits.std, image_size=32
    )
    compared = export.export(own, pathlib.Path("own"), tmp_path / "m.onnx", digits, split="test", limit=20)
    assert compared.largest_difference[7] < 1e-5
