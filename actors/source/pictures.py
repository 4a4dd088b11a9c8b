"""Settings of a source with pictures, and the pixels of its pictures.

Used by the formats and by the reader for models that see. Pictures are decoded in processes of their own, and in a plan not
at all: there a white picture of the same size stands for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from actors.images.decode import Picture, picture_size
from actors.images.errors import UnfitPicture
from actors.images.pixels import blank_pixels
from actors.images.settings import PictureSettings
from actors.images.workers import DecodeJob, decode_pool
from actors.inputs import PAGE_CONTENT
from actors.progress_counter import count_progress

# Notes of a picture: the first of several frames is embedded; its colour profile could not be used.
ANIMATED, UNCONVERTED = 1, 2

# The bytes of a picture's file, None where a plan does not fetch them, or why there are none.
Loaded = bytes | UnfitPicture | None


@dataclass(frozen=True, slots=True)
class Pictures:
    """Settings of a source with pictures.

    Attributes:
        settings: Size and reading of pictures, as the model needs them.
        column: The column of pictures; None if the files themselves are pictures and PDFs.
        prefer: What is embedded of a row with a text and a picture; None: such a row is quarantined.
        fetch: Whether URLs are fetched: from any public address, or from these hosts only.
        page_text: Whether the text layer of a page is read, because the table keeps texts.
        blank: Sizes only, for planning: pictures are white, and no pixel is decoded.
    """

    settings: PictureSettings
    column: str | None = None
    prefer: Literal["text", "image"] | None = None
    fetch: bool | frozenset[str] = False
    page_text: bool = False
    blank: bool = False


def page_content(texts: pa.StringArray, pictures: pa.BinaryArray) -> pa.StructArray:
    """Return the content of rows (`PAGE_CONTENT`): a picture where there is one, with its own text, else a text."""
    return pa.StructArray.from_arrays([texts, pictures], fields=list(PAGE_CONTENT))


def decoded(files: Iterable[Loaded], how: Pictures) -> Iterator[Picture | UnfitPicture]:
    """Yield each picture, or why it has no pixels; in a plan a white picture of its size."""
    if how.blank:
        yield from (_blank(file, how.settings) for file in files)
        return
    failed: dict[int, UnfitPicture] = {}

    def jobs() -> Iterator[DecodeJob]:
        for number, file in enumerate(files):
            if isinstance(file, UnfitPicture):
                failed[number] = file
            yield DecodeJob(file if isinstance(file, bytes) else b"", how.settings)

    for number, picture in enumerate(decode_pool().run(jobs())):
        yield failed.get(number, picture)


def notes_of(picture: Picture) -> int:
    """Return the notes of a picture that the outcome counts: the sum of `ANIMATED` and `UNCONVERTED`, where they apply."""
    return ANIMATED * (picture.frames > 1) + UNCONVERTED * bool(picture.notes)


def count_notes(notes: pa.Array) -> dict[str, int]:
    """Return the number of pictures with each note, by the name of the unit's count."""
    flags = pc.fill_null(notes, 0).to_numpy(zero_copy_only=False)
    return {
        name: int(((flags & flag) > 0).sum()) for name, flag in (("animated", ANIMATED), ("unconverted", UNCONVERTED))
    }


def _blank(file: Loaded, settings: PictureSettings) -> Picture | UnfitPicture:
    count_progress()
    if isinstance(file, UnfitPicture):
        return file
    side = math.isqrt(settings.max_pixels)
    try:
        size = (side, side) if file is None else picture_size(file, settings.exif)
        return Picture(blank_pixels(*size, settings))
    except UnfitPicture as error:
        return error
