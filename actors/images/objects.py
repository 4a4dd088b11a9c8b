"""Pictures that a caller has in memory or in files, as a notebook has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.errors import ConfigError, DataError
from actors.images.decode import decode_picture, plain_image
from actors.images.errors import UnfitPicture
from actors.images.pixels import fit
from actors.images.settings import PictureSettings
from actors.images.workers import need_libraries
from actors.inputs import PAGE_CONTENT

if TYPE_CHECKING:
    import PIL.Image

# The bytes or the path of a file, an image of Pillow, or uint8 RGB [height, width, 3].
Image: TypeAlias = Union[bytes, str, Path, "PIL.Image.Image", npt.NDArray[np.uint8]]


def content_of(images: Sequence[Image], settings: PictureSettings) -> pa.ChunkedArray:
    """Returns images as `actors.inputs.PAGE_CONTENT`, resized for a model.

    Raises:
        ConfigError: They are not a list, or Pillow is not installed.
        DataError: One cannot be used; names it by its number.
    """
    if not isinstance(images, list | tuple):
        raise ConfigError("encode_images takes a list of pictures; put a single one into a list.")
    need_libraries()
    chunks = []
    for number, image in enumerate(images):
        try:
            pixels = _pixels_of(image, settings)
        except (UnfitPicture, OSError, ValueError, SyntaxError) as error:  # Pillow raises each of them
            raise DataError(f"image {number} cannot be encoded: {error}.") from error
        # Each is a chunk, because one array takes 2 GiB at most.
        chunks.append(pa.array([{"picture": pixels}], PAGE_CONTENT))
    return pa.chunked_array(chunks, PAGE_CONTENT)


def _pixels_of(image: Image, settings: PictureSettings) -> bytes:
    from PIL import Image as Pillow

    if isinstance(image, str | Path):
        image = Path(image).read_bytes()
    if isinstance(image, bytes):
        return decode_picture(image, settings).pixels
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UnfitPicture("bad_picture", f"an array of {image.dtype} {list(image.shape)} is not uint8 RGB")
        return fit(Pillow.fromarray(image), settings)
    if not isinstance(image, Pillow.Image):
        raise UnfitPicture(
            "bad_picture", f"{type(image).__name__} is neither bytes, a path, an image of Pillow nor an array"
        )
    # Converting colours by a profile changes the image, which belongs to the caller.
    own = image.copy() if "icc_profile" in image.info else image
    return fit(plain_image(own, settings, []), settings)
