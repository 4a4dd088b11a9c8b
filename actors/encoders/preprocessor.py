"""Reads preprocessor_config.json of a model that sees: the bounds that its pictures are resized to. Torch-free.

Repositories of one model differ in their bounds, so they are never a constant: the same picture has another vector with
other bounds. Everything else in the file is checked against the one way in which pictures are prepared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from actors.encoders.checkpoint import read_json
from actors.encoders.settings import EncoderSettings
from actors.errors import ConfigError, ModelError
from actors.images.settings import Alpha, Exif, PictureSettings

FILE = "preprocessor_config.json"
# Of the values 0 to 1 of red, green and blue.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_KNOWN: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "merge_size": 2,
    "patch_size": 14,
    "resample": 3,  # Pillow's bicubic filter
    "rescale_factor": 1 / 255,
    "temporal_patch_size": 2,
}


def picture_settings(settings: EncoderSettings, folder: Path) -> PictureSettings:
    """Returns the settings of pictures for the checkpoint of a model that sees.

    Raises:
        ConfigError: The user's `max_pixels` does not fit the model.
        ModelError: The checkpoint lacks the file, or the file asks for something that is not supported.
    """
    lowest, highest = _bounds(folder)
    if settings.max_pixels is not None:
        if settings.max_pixels < lowest:
            raise ConfigError(
                f"encoder.max_pixels {settings.max_pixels} is below {lowest}, to which {settings.model} enlarges small "
                "pictures. Raise it, or leave it out."
            )
        highest = settings.max_pixels
    return PictureSettings(lowest, highest, exif=cast("Exif", settings.exif), alpha=cast("Alpha", settings.alpha))


def chosen(settings: EncoderSettings) -> list[str]:
    """Returns the names of the settings of pictures that have another value than the default.

    Raises:
        ConfigError: One has a value that is not known.
    """
    for name, value, known in (("exif", settings.exif, get_args(Exif)), ("alpha", settings.alpha, get_args(Alpha))):
        if value not in known:
            raise ConfigError(f"encoder.{name} {value!r} is not known; use one of {', '.join(known)}.")
    unset = EncoderSettings(settings.model)
    return [
        name
        for name in ("max_pixels", "exif", "alpha", "multi_pool")
        if getattr(settings, name) != getattr(unset, name)
    ]


def _bounds(folder: Path) -> tuple[int, int]:
    """Returns the smallest and the largest area of a picture."""
    path = folder / FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(
            f"{folder} has a vision tower and no {FILE}, which says how large its pictures are. Fetch the checkpoint "
            "again with that file, or give the model texts only."
        )
    for key, known in _KNOWN.items():
        value = config.get(key)
        if value is not None and not _equal(value, known):
            raise ModelError(f"{path} has {key} {value!r}; pictures can be prepared with {known!r} only.")
    size = config.get("size")
    size = size if isinstance(size, dict) else {}
    # As in transformers, the older keys have precedence.
    lowest = config.get("min_pixels") or size.get("shortest_edge")
    highest = config.get("max_pixels") or size.get("longest_edge")
    if type(lowest) is not int or type(highest) is not int or not 0 < lowest <= highest:
        raise ModelError(
            f"{path} bounds the pixels of pictures by {lowest!r} and {highest!r}, which must be two whole numbers: "
            "min_pixels and max_pixels, or size with shortest_edge and longest_edge. Fetch the checkpoint again."
        )
    return lowest, highest


def _equal(value: Any, known: Any) -> bool:
    if isinstance(known, float):
        return isinstance(value, float | int) and math.isclose(value, known, rel_tol=1e-6)
    if isinstance(known, tuple):
        same_length = isinstance(value, Sequence) and len(value) == len(known)
        return same_length and all(_equal(one, other) for one, other in zip(value, known, strict=True))
    return type(value) is type(known) and value == known
