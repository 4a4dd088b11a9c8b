"""Quarantined rows as a person and a program read them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from actors.errors import ConfigError, TooManyQuarantined
from jobs.cli import app
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.table.quarantine import quarantine
from tests.integration.conftest import make_job, rows, write_corpus, write_one


def bad_rows(start: int) -> list[dict[str, object]]:
    """Twenty rows: one without a text, one without an id."""
    made = rows(20, start=start)
    made[3] |= {"title": None, "text": None}
    made[7]["id"] = None
    return made


@pytest.fixture
def made(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [bad_rows(0), bad_rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model, run__max_quarantined=0.2)
    return job, backfill(job, reporter)


def listed(*arguments):
    done = CliRunner().invoke(app, ["quarantine", *map(str, arguments)], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_quarantined_row_is_listed_with_its_place_and_reason(made, tmp_path):
    _, outcome = made
    text = listed(tmp_path / "table")
    assert f"{tmp_path}/table, version 1: 4 rows quarantined (2 missing_id, 2 null_text)" in text
    assert f"null_text: {tmp_path}/corpus/part-0000.parquet at 3 (id r3): " in text
    found = json.loads(listed(tmp_path / "table", "--json"))
    assert (found["run"], found["version"], found["total"]) == (outcome.run, 1, 4)
    assert [(row["shard"][-9:], row["position"], row["id"], row["reason"]) for row in found["rows"]] == [
        ("0.parquet", 3, "r3", "null_text"),
        ("0.parquet", 7, None, "missing_id"),
        ("1.parquet", 3, "r23", "null_text"),
        ("1.parquet", 7, None, "missing_id"),
    ]


def test_quarantine_filters_by_reason_and_limits_rows(made, tmp_path):
    found = quarantine(str(tmp_path / "table"), reason="null_text", limit=1)
    assert (found.total, found.reasons, [row.id for row in found.rows]) == (2, {"null_text": 2}, ["r3"])
    assert "these are the first 1; --limit 4 shows all" in listed(tmp_path / "table", "--limit", 1)
    assert quarantine(str(tmp_path / "table"), reason="timed_out").total == 0


def test_a_refresh_keeps_the_quarantined_rows_of_unchanged_shards(made, tmp_path, reporter):
    job, first = made
    write_one(tmp_path / "corpus" / "part-0001.parquet", rows(20, start=20))
    assert refresh(job, reporter).version == 2
    found = quarantine(str(tmp_path / "table"))
    assert (found.version, [row.id for row in found.rows]) == (2, ["r3", None])
    before = quarantine(str(tmp_path / "table"), run=first.run)
    assert (before.version, before.total) == (None, 4)


def test_a_run_with_too_many_quarantined_rows_names_the_list_command(tmp_path, tiny_model, reporter):
    corpus = write_corpus(tmp_path / "corpus", [bad_rows(0)])
    with pytest.raises(TooManyQuarantined, match=f"`vectide quarantine {tmp_path}/table --run [0-9a-f]+` lists all"):
        backfill(make_job(corpus, tmp_path / "table", tiny_model), reporter)
    found = quarantine(str(tmp_path / "table"))  # the only run
    assert (found.version, found.total) == (None, 2)


def test_a_missing_table_or_run_is_refused(made, tmp_path):
    with pytest.raises(ConfigError, match="there is no table and no run at"):
        quarantine(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="has no run 'other'; `vectide status` lists"):
        quarantine(str(tmp_path / "table"), run="other")
    early = tmp_path / "unplanned" / "_vectide" / "runs" / "early"
    early.mkdir(parents=True)
    (early / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="run early of .* ended before its plan and quarantined nothing"):
        quarantine(str(tmp_path / "unplanned"))
    with pytest.raises(ConfigError, match="'timeout': no row is ever quarantined for that; did you mean 'timed_out'"):
        quarantine(str(tmp_path / "table"), reason="timeout")
