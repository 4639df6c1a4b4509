"""Pictures in files, decoded by Pillow."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor


@functools.cache
def picture_endings() -> frozenset[str]:
    """The endings, such as ``.png``, of the files that Pillow opens."""
    from PIL import Image

    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def read_pictures(files: Sequence[Path], *, size: int, grayscale: bool = False) -> Tensor:
    """Pictures scaled to ``size`` x ``size`` by Lanczos resampling, whatever their own shape.

    They stand as a camera's note says (EXIF), and what is transparent is white.

    Returns:
        uint8, shape (N, size, size) for ``grayscale``, else (N, 3, size, size).

    Raises:
        ValueError: A picture is damaged, or has more than 8 bits for each colour.
    """
    x = numpy.empty((len(files), size, size) if grayscale else (len(files), 3, size, size), numpy.uint8)
    for i, file in enumerate(files):
        x[i] = _read(file, size, grayscale)
    return torch.from_numpy(x)


def resized(x: NDArray[numpy.uint8], size: int) -> Tensor:
    """Colour images of shape (N, height, width, 3) as (N, 3, size, size), by Lanczos resampling where they differ."""
    from PIL import Image

    result = numpy.empty((len(x), 3, size, size), numpy.uint8)
    for i, image in enumerate(x):
        if image.shape[:2] != (size, size):
            scaled = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
            result[i] = numpy.asarray(scaled).transpose(2, 0, 1)
        else:
            result[i] = image.transpose(2, 0, 1)
    return torch.from_numpy(result)


def _read(file: Path, size: int, grayscale: bool) -> NDArray[numpy.uint8]:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            mode = opened.mode
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            converted = picture.convert("L" if grayscale else "RGB")
    except Exception as error:  # of what damage raises there is no list: Pillow has a decoder for each format
        raise ValueError(f"picture {file} is damaged: {error}; fetch it again or remove it") from error
    if mode[0] in "IF":  # Pillow would cut these off at 255 instead of scaling them
        raise ValueError(f"picture {file} has more than 8 bits for each colour (mode {mode}); convert it first")
    pixels = numpy.asarray(converted.resize((size, size), Image.Resampling.LANCZOS))
    return pixels if grayscale else pixels.transpose(2, 0, 1)
