"""Size and binary form of the pixels that a model gets: uint8 RGB after resizing, with height and width in front."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actors.images.errors import UnfitPicture
from actors.images.settings import PictureSettings

if TYPE_CHECKING:
    from PIL import Image

_HEADER = struct.Struct("<II")  # height, width
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without the import of Pillow
HEADER_BYTES = _HEADER.size
_MAX_ASPECT = 200
_FACTOR = 28
_ROWS_AT_ONCE = 128  # of a strip
PATCHES_PER_TOKEN = 4  # of 14 x 14 pixels


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes that cover an image, some rows each, so that a copy of one takes little memory."""
    for top in range(0, image.height, _ROWS_AT_ONCE):
        yield 0, top, image.width, min(top + _ROWS_AT_ONCE, image.height)


def resized(height: int, width: int, settings: PictureSettings) -> tuple[int, int]:
    """Return height and width after resizing, as `smart_resize` of transformers gives them.

    Raises:
        UnfitPicture: a side is 0, or one side is over 200 times the other.
    """
    if height < 1 or width < 1:
        raise UnfitPicture("bad_shape", f"{width} x {height} pixels have no area")
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise UnfitPicture("bad_shape", f"{width} x {height} pixels: one side is over {_MAX_ASPECT} times the other")
    factor = settings.factor
    rows, columns = round(height / factor), round(width / factor)  # halves go to the even number
    if rows * columns * factor**2 > settings.max_pixels:
        beta = math.sqrt((height * width) / settings.max_pixels)
        rows = max(1, math.floor(height / beta / factor))
        columns = max(1, math.floor(width / beta / factor))
    elif rows * columns * factor**2 < settings.min_pixels:
        beta = math.sqrt(settings.min_pixels / (height * width))
        rows, columns = math.ceil(height * beta / factor), math.ceil(width * beta / factor)
    return rows * factor, columns * factor


def fit(image: Image.Image, settings: PictureSettings, size: tuple[int, int] | None = None) -> bytes:
    """Return the binary form of an RGB or grey (L) image, resized by Pillow's bicubic filter.

    Args:
        image: The image.
        settings: Size of the result.
        size: Height and width of the result, if they are not those for the size of `image`.

    Raises:
        UnfitPicture: it cannot have this form because of its sides.
    """
    height, width = size or resized(image.height, image.width, settings)
    if image.size != (width, height):
        image = image.resize((width, height), _BICUBIC)
    rgb = image.convert("RGB")  # after resizing: fewer pixels, and grey stays grey
    return _HEADER.pack(height, width) + rgb.tobytes()


def pack_pixels(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Return the binary form of uint8 RGB [height, width, 3]."""
    return _HEADER.pack(rgb.shape[0], rgb.shape[1]) + rgb.tobytes()


def blank_pixels(height: int, width: int, settings: PictureSettings) -> bytes:
    """Return the binary form of a white picture in place of one of this size, as a plan needs it.

    Raises:
        UnfitPicture: as for `resized`.
    """
    return pack_pixels(np.full((*resized(height, width, settings), 3), 255, np.uint8))


def unpack_pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Return uint8 RGB [height, width, 3] of a binary form: a view that cannot be written."""
    height, width = _HEADER.unpack_from(data)
    return np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(height, width, 3)


def grid_of(data: bytes) -> tuple[int, int]:
    """Return rows and columns of merged tokens of a binary form."""
    height, width = _HEADER.unpack_from(data)
    return height // _FACTOR, width // _FACTOR
