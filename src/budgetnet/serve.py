"""A page on which to try a trained network, and the same as a JSON interface (described by /openapi.json).

Pictures come as the body of a request and go nowhere else: nothing is kept, nothing is loaded from other places.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from torch import Tensor

from budgetnet import __version__, augment, cache, shift
from budgetnet.errors import DataError
from budgetnet.guard import AGAIN, Guard, Limits, problem
from budgetnet.images import SIDE, Images
from budgetnet.saliency import occlusion

MOST_EXAMPLES = 20
_THREADS = 2  # one decodes a picture while the other has the network compute
_HERE = Path(__file__)
_PAGE = {"/": (".html", "text/html"), "/serve.css": (".css", "text/css"), "/serve.js": (".js", "text/javascript")}
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture that the page offers."""

    name: str
    """What it shows, or the class that it has."""
    picture: Tensor
    """uint8 (3, side, side), the side being the model's."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A model, as the page shows it."""

    name: str
    """Of its network."""
    parameters: int
    """Trainable ones."""
    engine: str
    """What computes, as a person reads it."""
    classes: tuple[str, ...]
    """In the order of the probabilities."""
    image_size: int
    """Side in pixels of the images that the network takes."""
    predict: Callable[[Tensor], Tensor]
    """From uint8 images (n, 3, image_size, image_size) to probabilities (n, classes), each row a function of its image
    alone; called from several threads at once."""
    examples: Sequence[Example] = ()
    source: str = "drawn"
    """What the examples are: "drawn", or the data set whose test images they are."""


class Strengths(BaseModel):
    """How much a picture is corrupted: turned, brightened, blurred, made noisy, in this order; 0 leaves it alone."""

    model_config = ConfigDict(extra="forbid")

    noise: int = Field(0, ge=0, le=5, description="severity of CIFAR-10-C's gaussian_noise; 32x32 only")
    blur: int = Field(0, ge=0, le=5, description="severity of CIFAR-10-C's gaussian_blur; 32x32 only")
    brightness: float = Field(0, ge=-2, le=2, description="stops: one more doubles each pixel's value")
    rotation: float = Field(0, ge=-180, le=180, description="degrees, counter-clockwise; corners turn black")


class Milliseconds(BaseModel):
    """Where the time went, without waiting and without the network between client and server."""

    reading: float = Field(description="decoding the picture and resizing it")
    corrupting: float
    network: float


class ClassProbability(BaseModel):
    """One class of the model."""

    class_: str = Field(serialization_alias="class")
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """What the network says of a picture."""

    class_: str = Field(serialization_alias="class", description="the most probable class")
    label: int = Field(description="its place among the model's classes")
    probabilities: list[ClassProbability] = Field(description="of all classes, in the model's order")
    picture: str = Field(description="what the network saw, as the data URL of a PNG")
    milliseconds: Milliseconds


class Attention(BaseModel):
    """Where the network looks."""

    class_: str = Field(serialization_alias="class", description="the most probable class, which the map is about")
    label: int
    probability: float = Field(description="with nothing hidden")
    falls: list[list[float]] = Field(
        description="for each row and column of pixels, how much that probability falls when a grey window of a "
        "quarter of the side covers the pixel, on average over the windows that do"
    )
    milliseconds: Milliseconds


class Curve(BaseModel):
    """How one corruption changes the probability of a class."""

    settings: list[float]
    probabilities: list[float]


class Curves(BaseModel):
    """How each corruption alone changes the probability of the class that the network sees in the picture as it is."""

    class_: str = Field(serialization_alias="class")
    label: int
    curves: dict[str, Curve] = Field(description="by corruption; noise and blur for images of 32x32 pixels only")
    milliseconds: Milliseconds


class Slider(BaseModel):
    """The range of a corruption, from which `Strengths` takes its numbers."""

    low: float
    high: float
    step: float


class About(BaseModel):
    """The model, and what may be asked of it."""

    model: str
    parameters: int
    engine: str
    version: str = Field(description="of budgetnet")
    classes: list[str]
    image_size: int
    sliders: dict[str, Slider]
    examples: list[str] = Field(description="what each shows, in the order of /api/examples/0 and so on")
    examples_from: str = Field(description="drawn, or the data set whose test images they are")
    most_bytes: int = Field(description="of a picture")
    most_pixels: int = Field(description="of a picture")


class Health(BaseModel):
    """That the server answers, and how busy it is."""

    status: str
    working: int = Field(description="requests that are being worked on")
    most: int = Field(description="from which on more are sent away with 503")


class Problem(BaseModel):
    """Why a request was refused: what was found, what was expected."""

    error: str


_PROBLEM: dict[str, Any] = {"model": Problem}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: _PROBLEM | {"description": why}
    for code, why in {
        403: "the request comes from a page of another server",
        408: "the body did not come in time",
        413: "too many bytes",
        415: "no picture that can be read, or one of too many pixels",
        421: "the server is not known by that name",
        422: "a corruption is out of range",
        503: "too much is going on; Retry-After says when to try again",
    }.items()
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "a picture: PNG, JPEG, BMP, WebP, GIF, TIFF, PPM or PGM, 8 bits a channel, whatever its type is "
        "said to be",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def corrupt(image: Tensor, strengths: Strengths) -> Tensor:
    """A picture as it looks after the corruptions, the same each time.

    Args:
        image: uint8 (3, h, w) in [0, 255], on the CPU; left unchanged.
        strengths: of each; noise and blur are for 32x32 only.

    Returns:
        uint8 (3, h, w).

    Raises:
        DataError: noise or blur is asked for, and the picture is not of 32x32 pixels.
    """
    images = image[None]
    if strengths.rotation:
        images = augment.turn(images, torch.tensor([float(strengths.rotation)]))
    if strengths.brightness:
        images = augment.adjust_color(images, brightness=torch.tensor([2.0**strengths.brightness]))
    if strengths.blur:
        images = shift.corrupt(images, "gaussian_blur", strengths.blur)
    if strengths.noise:
        images = shift.corrupt(images, "gaussian_noise", strengths.noise)
    return images[0]


def sliders(image_size: int) -> dict[str, Slider]:
    """The corruptions that images of this size can have, in the order of `Strengths`."""
    small = {"noise": Slider(low=0, high=5, step=1), "blur": Slider(low=0, high=5, step=1)}
    both = {"brightness": Slider(low=-2, high=2, step=0.25), "rotation": Slider(low=-180, high=180, step=5)}
    return (small if image_size == SIDE else {}) | both


def examples_of(images: Images, classes: Sequence[str]) -> list[Example]:
    """Some labelled images, at most `MOST_EXAMPLES`: the first of classes from all over, then the second, and so on."""
    number = min(len(classes), MOST_EXAMPLES)
    chosen = [i * len(classes) // number for i in range(number)]
    places = {label: (images.targets == label).nonzero().flatten().tolist() for label in chosen}
    rounds = range(MOST_EXAMPLES // number)
    found = [(label, places[label][i]) for i in rounds for label in chosen if i < len(places[label])]
    return [Example(name=classes[label], picture=images.images[place].clone()) for label, place in found]


def drawn_examples(side: int) -> list[Example]:
    """Pictures of nothing that a network was trained on, for where there are no others."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    greys = {
        "a disc": (x**2 + y**2 < 0.4).float(),
        "a cross": ((x.abs() < 0.2) | (y.abs() < 0.2)).float(),
        "stripes": (y * 4).floor() % 2,
        "squares": ((x * 2).floor() + (y * 2).floor()) % 2,
        "a slope": (x + y + 2) / 4,
        "noise": torch.rand(side, side, generator=torch.Generator().manual_seed(0)),
    }
    blue, orange = (torch.tensor(colour).view(3, 1, 1) for colour in ([40.0, 90.0, 160.0], [250.0, 190.0, 90.0]))
    pictures = {name: (blue + grey * (orange - blue)).round().to(torch.uint8) for name, grey in greys.items()}
    return [Example(name=name, picture=picture) for name, picture in pictures.items()]


def application(demo: Demo, limits: Limits, names: Sequence[str] = ()) -> Guard:
    """The page and the JSON interface, as an application of ASGI.

    Args:
        demo: the model.
        limits: what clients may ask at most.
        names: of this server, beside addresses and localhost.
    """
    from PIL import Image

    # Pillow would tell the terminal of claims that are refused here anyway.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    app = FastAPI(
        title="budgetnet",
        version=__version__,
        description="Classify a picture, and see what the answer depends on.",
        docs_url=None,  # FastAPI's pages load scripts from another server
        redoc_url=None,
    )
    desk = _Desk(limits)
    about = About(
        model=demo.name,
        parameters=demo.parameters,
        engine=demo.engine,
        version=__version__,
        classes=[*demo.classes],
        image_size=demo.image_size,
        sliders=sliders(demo.image_size),
        examples=[example.name for example in demo.examples],
        examples_from=demo.source,
        most_bytes=limits.body_bytes,
        most_pixels=cache.MOST_PIXELS,
    )
    drawn = [_png(example.picture) for example in demo.examples]

    @app.get("/health")
    async def health() -> Health:
        """Whether the server answers."""
        return Health(status="ok", working=desk.working, most=limits.requests)

    @app.get("/api/model")
    async def model() -> About:
        """What the model is, and what may be asked of it."""
        return about

    @app.get("/api/examples/{number}", response_class=Response, responses={404: _PROBLEM, 422: _PROBLEM})
    async def example(number: int) -> Response:
        """The PNG of an example."""
        if not 0 <= number < len(drawn):
            raise HTTPException(404, f"found example {number}, expected 0 to {len(drawn) - 1}")
        return Response(drawn[number], media_type="image/png")

    @app.post("/api/predict", responses=_REFUSALS, openapi_extra=_BODY)
    async def predict(request: Request, strengths: Annotated[Strengths, Query()]) -> Prediction:
        """What the network says of a picture, after corruptions where some are asked for."""
        _check(strengths, demo.image_size)
        return await desk.work(request, partial(_predict, demo, strengths))

    @app.post("/api/attention", responses=_REFUSALS, openapi_extra=_BODY)
    async def attention(request: Request, strengths: Annotated[Strengths, Query()]) -> Attention:
        """Where the network looks: what hiding each part of the picture does to its answer."""
        _check(strengths, demo.image_size)
        return await desk.work(request, partial(_attention, demo, strengths))

    @app.post("/api/curves", responses=_REFUSALS, openapi_extra=_BODY)
    async def curves(request: Request) -> Curves:
        """How each corruption, alone and from weak to strong, changes the answer."""
        return await desk.work(request, partial(_curves, demo))

    for path, (suffix, kind) in _PAGE.items():
        content = _HERE.with_suffix(suffix).read_bytes()
        app.add_route(path, partial(_constant, content, kind), include_in_schema=False)

    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DataError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    return Guard(app, limits, names)


class _Desk:
    """Where requests with pictures are taken in and worked on, a few at a time."""

    def __init__(self, limits: Limits):
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="budgetnet-serve")
        self._most, self.working = limits.requests, 0
        self._lock = threading.Lock()

    async def work(self, request: Request, job: Callable[[bytes], _Result]) -> _Result:
        """Read the body and do the job on it.

        Raises:
            HTTPException: too much is going on (503).
        """
        with self._lock:
            if self.working >= self._most:
                raise HTTPException(503, "too much is going on: try again in a moment", AGAIN)
            self.working += 1
        try:
            body = b"".join([part async for part in request.stream()])
            done = self._pool.submit(job, body)
        except BaseException:
            self._left()
            raise
        # A thread cannot be stopped: the place is free when it has ended, not when nobody waits for it any longer.
        done.add_done_callback(self._left)
        return await asyncio.wrap_future(done)

    def _left(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self.working -= 1


@dataclass
class _Watch:
    """Milliseconds between one call and the next."""

    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        return round(1000 * passed, 3)


def _check(strengths: Strengths, image_size: int) -> None:
    if strengths.noise or strengths.blur:
        try:
            shift.require_size(image_size, image_size)
        except DataError as error:
            raise HTTPException(422, f"noise {strengths.noise}, blur {strengths.blur}: {error}") from error


def _read(demo: Demo, body: bytes) -> Tensor:
    if not body:
        raise DataError("found an empty body, expected a picture")
    return torch.from_numpy(cache.read_image(io.BytesIO(body), demo.image_size))


def _prepared(demo: Demo, strengths: Strengths, body: bytes) -> tuple[Tensor, _Watch, float, float]:
    """The picture as the network gets it, a watch that starts now, and the milliseconds of reading and corrupting."""
    watch = _Watch()
    image = _read(demo, body)
    reading = watch.lap()
    image = corrupt(image, strengths)
    return image, watch, reading, watch.lap()


def _predict(demo: Demo, strengths: Strengths, body: bytes) -> Prediction:
    image, watch, reading, corrupting = _prepared(demo, strengths, body)
    believed = demo.predict(image[None])[0].tolist()
    network = watch.lap()
    label = max(range(len(believed)), key=believed.__getitem__)
    return Prediction(
        class_=demo.classes[label],
        label=label,
        probabilities=[
            ClassProbability(class_=name, probability=p) for name, p in zip(demo.classes, believed, strict=True)
        ],
        picture=f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}",
        milliseconds=Milliseconds(reading=reading, corrupting=corrupting, network=network),
    )


def _attention(demo: Demo, strengths: Strengths, body: bytes) -> Attention:
    image, watch, reading, corrupting = _prepared(demo, strengths, body)
    believed = demo.predict(image[None])[0]
    label = int(believed.argmax())
    window = max(2, demo.image_size // 4)
    falls = occlusion(demo.predict, image, label, window, window // 2)
    return Attention(
        class_=demo.classes[label],
        label=label,
        probability=float(believed[label]),
        falls=[[round(value, 5) for value in row] for row in falls.tolist()],
        milliseconds=Milliseconds(reading=reading, corrupting=corrupting, network=watch.lap()),
    )


def _curves(demo: Demo, body: bytes) -> Curves:
    watch = _Watch()
    image = _read(demo, body)
    reading = watch.lap()
    settings = {name: _settings(slider) for name, slider in sliders(demo.image_size).items()}
    asked = [Strengths.model_validate({name: value}) for name, values in settings.items() for value in values]
    images = torch.stack([image, *(corrupt(image, strengths) for strengths in asked)])
    corrupting = watch.lap()
    believed = demo.predict(images)
    label = int(believed[0].argmax())
    rest = believed[1:, label].tolist()
    curves = {}
    for name, values in settings.items():
        curves[name] = Curve(settings=values, probabilities=rest[: len(values)])
        rest = rest[len(values) :]
    return Curves(
        class_=demo.classes[label],
        label=label,
        curves=curves,
        milliseconds=Milliseconds(reading=reading, corrupting=corrupting, network=watch.lap()),
    )


def _settings(slider: Slider) -> list[float]:
    """Some of a slider's settings, from its lowest to its highest, in whole steps."""
    steps = round((slider.high - slider.low) / slider.step)
    every = next(n for n in range(1, steps + 1) if steps % n == 0 and steps // n <= 24)
    return [slider.low + slider.step * i for i in range(0, steps + 1, every)]


def _png(image: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


async def _constant(content: bytes, kind: str, request: Request) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


# Answers to what went wrong, in one line


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))
    return problem(422, f"{where} is {ascii(first['input'])[:60]}: {first['msg']}")


async def _unreadable(request: Request, error: Exception) -> Response:
    return problem(415, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    return problem(500, "the server failed, which is no fault of the picture's: its terminal says how")
