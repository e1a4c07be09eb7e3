"""A model to try on a picture: what it answers, where it looks, and what corruptions do to its answer.

The models of pydantic are the answers as the JSON interface of `serve.py` gives them.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from budgetnet import cache, colors, geometry, shift
from budgetnet.errors import DataError
from budgetnet.images import SIDE, Images
from budgetnet.saliency import occlusion

MOST_EXAMPLES = 20


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
    """Pictures to try it on."""
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
    corrupting: float = Field(description="turning, brightening, blurring and noise")
    network: float = Field(description="its forward pass")


class ClassProbability(BaseModel):
    """One class of the model."""

    class_: str = Field(serialization_alias="class", description="its name")
    probability: float = Field(ge=0, le=1, description="that the network gives it")


class Prediction(BaseModel):
    """What the network says of a picture."""

    class_: str = Field(serialization_alias="class", description="the most probable class")
    label: int = Field(description="its place among the model's classes")
    probabilities: list[ClassProbability] = Field(description="of all classes, in the model's order")
    picture: str = Field(description="what the network saw, as the data URL of a PNG")
    milliseconds: Milliseconds = Field(description="what it took")


class Attention(BaseModel):
    """Where the network looks."""

    class_: str = Field(serialization_alias="class", description="the most probable class, which the map is about")
    label: int = Field(description="its place among the model's classes")
    probability: float = Field(description="with nothing hidden")
    falls: list[list[float]] = Field(
        description="for each row and column of pixels, how much that probability falls when a grey window of a "
        "quarter of the side covers the pixel, on average over the windows that do"
    )
    milliseconds: Milliseconds = Field(description="what it took")


class Curve(BaseModel):
    """How one corruption changes the probability of a class."""

    settings: list[float] = Field(description="of the corruption, as in `Strengths`")
    probabilities: list[float] = Field(description="of the class, at each setting")


class Curves(BaseModel):
    """How each corruption alone changes the probability of the class that the network sees in the picture as it is."""

    class_: str = Field(serialization_alias="class", description="that class")
    label: int = Field(description="its place among the model's classes")
    curves: dict[str, Curve] = Field(description="by corruption; noise and blur for images of 32x32 pixels only")
    milliseconds: Milliseconds = Field(description="what it took")


class Slider(BaseModel):
    """The range of a corruption, from which `Strengths` takes its numbers."""

    low: float = Field(description="least setting")
    high: float = Field(description="largest setting")
    step: float = Field(description="between two settings")


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
        images = geometry.turn(images, torch.tensor([float(strengths.rotation)]))
    if strengths.brightness:
        images = colors.adjust_color(images, brightness=torch.tensor([2.0**strengths.brightness]))
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


@dataclass
class _Watch:
    """Milliseconds between one call and the next."""

    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        return round(1000 * passed, 3)


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


def prediction_of(demo: Demo, strengths: Strengths, body: bytes) -> Prediction:
    """What the network says of a picture, after corruptions.

    Args:
        demo: the model.
        strengths: of the corruptions.
        body: the file of the picture.

    Raises:
        DataError: it is no picture that can be read.
    """
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
        picture=f"data:image/png;base64,{base64.b64encode(png(image)).decode()}",
        milliseconds=Milliseconds(reading=reading, corrupting=corrupting, network=network),
    )


def attention_of(demo: Demo, strengths: Strengths, body: bytes) -> Attention:
    """Where the network looks; as `prediction_of`."""
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


def curves_of(demo: Demo, body: bytes) -> Curves:
    """How each corruption, alone and from weak to strong, changes the answer; as `prediction_of`."""
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


def png(image: Tensor) -> bytes:
    """A picture, uint8 (3, h, w), as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
