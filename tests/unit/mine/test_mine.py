"""Hard negatives against a plain loop, the thresholds one by one, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from actors.errors import ConfigError, DataError
from actors.schema import EMBEDDING, HASH, ID
from actors.source.content_hash import content_hashes
from actors.vectors import VectorColumn, dense
from pipeline.mine import mine as mining
from pipeline.mine.block import Rules
from pipeline.mine.choose import Counts, Near, Thresholds, choose
from pipeline.mine.mine import Mined, mine
from pipeline.mine.positives import Source
from pipeline.report.load import load_report
from pipeline.report.page import render
from pipeline.scan.block import Block

DIM = 16
COPIES = 40  # rows at the end with the texts of the first rows


class Table:
    """A table of given vectors in memory, as far as mining looks at it."""

    def __init__(self, rows: int, queries: int) -> None:
        random = np.random.default_rng(1)
        vectors = random.normal(size=(rows, DIM)).astype(np.float32)
        vectors[-COPIES:] = vectors[:COPIES]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        noise = random.normal(size=(queries, DIM)).astype(np.float32) / 3
        near = vectors[:queries] + noise
        self.queries: npt.NDArray[np.float32] = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
        texts = [f"passage {row}" for row in range(rows - COPIES)] + [f"passage {row}" for row in range(COPIES)]
        self.ids = [f"d{row:05d}" for row in range(rows)]
        self.hashes = content_hashes(pa.array(texts)).to_pylist()
        self.dense = VectorColumn(EMBEDDING, "dense", DIM)
        self.schema = pa.schema([(ID, pa.string()), (HASH, pa.string())])
        self.rows = rows
        stored = self.dense.stored(pa.chunked_array([dense(vectors)]), "float32").combine_chunks()
        whole = pa.record_batch([pa.array(self.ids), pa.array(self.hashes), stored], [ID, HASH, EMBEDDING])
        parts = [whole.slice(start, 3000) for start in range(0, rows, 3000)]
        self._blocks = [Block.of(part, self.dense, number << 32) for number, part in enumerate(parts)]
        self.scores = self.queries.astype(np.float64) @ vectors.astype(np.float64).T

    def blocks(self) -> Iterator[Block]:
        return iter(self._blocks)

    def columns(self, names: Sequence[str]) -> Iterator[pa.Table]:
        return (pa.Table.from_batches([block.rows]).select(list(names)) for block in self._blocks)

    def encode(self, texts: Sequence[str]) -> pa.Array:
        return dense(self.queries[[int(text.split()[1]) for text in texts]])

    def searcher(self) -> Any:
        return SimpleNamespace(scan=self, url="table", version=3)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(10_000, 300)


def write_pairs(
    folder: Path, places: Sequence[int], *, positives: Sequence[int] | None = None, **others: Any
) -> Source:
    """Pairs of the query of a row and the passage of a row, by default of the same."""
    passages = [f"passage {row}" for row in (positives or places)]
    columns = {"key": [f"p{number}" for number in range(len(places))], "query": [f"query {row}" for row in places]}
    pq.write_table(pa.table({**columns, "passage": passages, **others}), folder / "pairs.parquet")
    return Source(str(folder / "pairs.parquet"), id="key")


def run(table: Table, source: Source, folder: Path, thresholds: Thresholds = Thresholds(), **rules: Any) -> Mined:  # noqa: B008
    return mine(table.searcher(), source, str(folder / "out"), Rules(thresholds, **rules), encode=table.encode)


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out").to_pylist()
    return rows


def expected(table: Table, query: int, positives: Sequence[int], thresholds: Thresholds) -> list[tuple[str, int]]:
    """Ids and ranks of a query's negatives, by a loop over all rows."""
    masked = {table.hashes[row] for row in positives}
    limit = min(table.scores[query, row] for row in positives)
    order = np.lexsort((table.ids, -table.scores[query].astype(np.float32))).tolist()
    found: list[tuple[str, int]] = []
    seen: set[str] = set()
    for rank, row in enumerate((row for row in order if table.hashes[row] not in masked), 1):
        if rank > thresholds.last_rank or len(found) == thresholds.negatives:
            break
        if (
            rank >= thresholds.first_rank
            and table.scores[query, row] <= thresholds.max_share * limit
            and table.hashes[row] not in seen
        ):
            found.append((table.ids[row], rank))
        seen.add(table.hashes[row])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("by_id", [False, True])
def test_negatives_are_those_of_a_loop(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_id: bool):
    monkeypatch.setattr(mining, "_QUERIES", 128)  # three blocks
    places = list(range(300))
    source = write_pairs(tmp_path, places, row=[table.ids[row] for row in places])
    source = dataclasses.replace(source, passage_id="row") if by_id else source
    thresholds = Thresholds(negatives=5, first_rank=2, last_rank=60, max_share=0.9)
    mined = run(table, source, tmp_path, thresholds)
    rows = {row["pair_id"]: row for row in read(tmp_path)}
    for place in places:
        negatives = expected(table, place, [place], thresholds)
        row = rows.get(f"p{place}", {"negative_ids": [], "ranks": [], "positive_id": table.ids[place]})
        assert list(zip(row["negative_ids"], row["ranks"], strict=True)) == negatives
        assert row["positive_id"] == table.ids[place]  # of two copies the smaller id
        if negatives:
            assert row["positive_score"] == pytest.approx(table.scores[place, place], abs=1e-6)
            of_rows = [table.scores[place, int(name[1:])] for name, _ in negatives]
            assert row["scores"] == pytest.approx(of_rows, abs=1e-6)
    assert (mined.pairs, mined.queries, mined.missing, mined.rows) == (300, 300, 0, len(rows))
    assert mined.rows + mined.without == 300
    assert mined.negatives == sum(len(row["negative_ids"]) for row in rows.values()) == sum(mined.gaps.values())
    assert mined.candidates == 300 * 60
    page = render(load_report(mined.out))
    assert all(f"from {gap}: {count:,}" in page for gap, count in mined.gaps.items())
    assert f"{mined.negatives:,}" in page


def test_the_report_of_a_damaged_mining_is_an_error(tmp_path: Path):
    (tmp_path / "_mining.json").write_text("{}")
    with pytest.raises(DataError, match="is not what `vectide mine` writes"):
        load_report(str(tmp_path))


def test_a_query_with_two_positives_masks_both_and_takes_the_lower_one(table: Table, tmp_path: Path):
    source = write_pairs(tmp_path, [5, 5, 6], positives=[5, 77, 6])
    thresholds = Thresholds(negatives=3, max_share=1.0, last_rank=10_000)
    run(table, source, tmp_path, thresholds)
    rows = {row["pair_id"]: row for row in read(tmp_path)}
    for pair in ("p0", "p1"):
        assert list(zip(rows[pair]["negative_ids"], rows[pair]["ranks"], strict=True)) == expected(
            table, 5, [5, 77], thresholds
        )
    assert [rows[pair]["positive_id"] for pair in ("p0", "p1")] == ["d00005", "d00077"]


@pytest.mark.slow
def test_a_run_that_was_stopped_scans_only_what_is_missing(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mining, "_QUERIES", 100)
    source = write_pairs(tmp_path, range(300))
    whole = run(table, source, tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(files) == 4
    (tmp_path / "out" / "_mining.json").unlink()
    (tmp_path / "out" / sorted(files)[2]).unlink()
    asked: list[int] = []

    def encode(texts: Sequence[str]) -> pa.Array:
        asked.append(len(texts))
        return table.encode(texts)

    again = mine(table.searcher(), source, str(tmp_path / "out"), Rules(Thresholds()), encode=encode)
    assert asked == [100]
    assert again == whole
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    assert run(table, source, tmp_path) == whole  # nothing is left to do
    (tmp_path / "out" / sorted(files)[2]).unlink()  # of a finished one
    assert run(table, source, tmp_path) == whole
    for damaged in ("{}", "[]", "", json.dumps({"name": "x", "outcome": {}})):
        (tmp_path / "out" / "_mining.json").write_text(damaged)
        (tmp_path / "out" / sorted(files)[1]).write_text("x")
        assert run(table, source, tmp_path) == whole
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    with pytest.raises(ConfigError, match="name another folder, or empty it"):
        run(table, source, tmp_path, Thresholds(max_share=0.9))


def test_pairs_without_a_passage_in_the_table_are_counted_then_refused(table: Table, tmp_path: Path):
    source = write_pairs(tmp_path, range(40), positives=[*range(38), 99_998, 99_999])
    assert run(table, source, tmp_path).missing == 2
    with pytest.raises(
        DataError, match=r"the passages of 2 of 40 pairs are not in 'table' by their text.*--passage-id"
    ):
        run(table, source, tmp_path, max_missing=0.04)
    by_id = dataclasses.replace(source, passage_id="passage")
    with pytest.raises(DataError, match=r"40 of 40 pairs are not in 'table' by their id, such as 'passage 0'"):
        run(table, by_id, tmp_path)


def test_rows_that_are_blank_are_counted(table: Table, tmp_path: Path):
    source = write_pairs(tmp_path, range(4))
    rows = pq.read_table(source.uri).to_pylist()
    rows[0]["query"], rows[1]["passage"], rows[2]["passage"] = " ", "", None
    pq.write_table(pa.Table.from_pylist(rows), source.uri)
    mined = run(table, source, tmp_path)
    assert mined.bad == {"blank query": 1, "empty_text": 1, "null_text": 1}
    assert mined.pairs == 4


def test_queries_must_be_texts(table: Table, tmp_path: Path):
    source = write_pairs(tmp_path, range(4), number=[1, 2, 3, 4])
    with pytest.raises(ConfigError, match="--query names the column 'number', which is int64; name a column of texts"):
        run(table, dataclasses.replace(source, query="number"), tmp_path)


def test_passages_of_a_delta_table_must_be_texts(table: Table, tmp_path: Path):
    source = Source(str(tmp_path / "pairs"), passages=("number",))
    write_deltalake(source.uri, pa.table({"query": ["a"], "number": [1]}))
    with pytest.raises(ConfigError, match="--passage names the column 'number', which is int64"):
        run(table, source, tmp_path)


def test_no_negative_left_is_an_error_that_names_the_thresholds(table: Table, tmp_path: Path):
    source = write_pairs(tmp_path, range(10))
    with pytest.raises(
        DataError, match=r"no negative is left of the 1,000 rows near the queries; removed by --min-score"
    ):
        run(table, source, tmp_path, Thresholds(min_score=0.999))
    assert list((tmp_path / "out").glob("*.parquet")) == []


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (Thresholds(negatives=0), "--negatives is 0"),
        (Thresholds(first_rank=0), "--ranks 0,100"),
        (Thresholds(first_rank=9, last_rank=8), "--ranks 9,8"),
        (Thresholds(last_rank=5), "fewer rows than --negatives 7"),
        (Thresholds(max_share=0), "--max-share is 0"),
        (Thresholds(max_share=float("nan")), "--max-share is nan"),
        (Thresholds(absolute_margin=-1), "--absolute-margin is -1"),
        (Thresholds(min_score=float("nan")), "--min-score is nan"),
        (Thresholds(sampling="best"), "--sampling is 'best'"),
        (Thresholds(min_score=0.5, max_score=0.4), "no row is between"),
    ],
)
def test_thresholds_out_of_range_are_refused(thresholds: Thresholds, message: str):
    with pytest.raises(ConfigError, match=message):
        thresholds.check()


def near(*scores: float) -> Near:
    """Rows near one query."""
    count = len(scores)
    return Near(np.zeros(count, np.int64), np.array(scores, np.float32), np.arange(1, count + 1), np.zeros(count, bool))


@pytest.mark.parametrize(
    ("thresholds", "rows", "removed"),
    [
        (Thresholds(max_share=0.95), [1, 2, 3], {"--max-share": 1}),
        (Thresholds(max_share=1.0), [0, 1, 2, 3], {}),
        (Thresholds(max_share=1.0, absolute_margin=0.2), [2, 3], {"--absolute-margin": 2}),
        (Thresholds(max_share=1.0, min_score=0.3), [0, 1, 2], {"--min-score": 1}),
        (Thresholds(max_share=1.0, max_score=0.5), [2, 3], {"--max-score": 2}),
        (Thresholds(max_share=1.0, first_rank=2, last_rank=3, negatives=1), [1], {"--ranks": 2}),
        (Thresholds(max_share=1.0, negatives=2), [0, 1], {}),
    ],
)
def test_each_threshold_removes_what_it_says(thresholds: Thresholds, rows: list[int], removed: dict[str, int]):
    counts = Counts()
    chosen = choose(near(0.79, 0.74, 0.5, 0.1), np.array([0.8], np.float32), thresholds, number=0, counts=counts)
    assert chosen.tolist() == rows
    assert {option: count for option, count in counts.removed.items() if count} == removed


def test_a_negative_positive_score_lowers_the_limit_too():
    thresholds = Thresholds(max_share=0.5)
    chosen = choose(near(-0.2, -0.25, -0.4), np.array([-0.2], np.float32), thresholds, number=0, counts=Counts())
    assert chosen.tolist() == [2]  # below -0.2 - 0.1


def test_random_sampling_depends_on_the_seed_alone():
    thresholds = Thresholds(negatives=3, max_share=1.0, sampling="random")
    rows = near(*np.linspace(0.7, 0.1, 50))

    def taken(seed: int) -> list[int]:
        seeded = dataclasses.replace(thresholds, seed=seed)
        return list(choose(rows, np.array([0.8], np.float32), seeded, number=4, counts=Counts()).tolist())

    assert taken(0) == taken(0) == sorted(taken(0))
    assert len({tuple(taken(seed)) for seed in range(5)}) == 5


def test_the_judge_is_asked_for_no_more_than_is_missing():
    asked: list[list[int]] = []

    def judge(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.asarray(rows % 2 == 1)

    counts, thresholds = Counts(), Thresholds(negatives=2, max_share=1.0)
    chosen = choose(
        near(*np.linspace(0.7, 0.1, 9)), np.array([0.8], np.float32), thresholds, number=0, counts=counts, judge=judge
    )
    assert chosen.tolist() == [1, 3]
    assert asked == [[0, 1], [2], [3]]
    assert (counts.cross_encoded, counts.removed["--cross-encoder"]) == (4, 2)
