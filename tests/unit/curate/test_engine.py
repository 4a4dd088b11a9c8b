"""The engine of a curation: order of steps, survivors, resume, a grown corpus, thresholds, other tables."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from actors.errors import ConfigError, ForeignCommits, StorageError, TableConflict, TooManyQuarantined
from pipeline.curate import read as reading
from pipeline.curate import run as running
from pipeline.curate.plan import plan_curation
from pipeline.curate.run import curate
from pipeline.curate.view import view
from pipeline.job.config import parse_job
from pipeline.job.curation import Curation, parse_curation
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table.quarantine import quarantine
from pipeline.table.status import status
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback
from tests.checkpoints.bert import write_bert
from tests.unit.curate.jobs import job_of, rows_of, verdicts_of, write_pairs

STEPS = ["dedup", {"overlap": {"max_share": 0.8, "min_words": 4}}]
PAIRS = [
    ("b", "Copper wire", "it conducts well"),
    ("a", "copper  WIRE", "it\u200b conducts WELL"),
    ("same", "one text", "ONE text"),
    ("empty", " \u200b\ufe0f\x00", "a passage"),
    ("null", None, "a passage"),
    ("inside", "how tall is the tower", "so how tall is the tower of berlin"),
    ("edge", "one two three four five", "one two three four and more than that"),
    ("good", "how do tides work at sea", "the moon pulls the water"),
]


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "pairs" / "0.parquet", PAIRS, site=[1, 2] * 4, tags=[["x", "y"], None] * 4)
    return tmp_path


@pytest.mark.slow
def test_a_step_sees_what_earlier_steps_kept(folder):
    curated = curate(job_of(folder, STEPS, source_column="site", keep={"tags": "n"}))
    rows = rows_of(folder)
    dropped = {"b": "dedup", "same": "dedup", "empty": "dedup", "null": "dedup", "inside": "overlap"}
    assert {key: row["dropped_by"] for key, row in rows.items()} == {pair[0]: dropped.get(pair[0]) for pair in PAIRS}
    assert all(row["kept"] == (row["dropped_by"] is None) for row in rows.values())
    assert rows["b"]["duplicate_of"] == "a"
    assert rows["b"]["pair_hash"] == rows["a"]["pair_hash"]
    assert {key: row["overlap"] for key, row in rows.items() if row["overlap"] is not None} == {
        "inside": 1.0,
        "edge": 0.8,  # exactly `max_share` stays
        "good": 0.0,
    }
    assert (rows["b"]["source"], rows["b"]["n"], rows["a"]["n"]) == ("1", ["x", "y"], None)
    assert (rows["null"]["query"], rows["empty"]["query"]) == (None, " \u200b\ufe0f\x00")  # texts are as they were
    assert [(step.name, step.rows, step.dropped) for step in curated.steps] == [("dedup", 8, 4), ("overlap", 4, 1)]
    assert curated.kept == 3
    found = curated.evidence["steps"][0]["evidence"]
    assert (found["copies"], found["empty_side"], found["identical_sides"]) == (1, 2, 1)
    assert [each["id"] for each in curated.evidence["samples"]["overlap"]] == ["inside"]
    assert curated.evidence["sources"][1]["rows"] == {"dedup": 1, "overlap": 1, "kept": 2}


@pytest.mark.slow
def test_the_order_of_the_steps_is_that_of_the_job(folder):
    write_pairs(folder / "pairs" / "1.parquet", [("z", "how tall is the tower", "how tall is the tower")])
    curate(job_of(folder, STEPS[::-1], keep=[]))
    assert verdicts_of(folder)["z"] == "overlap"


@pytest.mark.slow
def test_documents_have_one_side(tmp_path):
    write_pairs(
        tmp_path / "pairs" / "0.parquet", [("b", "Same", ""), ("a", "same", ""), ("c", "", ""), ("d", "other", "")]
    )
    job = {
        "corpus": {"uri": str(tmp_path / "pairs"), "text": "query"},
        "steps": ["dedup"],
        "table": {"uri": str(tmp_path / "table")},
    }
    curate(Curation.model_validate({**job, "run": {"address": "inline"}}))
    rows = rows_of(tmp_path)
    assert {key: row["duplicate_of"] for key, row in rows.items()} == {
        "0.parquet:0": None, "0.parquet:1": "0.parquet:0", "0.parquet:2": None, "0.parquet:3": None,
    }  # fmt: skip
    assert [row["kept"] for row in rows.values()] == [True, False, False, True]


@pytest.mark.slow
def test_the_same_job_on_the_same_source_does_nothing(folder, monkeypatch):
    first = curate(job_of(folder, STEPS))
    monkeypatch.setattr(reading, "measure_unit", None)
    again = curate(job_of(folder, STEPS))
    assert (again.published, again.version, again.kept) == (False, first.version, first.kept)
    assert plan_curation(job_of(folder, STEPS)).done


@pytest.mark.slow
def test_a_grown_corpus_is_curated_as_a_fresh_one(tmp_path):
    draw = random.Random(0)
    words = ["tide", "moon", "sea", "Sea", "water"]

    def pairs(number):
        return [
            (
                f"{draw.randrange(10**6):06d}-{number}-{row}",
                *(" ".join(draw.choices(words, k=draw.randint(0, 4))) for _ in "qp"),
            )
            for row in range(30)
        ]

    run = {"unit_rows": 7}
    for number in (1, 3):
        write_pairs(tmp_path / "pairs" / f"{number}.parquet", pairs(number))
    curate(job_of(tmp_path, STEPS, run=run))
    before = verdicts_of(tmp_path)
    for number in (0, 2, 4):
        write_pairs(tmp_path / "pairs" / f"{number}.parquet", pairs(number))
    write_pairs(tmp_path / "pairs" / "3.parquet", pairs(3))
    curated = curate(job_of(tmp_path, STEPS, run=run))
    fresh = curate(job_of(tmp_path, STEPS, table="fresh", run={"unit_rows": 50}))
    assert rows_of(tmp_path) == rows_of(tmp_path, "fresh")
    assert (curated.units_read, fresh.units_read) == (20, 5)
    after = verdicts_of(tmp_path)
    changes = curated.evidence["changes"]
    changed = [key for key in before.keys() & after.keys() if before[key] != after[key]]
    assert sum(each["rows"] for each in changes["changed"]) == len(changed)
    assert {key for each in changes["changed"] for key in each["ids"]} <= set(changed)
    assert (changes["new_rows"], changes["gone_rows"]) == (120, 30)


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(folder, monkeypatch):
    for number in range(1, 4):
        write_pairs(
            folder / "pairs" / f"{number}.parquet", [(f"{number}{row}", f"q {row}", f"p {row}") for row in range(5)]
        )
    job = job_of(folder, STEPS, run={"unit_rows": 5})
    read = []

    def stopping_at(calls, name, module):
        original = getattr(module, name)

        def call(*args, **named):
            read.append(name)
            if len([each for each in read if each == name]) == calls:
                raise StorageError(f"stopped in {name}")
            return original(*args, **named)

        monkeypatch.setattr(module, name, call)

    stopping_at(3, "measure_unit", reading)
    with pytest.raises(StorageError, match="measure_unit"):
        curate(job)
    stopping_at(1, "write_table", running)
    with pytest.raises(StorageError, match="write_table"):
        curate(job)
    assert read.count("measure_unit") == 3 + 3  # units 0 and 1 were done
    stopping_at(1, "check_files", running)  # the files are written, and the receipt
    with pytest.raises(StorageError, match="check_files"):
        curate(job)
    assert not DeltaTable.is_deltatable(str(folder / "table"))
    curated = curate(job)
    assert (curated.published, curated.rows, curated.units_read) == (True, 8 + 15, 0)
    assert (read.count("measure_unit"), read.count("write_table")) == (6, 2)
    assert verdicts_of(folder)["20"] == "dedup"
    assert curate(job).published is False


@pytest.mark.slow
def test_another_threshold_reads_nothing_and_names_the_changes(folder, monkeypatch):
    curate(job_of(folder, STEPS))
    monkeypatch.setattr(reading, "read_unit", None)
    looser = curate(job_of(folder, ["dedup", {"overlap": {"max_share": 1.0}}]))
    assert looser.evidence["changes"]["changed"] == [{"was": "overlap", "is": "kept", "rows": 1, "ids": ["inside"]}]
    assert (looser.units_read, looser.version) == (0, 2)


@pytest.mark.slow
def test_a_database_without_memory_says_so_and_the_next_run_goes_on(folder):
    with pytest.raises(
        StorageError, match="the local database of the curation failed: Out of Memory .* set run.memory to more"
    ):
        curate(job_of(folder, STEPS, run={"memory": "1MiB"}))
    assert curate(job_of(folder, STEPS)).units_read == 0


@pytest.mark.slow
def test_a_vacuum_keeps_the_rows_that_the_version_was_made_from(folder, monkeypatch):
    job, rows = job_of(folder, STEPS, run={"max_quarantined": 1.0}), folder / "table" / "_vectide" / "curation" / "rows"
    curate(job)
    old = {path.name for path in rows.iterdir()}
    write_pairs(folder / "pairs" / "0.parquet", [*PAIRS, ("new", "a", "b"), (None, "c", "d")])
    curate(job)
    vacuum(str(folder / "table"), 0)
    left = {path.name for path in rows.iterdir()}
    assert len(left) == 2  # with the quarantined row
    assert not left & old
    monkeypatch.setattr(reading, "read_unit", None)
    assert curate(job_of(folder, ["dedup", {"overlap": {"max_share": 1.0}}], run={"max_quarantined": 1.0})).rows == 9


@pytest.mark.slow
def test_a_view_has_stricter_thresholds_only(folder):
    curate(job_of(folder, STEPS))
    seen = view(job_of(folder, ["dedup", {"overlap": {"max_share": 0.5}}]))
    assert (seen.kept, seen.rows, [step.dropped for step in seen.steps]) == (2, 8, [4, 2])
    assert seen.condition == "kept and not coalesce(overlap > 0.5::double, false)"
    assert view(job_of(folder, STEPS)).kept == 3
    with pytest.raises(ConfigError, match="a view can have a smaller max_share"):
        view(job_of(folder, ["dedup", {"overlap": {"max_share": 0.9}}]))
    with pytest.raises(ConfigError, match="has the steps dedup, overlap, and the job dedup"):
        view(job_of(folder, ["dedup"]))
    corpus = {"uri": str(folder / "pairs" / "*.parquet"), "text": "query"}
    with pytest.raises(ConfigError, match="is one of pairs, and the job has corpus"):
        view(parse_curation({"corpus": corpus, "steps": ["dedup"], "table": {"uri": str(folder / "table")}}))


@pytest.mark.slow
def test_changes_of_rows_that_share_an_id_are_counted_once(folder):
    write_pairs(
        folder / "pairs" / "0.parquet", [("a", "how tall is it", f"{'how tall is it' * (n % 2)} {n}") for n in range(8)]
    )
    curate(job_of(folder, STEPS, unique_ids=False))
    curated = curate(job_of(folder, ["dedup", {"overlap": {"max_share": 1.0}}], unique_ids=False))
    assert curated.evidence["changes"]["changed"] == [{"was": "overlap", "is": "kept", "rows": 4, "ids": ["a"] * 4}]


@pytest.mark.slow
def test_rows_with_a_repeated_id_are_quarantined(folder):
    write_pairs(
        folder / "pairs" / "1.parquet",
        [("a", "again", "this id"), (None, "no", "id"), ("new", "a", "b"), ("new", "c", "d")],
    )
    with pytest.raises(
        TooManyQuarantined, match=r"3 of 12 rows were quarantined \(2 duplicate_id, .*max_quarantined = 0.01"
    ):
        curate(job_of(folder, STEPS))
    curated = curate(job_of(folder, STEPS, run={"max_quarantined": 0.5}))
    assert (curated.rows_read, curated.rows, curated.quarantined, curated.units_read) == (12, 9, 3, 0)
    assert rows_of(folder)["new"]["query"] == "a"
    found = quarantine(str(folder / "table"))
    assert sorted((row.id, row.position, row.reason) for row in found.rows if row.id) == [
        ("a", 0, "duplicate_id"), ("new", 3, "duplicate_id"),
    ]  # fmt: skip
    assert (found.total, status(str(folder / "table")).runs[0].quarantined) == (3, 3)
    assert curate(job_of(folder, STEPS, table="all", unique_ids=False, run={"max_quarantined": 0.5})).rows == 11


@pytest.mark.slow
def test_tables_of_another_kind_are_refused(folder):
    curate(job_of(folder, STEPS))
    model = write_bert(folder / "model", pooling={"pooling_mode_mean_tokens": True}, max_tokens=62)
    files = {"uri": str(folder / "pairs"), "id": "id", "text": "passage"}

    def embedding(table):
        job = {"source": files, "table": {"uri": str(folder / table)}, "encoder": {"model": str(model)}}
        return parse_job({**job, "run": {"address": "inline"}})

    for command in (backfill, refresh, lambda job: Searcher(job.table.uri)):
        with pytest.raises(
            TableConflict, match="is a table of `vectide curate`: it has texts and verdicts, and no vectors"
        ):
            command(embedding("table"))
    backfill(embedding("embedded"))
    with pytest.raises(TableConflict, match="is a table of embeddings, which `vectide backfill` made"):
        plan_curation(job_of(folder, STEPS, table="embedded"))
    write_deltalake(str(folder / "other"), pq.read_table(folder / "pairs" / "0.parquet"))
    with pytest.raises(TableConflict, match="that vectide did not make"):
        plan_curation(job_of(folder, STEPS, table="other"))


@pytest.mark.slow
def test_rows_that_another_tool_removed_stop_a_curation(folder):
    curate(job_of(folder, STEPS))
    DeltaTable(str(folder / "table")).delete("id = 'a'")
    write_pairs(folder / "pairs" / "1.parquet", [("new", "a", "b")])
    with pytest.raises(
        ForeignCommits, match="1 row removed .*`vectide rollback .* --to 1` undoes that; then curate again"
    ):
        curate(job_of(folder, STEPS))
    rollback(str(folder / "table"), 1)
    assert curate(job_of(folder, STEPS)).rows == 9


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query": "titel"}, "pairs.query names the column 'titel', which no file has"),
        ({"passage": "passag"}, "pairs.passage names the column 'passag', .*did you mean 'passage'"),
        ({"id": "key"}, "pairs.id names the column 'key'"),
        ({"source_column": "domain"}, "pairs.source_column names the column 'domain'"),
        ({"source_column": "tags"}, "pairs.source_column names 'tags', which is list.*must be text or whole numbers"),
        ({"query": "site"}, "pairs.query names 'site', which is int64"),
        ({"keep": ["urls"]}, "pairs.keep names the column 'urls'"),
        ({"keep": {"tags": "overlap"}}, "pairs.keep gives 'overlap', and a step has the column 'overlap'"),
        (
            {"keep": {"tags": "chunk"}},
            "pairs.keep names .chunk., which is reserved for the table. Keep .tags. under another",
        ),
        ({"uri": "/nowhere/*.parquet"}, "pairs.uri '/nowhere/.*' matches no file"),
        ({"hive": True, "keep": ["lang"]}, "pairs.keep names the column 'lang'"),
    ],
)
def test_a_plan_refuses_what_the_source_has_not(folder, changed, said):
    with pytest.raises(ConfigError, match=said):
        plan_curation(job_of(folder, STEPS, **changed))
    assert not (folder / "table").exists()


def test_sources_and_corpora_of_one_row_are_refused(tmp_path):
    write_pairs(tmp_path / "pairs" / "0.parquet", [(str(number), "q", "p") for number in range(20)])
    with pytest.raises(
        ConfigError, match="pairs.source_column names 'id', which is different in each of the first 20 rows"
    ):
        plan_curation(job_of(tmp_path, STEPS, id=None, source_column="id"))
    write_pairs(tmp_path / "pairs" / "0.parquet", PAIRS[:1])
    (tmp_path / "one.jsonl").write_text('{"id": "a", "query": "b", "passage": "c"}\n')
    for uri in ("pairs/0.parquet", "one.jsonl"):  # a file that counts its rows, and one that does not
        with pytest.raises(ConfigError, match="its 1 file holds one row, and a curation compares rows with each other"):
            plan_curation(job_of(tmp_path, STEPS, uri=str(tmp_path / uri)))


def test_a_plan_counts_rows_and_writes_nothing(folder):
    planned = plan_curation(job_of(folder, STEPS))
    assert (planned.rows, planned.units, planned.units_done, planned.version, planned.done) == (8, 1, 0, None, False)
    assert planned.steps == ("dedup", "overlap, max_share 0.8, min_words 4")
    assert not (folder / "table").exists()
