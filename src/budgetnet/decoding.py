"""One image file, or its content, as pixels.

Nothing here or in what reads shards imports torch: the processes that decode start in a moment and take little memory.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from budgetnet.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Of image files, as Pillow names them. It knows others, some of which are read by running another program."""
SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
"""Of image files."""
MOST_PIXELS = 2**26
"""Of an image, as it claims before it is decoded: 8192x8192, more than most telephones take, 200 MB when decoded."""
MOST_BYTES = 2**28
"""Of an image file."""
MOST_CLASSES = 10_000
"""Labels beyond are taken for damage: what counts them would fill the memory."""


def read_image(source: Path | BinaryIO, image_size: int, most_pixels: int = MOST_PIXELS) -> Pixels:
    """One image file, upright, as uint8 (3, image_size, image_size).

    Args:
        source: the file, or its content.
        image_size: side in pixels that the image is resized to.
        most_pixels: an image that claims more is refused before it is decoded.

    Raises:
        DataError: the image is missing, damaged, too large or of more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = source if isinstance(source, Path) else "the file"
    try:
        if isinstance(source, Path):
            if source.stat().st_size > MOST_BYTES:
                raise DataError(f"{path}: found an image file of more than {MOST_BYTES:,} bytes: shrink the image")
            # From memory: of a file, Pillow would ask for as many bytes as a chunk says that it has.
            source = io.BytesIO(source.read_bytes())
        with Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > most_pixels:
                raise DataError(
                    f"{path}: found {opened.width:,}x{opened.height:,} pixels, expected at most {most_pixels:,}: "
                    "shrink the image"
                )
            ImageOps.exif_transpose(opened, in_place=True)  # a copy, here and below, would double a photo's memory
            return fitted(opened, image_size, str(path))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: found no readable image (of no known format), expected PNG, JPEG or the like"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise DataError(
            f"{path}: found no readable image ({first_line(error)}), expected PNG, JPEG or the like"
        ) from error


def fitted(image: Image.Image, image_size: int, name: str) -> Pixels:
    """The pixels of an image that is decoded and upright, resized, as uint8 (3, image_size, image_size).

    Args:
        image: of any mode with 8 bits a channel or fewer, of any size.
        image_size: side in pixels that it is resized to, whatever its aspect ratio.
        name: what an error calls it.

    Raises:
        DataError: it has more than 8 bits a channel.
    """
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name}: found pixels of mode {image.mode}, expected 8 bits a channel: convert the image")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for before such a palette becomes RGB
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(image).transpose(2, 0, 1).copy()
