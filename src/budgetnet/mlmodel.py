"""A trained classifier as a folder of MLflow's, which its server loads, and Python as `pyfunc` and as `pytorch`.

As `pytorch` it is a traced graph from normalised images to logits, which needs no budgetnet. As pyfunc the same graph
takes pictures and pixels and gives classes and probabilities, by this module. Its source travels with the model:
budgetnet is in no index that an environment could be installed from.
"""

from __future__ import annotations

import base64
import binascii
import copy
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetnet.decoding import Pixels, fitted, read_image
from budgetnet.errors import CheckpointError, DataError
from budgetnet.inputs import normalize

if TYPE_CHECKING:
    import pandas

    from budgetnet.classifier import Classifier

INPUT = "image"
"""Name of the only column of what the model takes."""
PACKAGES = ("torch", "numpy", "pillow")
"""What is imported to serve, beside MLflow and what MLflow needs itself."""

_FORMAT = 1
_ABOUT = "classifier.json"
_SOURCE = "code/budgetnet.zip"
_TOGETHER = 64  # images of one pass through the network: what it keeps of more would fill the memory


def save(classifier: Classifier, folder: Path, model: Any) -> None:
    """Write a classifier as a model of MLflow.

    Args:
        classifier: on any device, its network not compiled; left unchanged.
        folder: where to, made here.
        model: an `mlflow.models.Model` that says whose model it is, completed here.
    """
    import mlflow.pyfunc
    import mlflow.pytorch
    import PIL
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Map

    from budgetnet import __version__

    pictures = _drawn(classifier.image_size)
    example = normalize(pictures, classifier.mean, classifier.std).numpy()
    float32 = np.dtype(np.float32)
    traced = ModelSignature(
        Schema([TensorSpec(float32, (-1, *example.shape[1:]))]),
        Schema([TensorSpec(float32, (-1, len(classifier.classes)))]),
    )
    versions = dict(zip(PACKAGES, (torch.__version__, np.__version__, PIL.__version__), strict=True))
    # pt2 is a traced graph: it loads without budgetnet and without running code from the file, where a pickle needs
    # both, and an example of two images leaves the batch size open. The requirements are given because MLflow finds
    # them out, slowly, by loading the model in another process; it adds its own version.
    mlflow.pytorch.save_model(
        copy.deepcopy(classifier.network).to("cpu").eval(),
        path=str(folder),
        mlflow_model=model,
        signature=traced,
        input_example=example,
        pip_requirements=[f"{name}=={version.split('+')[0]}" for name, version in versions.items()],
        serialization_format="pt2",
    )
    # What was written for pyfunc, which takes and gives tensors as the graph does, is replaced. Not by
    # mlflow.pyfunc.save_model, which puts a uv.lock of the current folder before the requirements.
    about = {
        "format": _FORMAT,
        "budgetnet": __version__,
        "classes": classifier.classes,
        "mean": classifier.mean,
        "std": classifier.std,
        "image_size": classifier.image_size,
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    _pack(folder / _SOURCE)
    mlflow.pyfunc.add_to_model(
        model, __name__, code=_SOURCE, conda_env="conda.yaml", python_env="python_env.yaml", budgetnet=__version__
    )
    # Any object passes for this tensor: text of a picture, or nested lists of pixels.
    model.signature = ModelSignature(
        Schema([TensorSpec(np.dtype(object), (-1,), INPUT)]),
        Schema(
            [
                ColSpec(DataType.string, "class"),
                ColSpec(DataType.long, "label"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
    )
    model.saved_input_example_info = _save_example(folder, pictures)
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / "MLmodel"))


def _drawn(side: int) -> Tensor:
    """Two images, uint8 (2, 3, side, side), of nobody's data: a slope, and another."""
    slope = torch.linspace(0, 255, side).to(torch.uint8).expand(side, side)
    return torch.stack([torch.stack([slope, slope.T, slope.flip(1)]), torch.stack([slope.flip(0, 1), slope, slope.T])])


def _save_example(folder: Path, pictures: Tensor) -> dict[str, str]:
    """Write an example of what the model takes, for Python and for the server, and give what MLflow notes of it."""
    from PIL import Image

    def text(picture: Tensor) -> str:
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    table = {"columns": [INPUT], "data": [[text(picture)] for picture in pictures]}
    names = {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json"}
    (folder / names["artifact_path"]).write_text(json.dumps(table))
    (folder / names["serving_input_path"]).write_text(json.dumps({"dataframe_split": table}, indent=2) + "\n")
    return {**names, "type": "dataframe", "pandas_orient": "split"}


def _pack(path: Path) -> None:
    """Write this package's source, from which Python imports as from a folder, and which is one file to send.

    All of it, although a few modules serve: a part would hide the whole where budgetnet is installed.
    """
    package = Path(__file__).parent
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*.py")):
            entry = zipfile.ZipInfo(
                f"{package.name}/{file.relative_to(package).as_posix()}"
            )  # the same bytes each time
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


# ---------------------------------------------------------------------------------------------------- loaded by MLflow


def _load_pyfunc(path: str) -> Served:
    """What MLflow asks of the module that it loads a model by.

    Args:
        path: the folder that `save` wrote.

    Raises:
        CheckpointError: another version of budgetnet wrote it.
    """
    import mlflow.pytorch

    about = json.loads((Path(path) / _ABOUT).read_text(encoding="utf-8"))
    if about["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {about['format']}, expected {_FORMAT}: budgetnet {about['budgetnet']} wrote it, and is "
            f"in {_SOURCE}; load it in a process that has not imported another"
        )
    served = Served(
        network=mlflow.pytorch.load_model(path),
        classes=tuple(about["classes"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        image_size=about["image_size"],
    )
    served.predict({INPUT: np.array(_drawn(served.image_size).permute(0, 2, 3, 1))})  # what is wrong shows now
    return served


@dataclass(frozen=True, kw_only=True)
class Served:
    """A classifier as MLflow's pyfunc."""

    network: Callable[[Tensor], Tensor]
    """Normalised float32 images (n, 3, image_size, image_size) -> logits (n, classes)."""
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    mean: tuple[float, ...]
    """Channel means of the normalisation, for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations of the normalisation."""
    image_size: int
    """Side of the images in pixels, to which they are resized."""

    def predict(self, model_input: Mapping[str, NDArray[Any]]) -> pandas.DataFrame:
        """What each image shows.

        Args:
            model_input: as MLflow prepares it by the signature, whatever it was given: `image`, an array of n images.
                Each is the text of a picture in base64 (or a data URL), its bytes, or integers (h, w, 3) in 0 to 255.

        Returns:
            A row for each image: `class`, its name; `label`, its place in `classes`; `probabilities`, by class name.

        Raises:
            MlflowException: an image is nothing such, which the server answers with status 400; or a logit is not
                finite, 500.
        """
        import pandas
        from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR

        given = np.atleast_1d(model_input[INPUT])
        images = torch.zeros(len(given), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for i, image in enumerate(given):
            try:
                images[i] = torch.from_numpy(_pixels(image, self.image_size))
            except DataError as error:
                raise _told(f"image {i}: {error}", BAD_REQUEST) from error
        with torch.inference_mode():
            logits = [
                self.network(normalize(images[start : start + _TOGETHER], self.mean, self.std))
                for start in range(0, len(images), _TOGETHER)
            ]
        probabilities = torch.cat([torch.zeros(0, len(self.classes)), *logits]).softmax(1)
        if not probabilities.isfinite().all():
            raise _told("the network gives numbers that are not finite: its weights are damaged", INTERNAL_ERROR)
        labels = probabilities.argmax(1).tolist()
        return pandas.DataFrame(
            {
                "class": [self.classes[label] for label in labels],
                "label": labels,
                "probabilities": [dict(zip(self.classes, row, strict=True)) for row in probabilities.tolist()],
            }
        )


def _told(message: str, code: int) -> Exception:
    """An error that MLflow's server answers with: it would put all of the input, pictures too, before the message."""
    from mlflow.exceptions import MlflowException

    error: Exception = MlflowException(message, code)
    error.json_kwargs["message"] = message  # type: ignore[attr-defined]
    return error


def _pixels(image: Any, side: int) -> Pixels:
    """One image as it is given to the server, as uint8 (3, side, side).

    Raises:
        DataError: it is no image that can be read.
    """
    if isinstance(image, np.ndarray) and image.ndim == 0:
        image = image.item()  # what MLflow makes of a text under "instances"
    if isinstance(image, str | bytes):
        content = _decoded(image) if isinstance(image, str) else image
        try:
            return read_image(io.BytesIO(content), side)
        except DataError as error:
            raise DataError(str(error).removeprefix("the file: ")) from error
    pixels = _integers(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"found pixels of shape {pixels.shape}, expected a list of images of (height, width, 3) each")
    if pixels.dtype != np.uint8:
        wrong = pixels[(pixels < 0) | (pixels > 255)]
        if len(wrong):
            raise DataError(f"found {wrong[0]} among the pixels, expected integers from 0 to 255")
    from PIL import Image

    return fitted(Image.fromarray(pixels.astype(np.uint8)), side, "the image")


def _decoded(text: str) -> bytes:
    start = text.partition(",")[0] + "," if text.startswith("data:") else ""
    try:
        return base64.b64decode("".join(text.removeprefix(start).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"found text that is no base64 ({error}), expected that of a PNG, a JPEG or the like"
        ) from error


def _integers(image: Any) -> NDArray[np.integer[Any]]:
    """Nested lists, or an array of them, as an array of integers."""
    try:
        # MLflow makes arrays of Python's integers, and of lists where sizes differ.
        values = np.array(image.tolist() if isinstance(image, np.ndarray) and image.dtype.kind == "O" else image)
    except (ValueError, OverflowError):
        values = np.array(None)
    if values.dtype.kind == "f":
        raise DataError("found numbers with fractions, expected integers from 0 to 255, not normalised")
    if values.dtype.kind not in "iu":
        raise DataError("found neither the text of a picture in base64 nor integers of shape (height, width, 3)")
    return values
