"""The demo page's server: what it answers to pictures, to what is none, and to more than it can do at once."""

import base64
import http.client
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from serving import HOST, serving

from budgetnet import cache, checkpoint, colors, data, guard, models, serve, shift
from budgetnet.checkpoint import Classifier
from budgetnet.cli import main
from budgetnet.config import ModelConfig, StageConfig
from budgetnet.demo import Demo, Strengths, drawn_examples
from budgetnet.guard import Limits
from budgetnet.saliency import occlusion

ROOT = Path(__file__).parent.parent
CLASSES = ("red", "green", "blue")


def believe(images):
    """Three classes: how much of the upper left quarter's light is red, green and blue."""
    half = images.shape[2] // 2
    return (images[:, :, :half, :half].float() / 255).mean((2, 3)).mul(5).softmax(1)


def demo(predict=believe, size=32, **more):
    return Demo(
        name="colours",
        parameters=3,
        engine="a test",
        classes=CLASSES,
        image_size=size,
        predict=predict,
        examples=drawn_examples(size),
        **more,
    )


def showing(demo, limits=Limits()):  # noqa: B008
    """The port of a server that shows a model."""
    return serving(serve.application(demo, limits), limits)


@pytest.fixture(scope="module")
def port():
    with showing(demo()) as port:
        yield port


def ask(port, path, body=None, method=None):
    """Status, headers and content of an answer."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
        connection.request(method or ("GET" if body is None else "POST"), path, body)
        answer = connection.getresponse()
        content = answer.read()
        return (
            answer.status,
            answer.headers,
            json.loads(content) if "json" in answer.headers["content-type"] else content,
        )


def found(port, path, body=None):
    status, _, content = ask(port, path, body)
    assert status == 200, content
    return content


def refused(port, path, body=None, method=None):
    status, _, content = ask(port, path, body, method)
    assert list(content) == ["error"]
    assert "\n" not in content["error"]
    assert "Traceback" not in content["error"]
    return status, content["error"]


def random_pixels(height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


def shown(answer):
    """The pixels of the picture in an answer."""
    kind, _, text = answer["picture"].partition(",")
    assert kind == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


# Pictures


def test_a_picture_gets_the_networks_probabilities_and_what_the_network_saw(port):
    pixels = random_pixels()
    answer = found(port, "/api/predict", encoded(pixels))
    expected = believe(tensor(pixels)[None])[0]
    assert [one["class"] for one in answer["probabilities"]] == [*CLASSES]
    assert [one["probability"] for one in answer["probabilities"]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert (answer["label"], answer["class"]) == (int(expected.argmax()), CLASSES[expected.argmax()])
    assert np.array_equal(shown(answer), pixels)
    assert {*answer["milliseconds"]} == {"reading", "corrupting", "network"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_pictures_of_every_format_and_size_are_read_as_predict_reads_them(port, kind, tmp_path):
    picture = encoded(random_pixels(50, 71), kind)
    (tmp_path / f"picture.{kind.lower()}").write_bytes(picture)
    expected = data.read_images(tmp_path / f"picture.{kind.lower()}", 32).images[0]
    assert torch.equal(tensor(shown(found(port, "/api/predict", picture))), expected)


def claiming(width, height):
    """A PNG of a few bytes that says it is of this size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "found an empty body, expected a picture"),
        (b"GIF89a", "found no readable image"),
        (b"hello " * 1000, "no known format"),
        (encoded(random_pixels())[:-1000], "found no readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "no known format"),
        (claiming(8193, 8192), "found 8,193x8,192 pixels, expected at most 67,108,864"),
        (claiming(60_000, 60_000), "found no readable image|found 60,000x60,000 pixels"),
        (encoded(np.zeros((4, 4), np.uint16), "TIFF"), "expected 8 bits a channel"),
    ],
    ids=["nothing", "a beginning", "text", "cut short", "svg", "postscript", "large", "enormous", "16 bits"],
)
@pytest.mark.parametrize("path", ["predict", "attention", "curves"])
def test_what_is_no_picture_is_refused_in_one_line(port, path, body, message):
    status, error = refused(port, f"/api/{path}", body)
    assert status == 415
    assert re.search(message, error)
    assert "object at 0x" not in error


# Corruptions


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("noise=3", lambda image: shift.corrupt(image[None], "gaussian_noise", 3)[0]),
        ("blur=5", lambda image: shift.corrupt(image[None], "gaussian_blur", 5)[0]),
        ("brightness=-1", lambda image: colors.adjust_color(image[None], brightness=torch.tensor([0.5]))[0]),
        ("rotation=90", lambda image: image.rot90(1, (1, 2))),
        ("rotation=0&noise=0&blur=0&brightness=0", lambda image: image),
        (
            "noise=1&rotation=180",
            lambda image: shift.corrupt(image.flip(1, 2)[None].contiguous(), "gaussian_noise", 1)[0],
        ),
    ],
)
def test_a_picture_is_corrupted_as_asked_before_the_network_sees_it(port, query, expected):
    image = tensor(random_pixels())
    answer = found(port, f"/api/predict?{query}", encoded(random_pixels()))
    assert torch.equal(tensor(shown(answer)), expected(image))
    assert answer["probabilities"][0]["probability"] == pytest.approx(believe(expected(image)[None])[0, 0].item())


@pytest.mark.parametrize(
    "query",
    [
        "noise=6",
        "noise=-1",
        "noise=1.5",
        "noise=1&noise=x",
        "blur=x",
        "brightness=2.1",
        "brightness=inf",
        "rotation=181",
        "rotation=nan",
        "zoom=1",
    ],
)
def test_corruptions_out_of_range_are_refused_by_name(port, query):
    status, error = refused(port, f"/api/predict?{query}", encoded(random_pixels()))
    assert status == 422
    assert error.startswith(query.partition("=")[0] + " is ")


def test_noise_and_blur_are_for_pictures_of_32_pixels_alone():
    with showing(demo(size=48)) as port:
        assert list(found(port, "/api/model")["sliders"]) == ["brightness", "rotation"]
        assert list(found(port, "/api/curves", encoded(random_pixels()))["curves"]) == ["brightness", "rotation"]
        assert shown(found(port, "/api/predict?rotation=5", encoded(random_pixels()))).shape == (48, 48, 3)
        status, error = refused(port, "/api/predict?noise=1", encoded(random_pixels()))
        assert status == 422
        assert "found images of 48x48 pixels, expected 32x32" in error


def test_attention_is_the_occlusion_of_the_corrupted_picture_for_its_own_answer(port):
    answer = found(port, "/api/attention?rotation=90", encoded(random_pixels()))
    image = tensor(random_pixels()).rot90(1, (1, 2))
    believed = believe(image[None])[0]
    assert answer["label"] == believed.argmax()
    assert answer["probability"] == pytest.approx(believed.max().item())
    expected = occlusion(believe, image, answer["label"])
    assert np.allclose(answer["falls"], expected, atol=1e-5)


def test_curves_are_what_each_corruption_alone_does_to_the_first_answer(port):
    picture = encoded(random_pixels())
    answer = found(port, "/api/curves", picture)
    sliders = found(port, "/api/model")["sliders"]
    assert list(answer["curves"]) == list(sliders) == ["noise", "blur", "brightness", "rotation"]
    for name, curve in answer["curves"].items():
        low, high, step = (sliders[name][key] for key in ("low", "high", "step"))
        assert (curve["settings"][0], curve["settings"][-1]) == (low, high)
        assert 0 in curve["settings"]
        assert all(((setting - low) / step).is_integer() for setting in curve["settings"])
        for setting, probability in [*zip(curve["settings"], curve["probabilities"], strict=True)][::5]:
            alone = found(port, f"/api/predict?{name}={setting:g}", picture)
            assert alone["probabilities"][answer["label"]]["probability"] == pytest.approx(probability, abs=1e-6)


# What else there is


def test_the_interface_is_described_and_answers_as_described(port):
    described = found(port, "/openapi.json")
    schemas = described["components"]["schemas"]
    picture = encoded(random_pixels())
    asked = {"/api/predict": picture, "/api/attention": picture, "/api/curves": picture, "/api/model": None}
    for path, body in {**asked, "/health": None}.items():
        (operation,) = described["paths"][path].values()
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[answer.rpartition("/")[2]]
        assert {*found(port, path, body)} == {*schema["properties"]} == {*schema["required"]}
        if body:
            assert operation["requestBody"]["content"]["image/*"]
            for status in ("403", "408", "413", "415", "421", "422", "503"):
                told = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"]
                assert told == "#/components/schemas/Problem"
    assert {p["name"] for p in described["paths"]["/api/predict"]["post"]["parameters"]} == {*Strengths.model_fields}
    assert "HTTPValidationError" not in schemas


def test_the_examples_are_pictures_of_the_networks_size(port):
    about = found(port, "/api/model")
    assert about["examples_from"] == "drawn"
    for number, example in enumerate(drawn_examples(32)):
        content = found(port, f"/api/examples/{number}")
        assert torch.equal(tensor(np.array(Image.open(io.BytesIO(content)))), example.picture)
        assert about["examples"][number] == example.name
    assert refused(port, f"/api/examples/{len(about['examples'])}")[0] == 404
    assert refused(port, "/api/examples/-1")[0] == 404
    assert refused(port, "/api/examples/x")[0] == 422


@pytest.mark.parametrize(
    "path",
    [
        r"/serve.py",
        r"/../serve.py",
        r"/..%2fserve.py",
        r"/%2e%2e/cli.py",
        r"//etc/passwd",
        r"/serve.js/../serve.py",
        r"/docs",
        r"/redoc",
        r"/static",
        r"/api/examples/../../serve.py",
        r"/\..\serve.py",
        r"/%00",
    ],
)
def test_nothing_but_the_page_is_served(port, path):
    assert refused(port, path)[0] == 404


def test_what_cannot_be_done_with_a_page_is_refused(port):
    assert refused(port, "/", method="DELETE")[0] == 405
    assert refused(port, "/api/predict")[0] == 405


def test_the_page_loads_nothing_from_elsewhere_and_needs_no_exception_from_its_policy(port):
    page, style, script = (found(port, path).decode() for path in ("/", "/serve.css", "/serve.js"))
    names = "http://www.w3.org/2000/svg"
    for text in (page, style, script):
        assert not re.search(r"https?://|@import", text.replace(names, ""))
    assert not re.search(r"\son[a-z]+=|\sstyle=|<script(?! src=\"/serve.js\")|<style", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    for identifier in re.findall(r'\bat\("([a-z-]+)"\)', script):
        assert f'id="{identifier}"' in page


# Too much, and failures


def test_more_than_can_be_worked_on_is_sent_away_and_served_again_later():
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slowly(images):
        begun.release()
        go_on.wait(60)
        return believe(images)

    with showing(demo(slowly), Limits(requests=3)) as port:
        statuses = []
        picture = encoded(random_pixels())
        clients = [
            threading.Thread(target=lambda: statuses.append(ask(port, "/api/predict", picture)[0])) for _ in range(3)
        ]
        for client in clients:
            client.start()
        begun.acquire()
        begun.acquire()  # two are computed, the third waits
        while found(port, "/health")["working"] < 3:
            pass
        status, headers, content = ask(port, "/api/predict", picture)
        assert (status, headers["retry-after"]) == (503, "1")
        assert content == {"error": "too much is going on: try again in a moment"}
        go_on.set()
        for client in clients:
            client.join()
        assert statuses == [200] * 3
        assert found(port, "/health") == {"status": "ok", "working": 0, "most": 3}
        assert ask(port, "/api/predict", picture)[0] == 200


def test_a_place_is_free_again_when_a_client_leaves_or_sends_too_much_or_no_picture(port):
    for length, sent in ((1000, 10), (10**9, 0)):
        with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
            connection.putrequest("POST", "/api/predict")
            connection.putheader("Content-Length", str(length))
            connection.endheaders(b"x" * sent)
            while sent and not found(port, "/health")["working"]:
                pass
    refused(port, "/api/predict", b"no picture")
    for _ in range(10_000):
        if not found(port, "/health")["working"]:
            break
    assert found(port, "/health")["working"] == 0


def test_a_failure_of_ours_is_told_without_its_traceback_and_is_not_the_last_answer(caplog):
    def fail(images):
        raise RuntimeError("secret of the machine")

    with showing(demo(fail)) as port:
        for _ in range(2):
            status, error = refused(port, "/api/predict", encoded(random_pixels()))
            assert status == 500
            assert "secret" not in error
        assert found(port, "/health")["working"] == 0
    assert "secret of the machine" in caplog.text  # which is the terminal's, where it helps


# Through the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    config = ModelConfig(name="residual", stages=(StageConfig(depth=1, width=4),))
    network = models.build(config, 10).eval()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    classes = tuple(f"class {i}" for i in range(10))
    checkpoint.save_classifier(
        path,
        Classifier(network=network, model=config, classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32),
    )
    return path


def test_a_model_is_served_until_ctrl_c_and_answers_as_predict_does(model, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded(random_pixels(60, 60)))
    command = [sys.executable, "-m", "budgetnet", "serve", str(model), "--port", "0"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BUDGETNET")}
    with subprocess.Popen(
        command,
        env={**kept, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        url = re.match(r"http://127\.0\.0\.1:(\d+) ", server.stdout.readline())
        port = int(url[1])
        assert found(port, "/health")["status"] == "ok"
        assert b"<title>budgetnet</title>" in found(port, "/")
        answer = found(port, "/api/predict", picture.read_bytes())
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert server.returncode == 130
    assert (out, err) == ("", "budgetnet: interrupted\n")
    assert main(["predict", str(model), str(picture), "--json"]) == 0
    (predicted,) = json.loads(capsys.readouterr().out)["predictions"]
    assert predicted["class"] == answer["class"]
    assert predicted["probability"] == pytest.approx(answer["probabilities"][answer["label"]]["probability"], abs=1e-6)


def test_a_port_that_is_taken_is_told_before_the_model_is_read(capsys):
    listener, url = guard.listen(HOST, 0)
    with listener:
        assert main(["serve", "there is no such model", "--port", url.rpartition(":")[2]]) == 1
    assert re.search(r"error: cannot listen on 127.0.0.1, port \d+: .*--port 0", capsys.readouterr().err)


def test_reading_a_picture_of_too_many_pixels_allocates_nothing_like_them():
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(data.DataError):
        cache.read_image(io.BytesIO(claiming(9000, 9000)), 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6
