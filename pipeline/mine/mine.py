"""Mines hard negatives from a table of embeddings: exact scans, block by block of queries.

Called by `vectide mine`. A block is a file of the result, written whole, so the same command resumes. Memory is that of the
pairs' hashes and of one block; it does not depend on the rows of the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, DataError
from pipeline.mine.block import Miner, Rules
from pipeline.mine.choose import GAP, Counts
from pipeline.mine.cross_encoder import load_cross_encoder, need_texts
from pipeline.mine.positives import Pairs, Source, index_pairs, query_texts
from pipeline.report.load import MINING, mined_prefix
from pipeline.search.search import Searcher

_QUERIES = 4096  # of a block
_QUERIES_WITH_TEXTS = 512  # with a cross-encoder: the texts of the candidates are in memory
_COUNTS = b"vectide.counts"


@dataclass(frozen=True, slots=True)
class Mined:
    """Result of a mining.

    Attributes:
        table: URL of the table.
        version: Its version.
        out: URL of the folder of Parquet files.
        pairs: Pairs that were read.
        bad: Pairs that cannot be used, by reason.
        missing: Pairs whose positive is not in the table.
        queries: Distinct queries.
        rows: Pairs with negatives: the rows of the result.
        full: Those with as many as were asked for.
        without: Pairs without any.
        candidates: Nearest rows that were looked at, of all queries.
        removed: Those that a threshold removed, by its option; a row counts for the first one.
        negatives: Negatives of all queries.
        cross_encoded: Pairs of texts that the cross-encoder scored.
        gaps: Negatives by the difference of the positive's score and theirs: least difference of a bin, and their number.
        settings: What they were mined with.
    """

    table: str
    version: int
    out: str
    pairs: int
    bad: dict[str, int]
    missing: int
    queries: int
    rows: int
    full: int
    without: int
    candidates: int
    removed: dict[str, int]
    negatives: int
    cross_encoded: int
    gaps: dict[str, int]
    settings: dict[str, Any]


def mine(
    searcher: Searcher,
    source: Source,
    out: str,
    rules: Rules,
    *,
    encode: Callable[[Sequence[str]], pa.Array] | None = None,
    report: Callable[[int, int], None] = lambda _, __: None,
) -> Mined:
    """Write hard negatives for pairs of a query and a passage.

    Args:
        searcher: The table.
        source: The pairs.
        out: URL of a folder for Parquet files with the columns of `block.SCHEMA`. `_mining.json` there is written last.
        rules: Which rows may be negatives.
        encode: Returns the dense vectors of queries; None: with the table's model.
        report: Called with the rows that were scanned and the rows to scan, of all blocks together.

    Raises:
        ConfigError: a column or the model is missing, a threshold is out of range, or `out` has other negatives.
        DataError: too many positives are not in the table, or no negative is left.
        StorageError: the store refused or failed.
    """
    rules.thresholds.check()
    scan, column = searcher.scan, searcher.scan.dense
    if column is None:
        raise ConfigError(f"{searcher.url!r} has no single vector a row; negatives are mined by those")
    score = None
    if rules.cross_encoder is not None:
        need_texts(scan, searcher.url)
        score = load_cross_encoder(rules.cross_encoder)
    pairs = index_pairs(source, scan)
    _need_positives(pairs, source, searcher, rules)
    settings = json.loads(
        json.dumps({**asdict(source), **asdict(rules), "table": searcher.url, "version": searcher.version})
    )
    folder = storage.absolute(out)
    name = blake2b(json.dumps([settings, pairs.digest]).encode(), digest_size=6).hexdigest()
    size = _QUERIES if score is None else _QUERIES_WITH_TEXTS
    there, finished = _there(folder, name)
    if finished is not None and len(there) == -(-pairs.queries // size):
        return finished
    vectors = encode or searcher.encode
    miner = Miner(scan, pairs, rules, lambda texts: column.matrix(vectors(texts)), score)
    rows, total = -(-pairs.queries // size) * scan.rows, Counts()
    urls = []
    for number, texts in enumerate(query_texts(source, pairs, size)):
        urls.append(storage.join(folder, f"{mined_prefix(name)}{number:06d}.parquet"))
        found = _counts_of(urls[-1]) if urls[-1].rpartition("/")[2] in there else None
        if found is None:
            scanned = partial(_scanned, report, number * scan.rows, rows)
            table, found = miner.mine(number * size, texts, scanned)
            _write(urls[-1], table, found)
        total.add(found)
    outcome = Mined(
        searcher.url,
        searcher.version,
        folder,
        pairs.read,
        dict(pairs.bad),
        pairs.missing,
        pairs.queries,
        total.pairs,
        total.full,
        total.without,
        total.candidates,
        {option: count for option, count in total.removed.items() if count},
        total.chosen,
        total.cross_encoded,
        {f"{place * GAP:.2f}": total.gaps[place] for place in sorted(total.gaps)},
        settings,
    )
    if not outcome.rows:
        for url in urls:
            storage.delete(url)
        removed = ", ".join(f"{option} {count:,}" for option, count in Counter(outcome.removed).most_common())
        raise DataError(
            f"no negative is left of the {outcome.candidates:,} rows near the queries; removed by {removed or 'none'}. "
            f"Loosen the first of these, as with --max-share 1, or widen --ranks"
        )
    storage.put(storage.join(folder, MINING), json.dumps({"name": name, "outcome": asdict(outcome)}, indent=2).encode())
    return outcome


def _scanned(report: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    report(before + rows, total)


def _need_positives(pairs: Pairs, source: Source, searcher: Searcher, rules: Rules) -> None:
    """Refuse pairs of which too many have no positive in the table."""
    usable = pairs.read - pairs.bad.total()
    if not usable:
        raise DataError(f"none of the {pairs.read:,} pairs of {source.uri!r} can be used: {dict(pairs.bad)}")
    if pairs.missing <= rules.max_missing * usable and pairs.queries:
        return
    what = "id" if source.passage_id is not None else "text"
    hint = (
        "the ids must be those of the table (source.id of its job)"
        if source.passage_id is not None
        else "the texts must be those that were embedded, all columns of source.text with --passage A,B; or name the column of "
        "the table's ids with --passage-id"
    )
    raise DataError(
        f"the passages of {pairs.missing:,} of {usable:,} pairs are not in {searcher.url!r} by their {what}, such as "
        f"{pairs.example!r}; --max-missing is {rules.max_missing:g}: {hint}"
    )


def _there(folder: str, name: str) -> tuple[set[str], Mined | None]:
    """Return the names of the files of this mining in the folder, and its result if it is finished.

    Raises:
        ConfigError: the folder has files of something else.
    """
    names = {shard.path.rpartition("/")[2] for shard in storage.walk(folder)}
    own = {each for each in names if each.startswith(mined_prefix(name))}
    finished = _finished(folder, name) if MINING in names else None
    if finished is not None or own:
        names.discard(MINING)  # of this mining; a damaged one is written again
    if finished is None and (others := names - own):
        raise ConfigError(
            f"--out {folder!r} has {min(others)!r}, which is not of these pairs, this version of the table and these settings; "
            f"name another folder, or empty it"
        )
    return own, finished


def _finished(folder: str, name: str) -> Mined | None:
    """Return the result in a folder; None if it is damaged or of another mining."""
    try:
        done = json.loads(storage.read(storage.join(folder, MINING)))
        return Mined(**done["outcome"]) if done["name"] == name else None
    except (ValueError, LookupError, TypeError):
        return None


def _write(url: str, table: pa.Table, counts: Counts) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_COUNTS: json.dumps(asdict(counts))}), sink, compression="zstd")
    storage.put(url, bytes(sink.getvalue()))


def _counts_of(url: str) -> Counts | None:
    """Return the numbers of a block that is there; None if its file is damaged."""
    try:
        with storage.open_arrow(url) as file:
            values = json.loads(pq.read_schema(file).metadata[_COUNTS])
        return Counts(**{**values, "gaps": {int(place): count for place, count in values["gaps"].items()}})
    except (ValueError, LookupError, TypeError):  # Arrow's error is a ValueError
        return None
