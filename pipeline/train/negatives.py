"""Negatives of a source: found in the files of `vectide mine`, checked, and padded to the same number in every row.

Ids are compared by 8 bytes of their hash; among 100 million ids two are equal with a probability of 1 in 3,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError, DataError
from actors.schema import CONTENT, ID, KEPT_TEXT
from actors.schema import HASH as CONTENT_HASH
from actors.source.blank import blank_rows
from actors.source.content_hash import content_hashes
from pipeline.job.training import DataSource, Texts
from pipeline.plan.rows import Columns, read_rows
from pipeline.scan.table_scan import TableScan
from pipeline.table import delta_table
from pipeline.train.data import NEGATIVES_FILE, TEXTS_FILE, Ints, text_hashes
from pipeline.train.mining import Mining
from pipeline.train.writer import TEXTS, Found

_ATTEMPTS = 100
_BLOCK_ROWS = 1 << 18


def add_mined(mining: Mining, source: DataSource, found: Found, folder: Path, counts: Counter[str]) -> Found:
    """Return the rows with the negatives that were mined for them; their texts are written to the folder.

    Raises:
        ConfigError: the texts of the negatives are nowhere.
        DataError: they were mined for other pairs, or no text is found.
    """
    row, ids, mined_rows, positives = _of_rows(mining, found)
    other = f"{mining.key} {mining.folder!r} has negatives of other pairs"
    fix = f"mine negatives for these, with `vectide mine --pairs {source.uri}`"
    if not len(mined_rows):
        raise DataError(f"{other}: none of its ids is that of a row of {source.uri!r}; {fix}")
    wanted, place = np.unique(np.concatenate([ids, positives]), return_inverse=True)
    place, of_positives = place[: len(ids)], place[len(ids) :]
    texts = _Wanted(wanted, place)
    expected = np.zeros(len(wanted), np.int64)
    expected[of_positives] = found.passage[mined_rows]
    is_right = np.ones(len(mined_rows), bool)
    if mining.passage_id is not None:
        is_right = found.positive[mined_rows] == positives
    with pa.ipc.new_stream(str(folder / TEXTS_FILE), TEXTS) as stream:
        seen = np.zeros(len(wanted), bool)
        for part in _texts(mining, source.texts):
            hashes = text_hashes(part[CONTENT_HASH])
            known, at = texts.find(part[ID])
            seen[at] |= expected[at] == hashes[known]
            texts.write(part, known, at, hashes, stream)
    if mining.passage_id is None and source.texts is None:
        is_right = seen[of_positives] & (expected[of_positives] == found.passage[mined_rows])
    if wrong := int((~is_right).sum()):
        raise DataError(
            f"{other}: the positives of {wrong:,} of {len(mined_rows):,} pairs are not the passages that the rows of "
            f"{source.uri!r} have; {fix}"
        )
    has_text = texts.number[place] >= 0
    if not has_text.any():
        raise DataError(
            f"{mining.key} {mining.folder!r}: none of the negatives has a text in {texts_name(mining, source)}"
        )
    counts["negatives left out: no text"] += int((~has_text).sum())
    counts["pairs without mined negatives"] = found.rows - len(mined_rows)
    row, place = row[has_text], place[has_text]
    order = np.argsort(row, kind="stable")
    return replace(found, row=row[order], number=texts.number[place][order], hash=texts.hash[place][order])


def texts_name(mining: Mining, source: DataSource) -> str:
    """Return the place of the texts of mined negatives, for messages."""
    return repr(mining.table) if source.texts is None else f"{source.texts.uri!r} by the ids in {source.texts.id!r}"


def _of_rows(mining: Mining, found: Found) -> tuple[Ints, Ints, Ints, Ints]:
    """Return the row and the id's hash of each negative, and the same of each positive."""
    order = np.argsort(found.key, kind="stable")
    keys = found.key[order]
    if (keys[1:] == keys[:-1]).any():
        raise DataError(
            f"{mining.key}: rows of the source have the same id in {mining.id!r}, so their negatives cannot be distinguished; "
            f"give each row its own id, and mine again"
        )
    none = np.zeros(0, np.int64)
    parts: list[tuple[Ints, ...]] = [(none, none, none, none)]
    for rows in mining.parts():
        own = _hashes(rows["pair_id"])
        at = np.minimum(np.searchsorted(keys, own), max(len(keys) - 1, 0))
        known = keys[at] == own if len(keys) else np.zeros(len(own), bool)
        mined, numbers = rows.filter(pa.array(known)), order[at[known]]
        lists = mined["negative_ids"].combine_chunks()
        of_lists = pc.list_parent_indices(lists).to_numpy()
        parts.append((numbers[of_lists], _hashes(pc.list_flatten(lists)), numbers, _hashes(mined["positive_id"])))
    row, ids, mined_rows, positives = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return row, ids, mined_rows, positives


class _Wanted:
    """Texts that are looked for.

    Args:
        ids: Hashes of all ids that are looked for, ascending.
        place: Places in `ids` of those whose texts are written.

    Attributes:
        number: Row of the file of texts, or -1, int64 [ids].
        hash: Text hash, int64 [ids].
    """

    def __init__(self, ids: Ints, place: Ints) -> None:
        self._ids, self._written = ids, 0
        self._is_text = np.zeros(len(ids), bool)
        self._is_text[place] = True
        self.number, self.hash = np.full(len(ids), -1), np.zeros(len(ids), np.int64)

    def find(self, ids: pa.ChunkedArray) -> tuple[Ints, Ints]:
        """Return the rows whose id is looked for, and their places."""
        own = _hashes(ids)
        at = np.minimum(np.searchsorted(self._ids, own), len(self._ids) - 1)
        known = np.flatnonzero(self._ids[at] == own)
        return known, at[known]

    def write(self, part: pa.Table, rows: Ints, at: Ints, hashes: Ints, stream: pa.RecordBatchStreamWriter) -> None:
        """Write the texts of some rows that are looked for and not yet there; of several with one id the first."""
        at, first = np.unique(at, return_index=True)
        new = self._is_text[at] & (self.number[at] < 0)
        at, rows = at[new], rows[first][new]
        texts = pc.fill_null(part[CONTENT].take(pa.array(rows)).combine_chunks().cast(pa.string()), "")
        good = np.ones(len(rows), bool)
        good[blank_rows(texts)] = False
        at, rows, texts = at[good], rows[good], texts.filter(pa.array(good))
        self.number[at] = self._written + np.arange(len(at))
        self.hash[at] = hashes[rows]
        self._written += len(at)
        if len(at):
            stream.write_table(pa.table([texts, hashes[rows]], schema=TEXTS))


def _texts(mining: Mining, texts: Texts | None) -> Iterator[pa.Table]:
    """Yield ids, texts and content hashes of the rows that may be negatives, in parts."""
    if texts is not None:
        at = mining.key.replace("negatives", "texts")
        options = {"source.uri": f"{at}.uri", "source.text": f"{at}.text", "source.id": f"{at}.id"}
        yield from (part.rows for part in read_rows(texts.uri, Columns((texts.text,), id=texts.id, options=options)))
        return
    table = delta_table.need_table(mining.table, mining.version)
    fix = "name files with their texts, as in texts: {uri: docs.parquet, id: id, text: text}"
    if gone := delta_table.absent_files(mining.table, delta_table.file_sizes(table)):
        raise ConfigError(
            f"{mining.key}: the negatives were mined in version {mining.version} of {mining.table!r}, of which {len(gone):,} files "
            f"are gone, {gone[0]!r} first; {fix}, or mine again"
        )
    scan = TableScan(table, [], None)
    if KEPT_TEXT not in scan.schema.names:
        raise ConfigError(
            f"{mining.key}: the negatives were mined in {mining.table!r}, which stores no texts; {fix}, or backfill the table with "
            f"table.keep_text: true and mine again"
        )
    for part in scan.columns([ID, KEPT_TEXT, CONTENT_HASH]):
        yield part.rename_columns([ID, CONTENT, CONTENT_HASH])


def write_negatives(
    found: Found, per_row: int | None, folder: Path, *, random: np.random.Generator, counts: Counter[str], where: str
) -> int:
    """Write the negatives of all rows, the same number for each; return that number.

    A negative that is a passage of the same query is left out, and so is one that a row has twice. A row with too few gets
    passages of other rows, none of which is one of its query.

    Args:
        found: The rows.
        per_row: Negatives of a row, taken from other rows if no row has some; None: the largest number that a row has.
        folder: Folder of the source.
        random: Source of the passages.
        counts: Receives the counts.
        where: Name of the source, for messages.

    Raises:
        DataError: there are too few passages to take.
    """
    positives = np.unique(_pair(found.query, found.passage))
    wrong = _is_positive(positives, found.query[found.row], found.hash)
    counts["negatives left out: a passage of the query"] = int(wrong.sum())
    order = np.lexsort((np.arange(len(found.row)), found.hash, found.row))
    again = order[1:][(np.diff(found.row[order]) == 0) & (np.diff(found.hash[order]) == 0)]
    again = again[~wrong[again]]
    counts["negatives left out: repeated"] = len(again)
    wrong[again] = True
    row, number, hashes = found.row[~wrong], found.number[~wrong], found.hash[~wrong]
    have = np.bincount(row, minlength=found.rows)
    width = int(per_row or have.max())
    if not width:
        return 0
    starts = np.cumsum(have) - have
    place = np.arange(len(row)) - starts[row]
    surplus = place >= width
    counts["negatives left out: more than negatives_per_row"] = int(surplus.sum())
    row, number, hashes, place = row[~surplus], number[~surplus], hashes[~surplus], place[~surplus]
    others = len(np.unique(found.passage)) - 1
    if width - have.min() > others:  # before files and arrays of this width are made
        raise DataError(
            f"{where}: {width:,} negatives a row need {width - have.min():,} passages of other rows, and there are {others:,}; "
            f"set negatives_per_row to {have.min() + others:,} or less"
        )
    matrix = np.lib.format.open_memmap(folder / NEGATIVES_FILE, "w+", np.int64, (found.rows, width))
    matrix[row, place] = number
    short = np.flatnonzero(have < width)
    counts["padded negatives"] = int((width - have[short]).sum())
    for start in range(0, len(short), _BLOCK_ROWS):
        rows = short[start : start + _BLOCK_ROWS]
        own = np.zeros((len(rows), width), np.int64)
        slot = np.searchsorted(rows, row)
        inside = (slot < len(rows)) & (rows[np.minimum(slot, len(rows) - 1)] == row)
        own[slot[inside], place[inside]] = hashes[inside]
        for column in range(width):
            free = np.flatnonzero(have[rows] <= column)
            drawn = _draw(found, positives, rows[free], own[free, :column], random=random, where=where)
            own[free, column] = found.passage[drawn]
            matrix[rows[free], column] = -1 - drawn
    matrix.flush()
    return width


def _draw(found: Found, positives: Ints, rows: Ints, own: Ints, *, random: np.random.Generator, where: str) -> Ints:
    """Return for each row another row whose passage is none of its query and not among its negatives.

    Args:
        found: All rows.
        positives: Hashes of all pairs.
        rows: The rows, int64 [n].
        own: Text hashes of their negatives, int64 [n, columns].
        random: Source of the rows.
        where: Name of the source, for messages.
    """
    drawn = np.zeros(len(rows), np.int64)
    left = np.arange(len(rows))
    for _ in range(_ATTEMPTS):
        drawn[left] = random.integers(0, found.rows, len(left))
        passage = found.passage[drawn[left]]
        unfit = _is_positive(positives, found.query[rows[left]], passage) | (own[left] == passage[:, None]).any(axis=1)
        left = left[unfit]
        if not len(left):
            return drawn
    raise DataError(
        f"{where}: {len(left):,} rows have fewer negatives than others, and there are too few other passages to give them; "
        f"set negatives_per_row to a smaller number, or take them out of the source"
    )


def _is_positive(positives: Ints, query: Ints, text: Ints) -> npt.NDArray[np.bool_]:
    """Return which texts are the query itself or a passage of it."""
    pair = _pair(query, text)
    at = np.minimum(np.searchsorted(positives, pair), len(positives) - 1)
    found: npt.NDArray[np.bool_] = (positives[at] == pair) | (query == text)
    return found


def _pair(query: Ints, passage: Ints) -> Ints:
    """Return one hash of two, int64 [n]."""
    return query * 0x9E3779B97F4A7C1 ^ passage


def _hashes(ids: pa.ChunkedArray | pa.Array) -> Ints:
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return text_hashes(content_hashes(ids.cast(pa.string())))
