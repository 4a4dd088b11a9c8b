"""Pictures in a column of a source: from its cells to the content of each row.

Used by the reader for models that see. A cell has the bytes of a picture or refers to them: a path, a URL, base64, a data
URI, or the struct `{bytes, path}` of data sets on the hub, whose bytes win over its path. The type of the column and the
content of each cell tell which; no setting does.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from actors import storage
from actors.errors import AccessDenied, ConfigError
from actors.images.errors import UnfitPicture
from actors.images.fetch import fetch
from actors.looks import kind_of
from actors.source.blank import blank_rows
from actors.source.columns import Invalid
from actors.source.formats.base import LARGEST_VALUE_BYTES
from actors.source.formats.types import is_text
from actors.source.pictures import Loaded, Pictures, decoded, notes_of, page_content
from actors.source.views import without_views
from actors.storage import providers

_THREADS = 8
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+=*\s*")
_URL = re.compile(r"https?://", re.IGNORECASE)
_HEAD = 64  # characters of base64 by which a picture is recognized


def is_picture(kind: pa.DataType) -> bool:
    """Return whether a column of this type can have pictures: bytes, text, or a struct with `bytes` or `path`."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_picture(kind.storage_type)
    if types.is_dictionary(kind):
        return is_picture(kind.value_type)
    if types.is_struct(kind):
        parts = {field.name: field.type for field in kind}
        found = [name for name in ("bytes", "path") if name in parts]
        return bool(found) and all(types.is_null(parts[name]) or _is_plain(parts[name]) for name in found)
    return types.is_null(kind) or _is_plain(kind)


def _is_plain(kind: pa.DataType) -> bool:
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(binary or types.is_fixed_size_binary(kind) or is_text(kind))


def contents(
    texts: pa.StringArray, cells: pa.Array, shards: pa.StringArray, how: Pictures
) -> tuple[pa.Array, pa.Array, Invalid]:
    """Return the content of rows with a column of pictures, their notes, and the rows without content.

    Args:
        texts: Text of each row; null if it has none.
        cells: The column of pictures, as `plain_cells` returns it.
        shards: Path of each row's file: relative paths in a cell are below its folder.
        how: Settings of the source.

    Returns:
        `PAGE_CONTENT` [rows], null for an invalid row, and uint8 [rows], see `pictures.notes_of`. A picture's own text is kept only if the job prefers pictures.

    Raises:
        ConfigError: A plan finds a URL, and the job does not allow to fetch it.
    """
    written: list[str | None] = texts.to_pylist()
    for row in blank_rows(pc.fill_null(texts, "")).tolist():
        written[row] = None
    references = list(_references(cells))
    paths = shards.to_pylist()
    invalid: Invalid = {}
    wanted: list[int] = []
    for row, reference in enumerate(references):
        if not reference and written[row] is None:
            invalid[row] = ("empty_text", "the row has neither a text nor a picture: both are null, empty or blank")
        elif reference and written[row] is not None and how.prefer is None:
            error = "the row has a text and a picture; source.prefer: text or image says which of them is embedded"
            invalid[row] = ("text_and_picture", error)
        elif reference and (written[row] is None or how.prefer == "image"):
            wanted.append(row)

    pixels: dict[int, bytes] = {}
    notes = [0] * len(written)
    with ThreadPoolExecutor(_THREADS) as pool:
        loaded = pool.map(lambda row: _loaded(references[row], paths[row], how), wanted)
        for row, result in zip(wanted, decoded(loaded, how), strict=True):
            if isinstance(result, UnfitPicture):
                invalid[row] = (result.reason, result.error)
            else:
                pixels[row], notes[row] = result.pixels, notes_of(result)
    pictures = pa.array([pixels.get(row) for row in range(len(written))], pa.binary())
    return page_content(pa.array(written, pa.string()), pictures), pa.array(notes, pa.uint8()), invalid


def plain_cells(cells: pa.Array) -> pa.Array:
    """Return a column of pictures without extension types, dictionaries and views, of which Arrow filters only some."""
    if isinstance(cells, pa.ExtensionArray):
        cells = cells.storage
    if types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    return without_views(cells)


def _references(cells: pa.Array) -> Iterator[bytes | str | None]:
    """Yield the bytes of each cell, or the text that refers to them, or None (or empty) for a cell without a picture."""
    if not types.is_struct(cells.type):
        yield from (cell if isinstance(cell, bytes | None) else _of_text(cell.strip()) for cell in cells.to_pylist())
        return
    for cell in cells.to_pylist():
        yield None if cell is None else cell.get("bytes") or (cell.get("path") or "").strip() or None


def _of_text(text: str) -> str | None:
    """Return the text that refers to a picture; None for an object of JSON Lines without bytes and path."""
    if text.startswith("{"):
        with suppress(orjson.JSONDecodeError):
            cell = orjson.loads(text)
            return text if cell.get("bytes") or cell.get("path") else None
    return text


def _loaded(reference: bytes | str | None, shard: str, how: Pictures) -> Loaded:
    try:
        return _load(reference, shard, how)
    except UnfitPicture as error:
        return error


def _load(reference: bytes | str | None, shard: str, how: Pictures) -> bytes | None:
    """Return the bytes that a cell has or refers to; None if a plan would have to fetch them."""
    if reference is None or isinstance(reference, bytes):
        return reference or b""
    if reference.startswith("{"):
        return _load(_of_object(reference), shard, how)
    if reference[:5].lower() == "data:":
        header, _, payload = reference.partition(",")
        if header.lower().endswith(";base64"):
            return _decoded_base64(payload, "the data URI")
        return urllib.parse.unquote_to_bytes(payload)
    if _URL.match(reference):
        return _fetched(reference, how)
    if _is_base64(reference):
        return _decoded_base64(reference, "the cell")
    return _read(reference, shard)


def _of_object(text: str) -> bytes | str | None:
    """Return what an object `{"bytes": base64, "path": ...}` of JSON Lines has or refers to."""
    try:
        cell = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise UnfitPicture("bad_picture", f"a text that is no picture, path or URL: {_shown(text)}") from None
    if payload := cell.get("bytes"):
        return _decoded_base64(str(payload), "bytes")
    return str(cell.get("path") or "")


def _is_base64(text: str) -> bool:
    """Return whether a text is the base64 of a picture. Some paths have the same characters, and no picture in them."""
    head = "".join(text[: 2 * _HEAD].split())[:_HEAD]
    if len(head) < _HEAD // 2 or not _BASE64.fullmatch(head):
        return False
    try:
        return kind_of(_decoded_base64(head[: len(head) // 4 * 4], "")) is not None
    except UnfitPicture:
        return False


def _decoded_base64(text: str, what: str) -> bytes:
    plain = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise UnfitPicture("bad_picture", f"the base64 of {what} is damaged: {error}") from None


def _fetched(url: str, how: Pictures) -> bytes | None:
    if how.fetch is not False:
        return None if how.blank else fetch(url, how.fetch)
    fix = "set source.fetch: true, or to the hosts that may be asked"
    if how.blank:
        raise ConfigError(
            f"source.image {how.column!r} has URLs such as {url!r}, and source.fetch does not allow them; {fix}"
        )
    raise UnfitPicture("fetch_failed", f"{url!r} was not fetched, because source.fetch does not allow it; {fix}")


def _read(path: str, shard: str) -> bytes:
    """Return the bytes of a file that a cell names, relative to the folder of the shard."""
    url = path if "://" in path or path.startswith("/") else storage.join(shard.rpartition("/")[0], path)
    is_local, scheme = storage.is_local(url), url.partition("://")[0]
    if not (is_local or providers.of(url) or scheme == shard.partition("://")[0]):  # fsspec would open ftp and others
        raise UnfitPicture("bad_picture", f"{_shown(url)} is of the scheme {scheme!r}, which cells may not name")
    try:
        if is_local and not storage.local_path(url).is_file():  # a device or pipe may have no end
            raise FileNotFoundError
        size_bytes = storage.stat(url).size_bytes
        if size_bytes > LARGEST_VALUE_BYTES:
            raise UnfitPicture("too_large", f"{url!r} has {size_bytes} bytes, over the limit of {LARGEST_VALUE_BYTES}")
        return storage.read(url)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UnfitPicture("fetch_failed", f"the file {_shown(url)} was not found") from None
    except AccessDenied as error:
        raise UnfitPicture("fetch_failed", str(error)) from None
    except (OSError, ValueError, ConfigError) as error:
        raise UnfitPicture(
            "bad_picture", f"the file {_shown(url)} cannot be read: {getattr(error, 'strerror', error)}"
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")
