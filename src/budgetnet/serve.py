"""A page on which to try a trained network, and the same as a JSON interface (described by /openapi.json).

Pictures come as the body of a request and go nowhere else: nothing is kept, nothing is loaded from other places.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from budgetnet import __version__, cache, shift
from budgetnet.demo import (
    Attention,
    Curves,
    Demo,
    Prediction,
    Slider,
    Strengths,
    attention_of,
    curves_of,
    png,
    prediction_of,
    sliders,
)
from budgetnet.errors import DataError
from budgetnet.guard import AGAIN, Guard, Limits, problem

_THREADS = 2  # one decodes a picture while the other has the network compute
_HERE = Path(__file__)
_PAGE = {"/": (".html", "text/html"), "/serve.css": (".css", "text/css"), "/serve.js": (".js", "text/javascript")}
_Result = TypeVar("_Result")


class About(BaseModel):
    """The model, and what may be asked of it."""

    model: str = Field(description="name of its network")
    parameters: int = Field(description="trainable ones")
    engine: str = Field(description="what computes, as a person reads it")
    version: str = Field(description="of budgetnet")
    classes: list[str] = Field(description="names, in the order of the probabilities")
    image_size: int = Field(description="side in pixels of what the network takes")
    sliders: dict[str, Slider] = Field(description="by corruption; those that there are for such images")
    examples: list[str] = Field(description="what each shows, in the order of /api/examples/0 and so on")
    examples_from: str = Field(description="drawn, or the data set whose test images they are")
    most_bytes: int = Field(description="of a picture")
    most_pixels: int = Field(description="of a picture")


class Health(BaseModel):
    """That the server answers, and how busy it is."""

    status: str = Field(description="ok")
    working: int = Field(description="requests that are being worked on")
    most: int = Field(description="from which on more are sent away with 503")


class Problem(BaseModel):
    """Why a request was refused: what was found, what was expected."""

    error: str = Field(description="one line")


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
    _describe(app, demo, limits, desk)
    _answer(app, demo, desk)
    for path, (suffix, kind) in _PAGE.items():
        content = _HERE.with_suffix(suffix).read_bytes()
        app.add_route(path, partial(_constant, content, kind), include_in_schema=False)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DataError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    return Guard(app, limits, names)


def _describe(app: FastAPI, demo: Demo, limits: Limits, desk: _Desk) -> None:
    """Add what is known before a picture comes: how the server does, what the model is, its examples."""
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
    drawn = [png(example.picture) for example in demo.examples]

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


def _answer(app: FastAPI, demo: Demo, desk: _Desk) -> None:
    """Add what is computed of a picture that comes."""

    @app.post("/api/predict", responses=_REFUSALS, openapi_extra=_BODY)
    async def predict(request: Request, strengths: Annotated[Strengths, Query()]) -> Prediction:
        """What the network says of a picture, after corruptions where some are asked for."""
        _check(strengths, demo.image_size)
        return await desk.work(request, partial(prediction_of, demo, strengths))

    @app.post("/api/attention", responses=_REFUSALS, openapi_extra=_BODY)
    async def attention(request: Request, strengths: Annotated[Strengths, Query()]) -> Attention:
        """Where the network looks: what hiding each part of the picture does to its answer."""
        _check(strengths, demo.image_size)
        return await desk.work(request, partial(attention_of, demo, strengths))

    @app.post("/api/curves", responses=_REFUSALS, openapi_extra=_BODY)
    async def curves(request: Request) -> Curves:
        """How each corruption, alone and from weak to strong, changes the answer."""
        return await desk.work(request, partial(curves_of, demo))


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


def _check(strengths: Strengths, image_size: int) -> None:
    if strengths.noise or strengths.blur:
        try:
            shift.require_size(image_size, image_size)
        except DataError as error:
            raise HTTPException(422, f"noise {strengths.noise}, blur {strengths.blur}: {error}") from error


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
