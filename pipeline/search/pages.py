"""Writes the pages and pictures of hits as PNG files, to look at.

Called by `vectide search --pages-out`. Pages are drawn again from the source, which may have changed since.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.images.errors import UnfitPicture
from actors.images.pixels import unpack_pixels
from actors.images.settings import PictureSettings
from actors.images.workers import DecodeJob, PageJob, decode_pool
from actors.looks import HEAD_BYTES, kind_of
from actors.schema import PAGE, SHARD
from actors.source.pdf_files import pdf_file
from pipeline.search.search import Hit

# Large enough to read an A4 page, and not larger.
_SETTINGS = PictureSettings(min_pixels=28 * 28, max_pixels=2_000_000)
_LONGEST_NAME = 80


def write_pages(hits: Sequence[Hit], folder: str) -> tuple[list[str], list[str]]:
    """Write the page or picture of each hit as `<rank>-<id>.png`.

    Args:
        hits: Hits of one question, best first.
        folder: A local folder; made if it is missing.

    Returns:
        The paths written, and a sentence for each hit without a page that can be drawn.

    Raises:
        ConfigError: the folder is not local, or cannot be made.
    """
    if not storage.is_local(folder):
        raise ConfigError(f"--pages-out {folder!r} is not on this machine; give a local folder")
    place = storage.local_path(folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--pages-out {folder!r} is not a folder that can be made: {error.strerror}") from None
    written, notes = [], []
    for rank, hit in enumerate(hits, 1):
        try:
            pixels = _pixels(hit)
        except (UnfitPicture, StorageError, FileNotFoundError, OSError) as error:
            notes.append(f"the page of {hit.id!r} cannot be drawn: {error}")
            continue
        if pixels is None:
            notes.append(f"{hit.id!r} is neither a page of a PDF nor a picture file")
            continue
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", hit.id)[-_LONGEST_NAME:]
        path = place / f"{rank:03d}-{name}.png"
        path.write_bytes(_png(pixels))
        written.append(str(path))
    return written, notes


def _pixels(hit: Hit) -> bytes | None:
    """Return the packed pixels of a hit's page or picture; None if its row came from something else."""
    path, page = hit.columns.get(SHARD), hit.columns.get(PAGE)
    if not isinstance(path, str):
        return None
    if isinstance(page, int):
        job: DecodeJob | PageJob = PageJob(pdf_file(storage.stat(path)), page, _SETTINGS)
    elif kind_of(storage.read(path, 0, HEAD_BYTES)) == "picture":
        job = DecodeJob(storage.read(path), _SETTINGS)
    else:  # such as a large file of rows, which is not read
        return None
    (result,) = decode_pool().run([job])
    if isinstance(result, UnfitPicture):
        raise result
    return result.pixels


def _png(pixels: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(unpack_pixels(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
