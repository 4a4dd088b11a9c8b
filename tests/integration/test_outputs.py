"""A family with several vectors a row, alone or beside one dense vector: written, continued, compared and searched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors.encoders import load_encoder
from actors.encoders.families.detect import FAMILIES
from actors.errors import ConfigError, DataError, GateClosed
from actors.inputs import prepare_texts
from actors.vectors import vectors_of
from actors.vectors.quantiser import quantise
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.search.search import LateHit, Searcher
from pipeline.table.changes import iter_changes
from pipeline.table.diff import diff
from pipeline.table.quarantine import quarantine
from tests.integration.conftest import make_job, write_corpus
from tests.toys.late import DIM, layout, write_late

BOTH, MULTI = ("embedding", "embedding_multi"), ("embedding_multi",)  # the first in blobs, the second in lists
LISTS = {"precision": "float32", "layout": "list"}
TEXTS = [*(f"text {'abcdefgh'[number % 8]} {number}" for number in range(20)), "text a 16", "a q", "b x"]


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy_late", (layout, "tests.toys.late:build"))
        yield


def rows_of(texts: list[str]) -> list[dict[str, object]]:
    return [{"id": f"r{number}", "text": text, "lang": f"l{number % 2}"} for number, text in enumerate(texts)]


def job_of(tmp_path, outputs, **changes):
    model = write_late(tmp_path / "model", *outputs)
    if outputs == MULTI:
        changes.setdefault("table__multi", LISTS)
    changes = {"source__text": ["text"], "run__unit_rows": 8, "run__max_quarantined": 0.2, **changes}
    return make_job(tmp_path / "corpus", tmp_path / "table", model, **changes)


def stored(table) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in DeltaTable(str(table)).to_pyarrow_table().to_pylist()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[tuple[str, ...], str]:
    """Return tables of 20 texts by their outputs; a row group has some three rows, so that candidates are in many."""
    made: dict[tuple[str, ...], str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.unit.writer._GROUP_BYTES", 200)
        for outputs in (("embedding",), BOTH, MULTI):
            folder = tmp_path_factory.mktemp("tables")
            write_corpus(folder / "corpus", [rows_of(TEXTS[:20])])
            job = job_of(folder, outputs)
            backfill(job)
            made[outputs] = str(job.table.uri)
    return made


@pytest.mark.parametrize("outputs", [BOTH, MULTI])
def test_every_row_has_the_vectors_of_its_tokens(tmp_path, outputs):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS)])
    job = job_of(tmp_path, outputs, table__precision="float32")
    outcome = backfill(job)
    assert (outcome.rows, outcome.encoded, outcome.quarantined) == (21, 20, 2)
    assert [(row.id, row.error) for row in quarantine(job.table.uri).rows] == [
        ("r21", "RuntimeError: the toy cannot encode this token"),
        ("r22", "a toy's reason"),
    ]
    encoder = load_encoder(str(tmp_path / "model"))
    found = stored(tmp_path / "table")
    words = encoder.family.words  # type: ignore[attr-defined]
    for number, text in enumerate(TEXTS[:21]):
        row = found[f"r{number}"]
        ids = encoder.tokenizer.tokenize([text]).ids[0].as_py()
        assert row["tokens"] == len(ids)
        assert row["embedding_multi_n"] == len(ids)
        if outputs == BOTH:
            np.testing.assert_allclose(np.linalg.norm(row["embedding"]), 1, atol=1e-5)
            assert row["embedding_multi"] == quantise(words[ids], "int8").tobytes()
        else:
            np.testing.assert_array_equal(np.float32(row["embedding_multi"]), words[ids])
    (uri,) = DeltaTable(str(tmp_path / "table")).file_uris()
    group = pq.ParquetFile(uri.removeprefix("file://")).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    encodings = {column.path_in_schema: column.encodings for column in columns}
    assert (
        "BYTE_STREAM_SPLIT" in encodings["embedding" + ("_multi.list.element" * (outputs == MULTI)) + ".list.element"]
    )


@pytest.mark.parametrize("outputs", [BOTH, MULTI])
def test_a_refresh_keeps_all_vectors_of_a_known_text(tmp_path, outputs):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    job = job_of(tmp_path, outputs)
    backfill(job)
    before = stored(tmp_path / "table")
    write_corpus(tmp_path / "corpus", [rows_of([*TEXTS[:19], "another"])])
    outcome = refresh(job)
    assert (outcome.rows, outcome.encoded) == (20, 1)
    after = stored(tmp_path / "table")
    assert {name: row for name, row in after.items() if name != "r19"} == {
        name: row for name, row in before.items() if name != "r19"
    }
    assert after["r19"] != before["r19"]
    assert diff(job.table.uri, 1, 2).changed == 1
    (change,) = iter_changes(job.table.uri, since=1)
    assert change.upserts.select(["id", *outputs]).to_pylist() == [
        {name: after["r19"][name] for name in ("id", *outputs)}
    ]


def spoil(table, name: str, change) -> None:
    """Change the vectors of one row in the table's only file."""
    (uri,) = DeltaTable(str(table)).file_uris()
    path = uri.removeprefix("file://")
    rows = pq.ParquetFile(path).read()
    changed = [
        change(vectors) if row == name else vectors
        for row, vectors in zip(rows["id"].to_pylist(), rows["embedding_multi"].to_pylist(), strict=True)
    ]
    place = rows.schema.get_field_index("embedding_multi")
    column = pa.array(changed, rows.schema.field(place).type)
    pq.write_table(rows.set_column(place, "embedding_multi", column), path, store_schema=False)


@pytest.mark.parametrize(
    ("outputs", "change"),
    [
        (BOTH, lambda blob: b""),
        (BOTH, lambda blob: None),
        (BOTH, lambda blob: blob[:-1]),
        (MULTI, lambda vectors: [*vectors[:-1], vectors[-1][:-1]]),
        (MULTI, lambda vectors: [[float("nan")] * DIM, *vectors[1:]]),
    ],
)
def test_vectors_that_cannot_be_reused_are_encoded_again(tmp_path, outputs, change):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    job = job_of(tmp_path, outputs)
    backfill(job)
    before = stored(tmp_path / "table")
    spoil(tmp_path / "table", "r3", change)
    write_corpus(tmp_path / "corpus", [rows_of([*TEXTS[:19], "another"])])
    assert refresh(job).encoded == 2
    assert stored(tmp_path / "table")["r3"] == before["r3"]


def vectors_of_question(searcher: Searcher, question: str) -> list[list[float]]:
    encoded = searcher.encoder.encode_rows(prepare_texts(searcher.spec, [question]))
    vectors: list[list[float]] = encoded.outputs[-1][0].as_py()
    return vectors


def by_loop(searcher: Searcher, question: str, rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return ids and scores of late interaction, best first."""
    vectors = np.array(vectors_of_question(searcher, question))
    scored = []
    for row in rows:
        value = row["embedding_multi"]
        of_row = np.float64(vectors_of([value], dim=DIM)[0] if isinstance(value, bytes) else value)
        of_row /= np.linalg.norm(of_row, axis=1, keepdims=True)
        scored.append((row["id"], float(np.float32((vectors @ of_row.T).max(axis=1).sum()))))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        (BOTH, {"candidates": 20}),
        (BOTH, {"candidates": 14, "k": 8, "where": "lang = 'l1'"}),
        (BOTH, {"candidates": "all", "where": "lang = 'l1'"}),
        (MULTI, {}),
    ],
)
def test_late_hits_are_those_of_a_loop(tmp_path, monkeypatch, tables, outputs, options):
    where = options.get("where")
    monkeypatch.setenv("VECTIDE_CACHE", str(tmp_path))
    rows = [row for row in stored(tables[outputs]).values() if where is None or row["lang"] == "l1"]
    for size in ("1GiB", "1GiB", None):  # fills the cache, reads it, does without
        searcher = Searcher(tables[outputs], cache_size=size)
        hits = searcher.search([TEXTS[7], "c a"], late=True, **{"k": 20, **options})
        for best, question in zip(hits, [TEXTS[7], "c a"], strict=True):
            expected = by_loop(searcher, question, rows)[: options.get("k", 20)]
            assert [hit.id for hit in best] == [row for row, _ in expected]
            assert [hit.score for hit in best] == pytest.approx([score for _, score in expected], abs=1e-5)
            assert set(best[0].columns) == {"lang", "tokens", "_shard"}
            count = len(vectors_of_question(searcher, question))
            assert isinstance(best[0], LateHit)
            assert best[0].mean_score == pytest.approx(best[0].score / count)
        assert searcher.cache_problem is None
    groups = len({path for path in tmp_path.iterdir() if path.stat().st_size < 2_000})
    assert bool(groups) == isinstance(options.get("candidates"), int)


@pytest.mark.ray
def test_late_interaction_on_ray_returns_the_same_hits(ray_session, tables):
    for outputs, options in ((MULTI, {"where": "lang = 'l0'"}), (BOTH, {"candidates": 12})):
        asked: dict[str, Any] = {"questions": [TEXTS[7], "c a"], "k": 6, "late": True, **options}
        expected = Searcher(tables[outputs], cache_size=None).search(**asked)
        assert Searcher(tables[outputs], cache_size=None, address="local").search(**asked) == expected


@pytest.mark.parametrize(
    ("outputs", "options", "why"),
    [
        (("embedding",), {"late": True}, "has one vector a row, and --late needs many"),
        (BOTH, {"late": True, "questions": ["a", "x"]}, "the question 'x' cannot be encoded: a toy's reason"),
        (BOTH, {"candidates": 5}, "candidates are for late interaction; add --late"),
        (BOTH, {"late": True, "candidates": 5, "k": 6}, "5 candidates cannot give 6 hits"),
        (BOTH, {"late": True, "candidates": 0}, "candidates is 0; it must be"),
        (
            BOTH,
            {"late": True, "candidates": "some"},
            "candidates is 'some'; it must be a whole number of 1 or more, or 'all'",
        ),
        (MULTI, {}, "has many vectors a row and no dense ones; search it with --late"),
        (MULTI, {"late": True, "candidates": 5}, "has no dense vectors to find 5 candidates by"),
    ],
)
def test_a_search_that_the_vectors_do_not_allow_is_refused(tables, outputs, options, why):
    with pytest.raises((ConfigError, DataError), match=why):
        Searcher(tables[outputs]).search(**{"questions": ["c a"], **options})


def test_files_are_merged_with_their_vectors(tmp_path):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    job = job_of(tmp_path, BOTH, table__file_size=None)
    backfill(job)
    before = stored(tmp_path / "table")
    assert len(DeltaTable(job.table.uri).file_uris()) > 1
    assert compact(job.table.uri, target_bytes=1 << 20, address="inline").files_after == 1
    assert stored(tmp_path / "table") == before


def test_a_duplicate_id_of_another_unit_is_taken_out(tmp_path):
    rows = rows_of(TEXTS[:20])
    rows[15]["id"] = "r2"
    write_corpus(tmp_path / "corpus", [rows])
    outcome = backfill(job_of(tmp_path, MULTI))
    assert (outcome.rows, outcome.quarantined) == (19, 1)


@pytest.mark.parametrize("outputs", [BOTH, MULTI])
def test_a_gate_compares_the_first_output(tmp_path, outputs):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    job = job_of(tmp_path, outputs, generation__min_agreement=0.99)
    backfill(job)
    write_late(tmp_path / "model", *outputs, seed=1)
    with pytest.raises(GateClosed, match=r"agrees with the old one on 0\.[0-8]"):
        refresh(job)
    form = LISTS if outputs == MULTI else {}  # which does not change
    other = job_of(tmp_path, BOTH if outputs == MULTI else MULTI, generation__min_agreement=0.0, table__multi=form)
    assert refresh(other).published
    names = DeltaTable(job.table.uri).to_pyarrow_table().column_names
    assert {"embedding", "embedding_multi"} & set(names) == set(BOTH if outputs == MULTI else MULTI)
    assert Searcher(job.table.uri).search(["c a"], k=1, late=outputs == BOTH)[0]


def overlap(old: list[dict[str, Any]], new: list[dict[str, Any]], score) -> float:
    """Return the mean share of the 10 rows nearest to each that two versions have in common."""
    nearest = []
    for rows in (old, new):
        scores = np.array([[score(row, other) for other in rows] for row in rows])
        np.fill_diagonal(scores, -np.inf)
        nearest.append(np.argsort(-scores, axis=1)[:, :10])
    return float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(*nearest, strict=True)]))


def late_score(row: dict[str, Any], other: dict[str, Any]) -> float:
    query, document = vectors_of([row["embedding_multi"], other["embedding_multi"]], dim=DIM)
    return float((query.astype(np.float64) @ document.T).max(axis=1).sum())


def test_a_gate_measures_by_late_interaction(tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefghijklmn"), 7)) for _ in range(30)]
    write_corpus(tmp_path / "corpus", [rows_of(texts)])
    pq.write_table(pa.table({"id": ["q"], "text": [texts[3]]}), tmp_path / "queries.parquet")
    pq.write_table(pa.table({"query": ["q"], "doc": ["r3"]}), tmp_path / "judgements.parquet")
    settings = {"generation__late": True, "generation__min_agreement": 0.0}
    dense_only = job_of(tmp_path, ("embedding",), **settings)
    backfill(dense_only)
    files = {f"generation__{name}": str(tmp_path / f"{name}.parquet") for name in ("queries", "judgements")}
    job = job_of(tmp_path, BOTH, **settings, **files)
    with pytest.raises(ConfigError, match=r"version 1 of .* has one vector a row; leave it out"):
        refresh(job)
    refresh(job_of(tmp_path, BOTH))
    before = list(stored(tmp_path / "table").values())
    other = write_late(tmp_path / "other", *BOTH, seed=1)
    outcome = refresh(job_of(tmp_path, BOTH, **settings, **files, encoder__model=str(other)))
    after = {row["id"]: row for row in stored(tmp_path / "table").values()}
    late, plain = (
        overlap(before, [after[row["id"]] for row in before], score)
        for score in (late_score, lambda row, other: np.dot(row["embedding"], other["embedding"]))
    )
    share = float(outcome.checks[0].removeprefix("agreement of 10 neighbours ").removesuffix(" on 30 documents"))
    assert share == pytest.approx(late, abs=0.01)  # some scores are equal
    assert share != pytest.approx(plain, abs=0.05)
    assert outcome.checks[1].startswith("nDCG@10 1.0000 after 1.0000 on 1 queries")


def test_the_estimated_size_counts_every_vector(tmp_path):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    for outputs, dense, stored_bytes in ((BOTH, 4.08, 1), (MULTI, 0, 4)):
        estimated = estimate(job_of(tmp_path, outputs, table__precision="float32"), tokens_per_s=1.0)
        expected = DIM * (dense + stored_bytes * estimated.tokens_per_row)
        assert estimated.output_bytes / 20 - 60 == pytest.approx(expected, rel=0.01)


def test_the_form_of_many_vectors_does_not_change_and_needs_many_vectors(tmp_path):
    write_corpus(tmp_path / "corpus", [rows_of(TEXTS[:20])])
    backfill(job_of(tmp_path, BOTH))
    other = job_of(tmp_path, BOTH, table__multi={"precision": "float16"})
    for command in (backfill, refresh, estimate):
        with pytest.raises(
            ConfigError, match=r"float16, layout: blob.*has {precision: int8, layout: blob}.*Write that"
        ):
            command(other)
    with pytest.raises(ConfigError, match="the model makes one vector a row. Add multi to encoder.outputs, or leave"):
        backfill(job_of(tmp_path, BOTH[:1], table__multi=LISTS))
