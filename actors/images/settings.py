"""Settings that decide which pixels a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Exif = Literal["rotate", "ignore"]
Alpha = Literal["white", "drop"]


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """Size and reading of pictures.

    Attributes:
        min_pixels: Smaller pictures are enlarged to at least this area.
        max_pixels: Larger pictures are reduced to at most this area.
        factor: Both sides are multiples of it: the patch size times the merge size.
        exif: Obey the orientation in a picture's EXIF data, or ignore it.
        alpha: Draw transparent pictures on white, or drop the alpha channel.
    """

    min_pixels: int
    max_pixels: int
    factor: int = 28
    exif: Exif = "rotate"
    alpha: Alpha = "white"
