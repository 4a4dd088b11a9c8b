"""Formats of source files. `open_format` returns the one for a path; `base.Format` is their interface."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from actors.errors import ConfigError
from actors.source.formats.base import Format, Wanted
from actors.source.formats.code import Code
from actors.source.formats.delimited import Delimited
from actors.source.formats.documents import Documents
from actors.source.formats.jsonl import JsonLines
from actors.source.formats.lines import compression, without_compression
from actors.source.formats.pages import ENDINGS, Pages
from actors.source.formats.parquet import Parquet

__all__ = ["FORMATS", "Format", "Wanted", "common_format", "open_format"]

FORMATS: dict[str, Format] = {
    each.name: each for each in (Parquet(), JsonLines(), Delimited(), Documents(), Pages(), Code())
}

_ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    **dict.fromkeys(ENDINGS, "pages"),
}
_COMPRESSIBLE = ("jsonl", "csv")


def open_format(name: str, path: str) -> Format:
    """Return the format `name`; for "auto", the format of the ending of `path`.

    Raises:
        ConfigError: There is no such format, or the ending is unknown.
    """
    if name == "auto":
        plain = without_compression(path)
        name = next((known for ending, known in _ENDINGS.items() if plain.endswith(ending)), "")
        if not name or (compression(path) and name not in _COMPRESSIBLE):
            raise ConfigError(
                f"{path!r} does not have the ending of a known format; known are {', '.join(_ENDINGS)}, of which JSON Lines "
                f"and CSV may be followed by .gz or .zst. Set source.format to one of {', '.join(FORMATS)} (pages: PDFs, "
                f"pictures and texts together, and others are quarantined; code: source code), or narrow source.uri to the intended files, such as "
                f"{path.rsplit('/', 1)[0]}/*.parquet"
            )
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is not a format; known are auto, {', '.join(FORMATS)}{hint}")
    return FORMATS[name]


def common_format(name: str, paths: Iterable[str]) -> Format:
    """Return the one format of all files; text files beside PDFs and pictures are of the format `pages`.

    Raises:
        ConfigError: As for `open_format`, or the files have several formats.
    """
    if name != "auto":
        return open_format(name, "")
    firsts: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        ending = tuple(path.rpartition("/")[2].rsplit(".", 2)[1:])  # decides the format: most paths share a few
        if ending not in seen:
            seen.add(ending)
            firsts.setdefault(open_format(name, path).name, path)
    if set(firsts) == {"text", "pages"}:
        return FORMATS["pages"]
    if len(firsts) > 1:
        (first, path), (second, other) = list(firsts.items())[:2]
        raise ConfigError(
            f"{path!r} is {first} and {other!r} is {second}: a source has one format. "
            f"Narrow source.uri, or set source.format if they are the same"
        )
    return FORMATS[next(iter(firsts))]
