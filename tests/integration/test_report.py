"""Every run leaves a report: measured, true to its outcome, of the documented form, and shown without risk."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

from actors import storage
from actors.errors import ConfigError, DataError, GateClosed, StorageError, TooManyQuarantined
from pipeline.job.load import load_job
from pipeline.ledger.ledger import Ledger, run_names
from pipeline.report.load import load_report
from pipeline.report.page import report as write_page
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.table import delta_table
from pipeline.table.status import status
from tests.integration.conftest import Silent, make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL))[0])
EVIL = "<script>document.title = 'x'</script>"


class Interrupting(Silent):
    """Presses Ctrl-C after some units."""

    def finished_unit(self, receipt):
        super().finished_unit(receipt)
        if len(self.receipts) == 2:
            raise KeyboardInterrupt


def stored(table, run=None) -> dict[str, Any]:
    """The report in the ledger of a run, after a check against its schema."""
    (name,) = [run] if run else run_names(str(table))
    document: dict[str, Any] = json.loads(storage.read(storage.join(Ledger(str(table), name).url, "report.json")))
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.fixture
def corpus(tmp_path):
    """Two shards with hostile names, ids and partitions; some rows have no text."""
    shards = [rows(30), rows(20, start=30)]
    shards[0][3] |= {"id": EVIL, "title": None, "text": None}
    shards[1][5] |= {"title": " ", "text": " "}
    for row in shards[0][:4]:
        row["lang"] = EVIL
    folder = write_corpus(tmp_path / "corpus", shards)
    (folder / "part-0001.parquet").rename(folder / "<b>.parquet")
    return folder


@pytest.fixture
def job(tmp_path, corpus, tiny_model):
    changes = {"table__partition_by": ["lang"], "run__max_quarantined": 0.1, "run__unit_rows": 8}
    return make_job(corpus, tmp_path / "table", tiny_model, **changes)


def test_a_report_has_the_figures_of_the_run(job, tmp_path):
    outcome = backfill(job)
    report = stored(tmp_path / "table")
    totals = report["totals"]
    for name in ("rows_read", "documents", "rows", "quarantined", "truncated", "tokens", "padding", "encoded", "units"):
        assert totals[name] == getattr(outcome, name), name
    assert (report["state"], report["version"], report["operation"]) == ("published", outcome.version, "backfill")
    assert (report["files"]["files"], report["files"]["size_bytes"]) == (outcome.files, outcome.size_bytes)
    assert report["seconds"] == pytest.approx(dict(outcome.seconds), abs=0.001)
    # What the table has is what the report says.
    table = pq.ParquetDataset(tmp_path / "table" / "data", partitioning=None).read()
    assert (table.num_rows, sum(table["tokens"].to_pylist())) == (totals["rows"], totals["tokens"])
    assert report["token_lengths"]["longest"] == max(table["tokens"].to_pylist())
    assert sum(report["token_lengths"]["counts"]) == report["norms"]["embedding"]["vectors"] == 48
    assert report["norms"]["embedding"]["least"] == pytest.approx(1, abs=0.001)
    assert sum(report["throughput"][0]["tokens"]) == totals["tokens"]
    assert report["quarantine"]["reasons"] == {"null_text": 1, "empty_text": 1}
    assert {row["id"] for row in report["quarantine"]["samples"]} == {EVIL, "r35"}
    assert {part["values"]["lang"]: part["rows"] for part in report["files"]["partitions"]["largest"]}[EVIL] == 3
    (call,) = report["calls"]
    assert [step["name"] for step in call["steps"]][-1] == "publishing"
    assert not backfill(job).published  # finds nothing to do
    assert stored(tmp_path / "table") == report


def test_the_page_shows_hostile_texts_and_runs_none(job, tmp_path):
    backfill(job)
    page = Path(write_page(tmp_path / "table", tmp_path / "page.html")).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;document.title = &#39;x&#39;&lt;/script&gt;") == 2  # an id, and a partition
    with pytest.raises(ConfigError, match="has no run 'other'; `vectide status` lists its runs"):
        write_page(tmp_path / "table", tmp_path / "page.html", run="other")
    with pytest.raises(ConfigError, match="which is a folder; name a file"):
        write_page(tmp_path / "table", tmp_path)
    with pytest.raises(ConfigError, match="there is no table and no run"):
        write_page(tmp_path / "nowhere", tmp_path / "page.html")


def test_a_run_that_was_stopped_and_resumed_adds_up_to_an_undisturbed_one(job, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        backfill(job, Interrupting())
    report = stored(tmp_path / "table")
    assert (report["state"], report["version"]) == ("interrupted", None)
    done = report["totals"]["units"]
    assert 0 < done < report["totals"]["units_planned"]
    assert load_report(str(tmp_path / "table"))["totals"] == report["totals"]
    backfill(job)
    resumed = stored(tmp_path / "table")
    other = job.model_copy(update={"table": job.table.model_copy(update={"uri": str(tmp_path / "other")})})
    backfill(other)
    whole = stored(tmp_path / "other")
    for name in ("totals", "token_lengths", "norms", "lineage", "fingerprint"):
        assert resumed[name] == whole[name], name
    assert resumed["quarantine"]["reasons"] == whole["quarantine"]["reasons"]
    assert [call["end"] for call in resumed["calls"]] == ["interrupted", "published"]
    assert resumed["calls"][1]["units_before"] == done
    assert len(resumed["throughput"]) == 2
    assert sum(sum(part["rows"]) for part in resumed["throughput"]) == resumed["totals"]["documents"]


def test_a_killed_run_is_measured_from_its_ledger(job, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipeline.report.recorder.Recorder.write", lambda self, **_: None
    )  # as SIGKILL: nothing is written
    with pytest.raises(KeyboardInterrupt):
        backfill(job, Interrupting())
    assert (stored(tmp_path / "table")["state"], "totals" in stored(tmp_path / "table")) == ("running", False)
    report = load_report(str(tmp_path / "table"))
    jsonschema.validate(report, SCHEMA)
    assert (report["totals"]["units"], report["calls"][0]["end"]) == (2, "running")
    assert (
        "still running, or its process was killed" in Path(write_page(tmp_path / "table", tmp_path / "p")).read_text()
    )


def test_a_run_of_an_older_release_has_a_page_too(tmp_path, tiny_model):
    table = tmp_path / "table"
    backfill(make_job(write_corpus(tmp_path / "corpus", [rows(10)]), table, tiny_model))
    ledger = Ledger(str(table), run_names(str(table))[0])
    (receipt,) = (table / "_vectide").glob("runs/*/plans/*/receipts/*/*.json")
    receipt.write_text(
        json.dumps({key: value for key, value in json.loads(receipt.read_text()).items() if key != "figures"})
    )
    storage.delete(storage.join(ledger.url, "report.json"))
    report = load_report(str(table))
    jsonschema.validate(report, SCHEMA)
    assert (report["state"], report["version"], report["totals"]["rows"], report["norms"]) == ("published", 1, 10, {})
    page = Path(write_page(table, tmp_path / "page.html")).read_text()
    assert 'id="vectors"' not in page
    storage.put(storage.join(ledger.url, "report.json"), b"{")
    with pytest.raises(DataError, match="is no JSON: another program changed it. Remove it"):
        load_report(str(table))
    storage.put(storage.join(ledger.url, "report.json"), b'{"format": 2}')
    with pytest.raises(ConfigError, match="has format 2, and this release reads 1"):
        load_report(str(table))


def test_failed_runs_say_why(job, tmp_path, reporter):
    strict = job.model_copy(update={"run": job.run.model_copy(update={"max_quarantined": 0.0})})
    with pytest.raises(TooManyQuarantined):
        backfill(strict, reporter)
    report = stored(tmp_path / "table")
    shown = f"vectide report {tmp_path}/table --run {report['run']} --out report.html"
    assert reporter.steps[-1] == f"to see how far the run came: {shown}"
    assert (report["state"], report["totals"]["quarantined"]) == ("failed", 2)
    assert "run.max_quarantined = 0 allows; nothing was published" in report["calls"][0]["error"]
    wrong = job.model_copy(update={"source": job.source.model_copy(update={"text": ("body",)})})
    with pytest.raises(ConfigError):  # found while planning: there is no plan
        backfill(wrong, reporter)
    (run,) = set(run_names(str(tmp_path / "table"))) - {report["run"]}
    failed = stored(tmp_path / "table", run)
    assert (failed["state"], "totals" in failed) == ("failed", False)
    fingerprints = {each.run: each.fingerprint for each in status(tmp_path / "table").runs}
    assert (fingerprints[run], set(fingerprints)) == (None, {run, report["run"]})
    page = Path(write_page(tmp_path / "table", tmp_path / "p.html", run=run)).read_text()
    assert "The last call ended with an error" in page
    assert sum(step.startswith("to see how far the run came") for step in reporter.steps) == 1


def test_a_refresh_a_re_embedding_and_a_compaction_have_reports(job, corpus, tmp_path):
    table = str(tmp_path / "table")
    job = job.model_copy(update={"table": job.table.model_copy(update={"file_size": None})})
    runs = set(run_names(table)) | {backfill(job).run}
    write_corpus(corpus, [rows(25)])
    outcome = refresh(job)
    report = stored(table, outcome.run)
    assert (report["operation"], report["source"]["shards_read"], report["quarantine"]["carried"]) == ("refresh", 1, 1)
    assert report["totals"]["rows_read"] == outcome.rows_read
    runs.add(outcome.run)

    encoder = job.encoder.model_copy(update={"max_tokens": 5})
    gate = job.generation.model_copy(update={"min_agreement": 1.0})
    changed = job.model_copy(update={"encoder": encoder, "generation": gate})
    with pytest.raises(GateClosed):
        refresh(changed)
    (name,) = set(run_names(table)) - runs
    assert stored(table, name)["gate"]["min_agreement"] == 1.0
    assert "less than generation.min_agreement" in stored(table, name)["calls"][0]["error"]
    figures = stored(table, name)["figures"]
    assert (0 < figures["agreement"] < 1, figures["neighbours"]) == (True, 10)
    outcome = refresh(changed.model_copy(update={"generation": gate.model_copy(update={"min_agreement": 0.0})}))
    assert (stored(table, name)["checks"], stored(table, name)["figures"]) == (list(outcome.checks), figures)
    page = Path(write_page(table, tmp_path / "p.html")).read_text()
    assert "Measured: agreement of 10 neighbours" in page
    assert f"{figures['agreement']:.6g}" in page
    runs.add(name)

    compacted = compact(table, address="inline")
    (name,) = set(run_names(table)) - runs
    report = stored(table, name)
    assert (report["operation"], report["version"]) == ("compact", compacted.version)
    assert report["totals"]["rows"] == compacted.rows
    assert report["command"] == f"vectide compact {table} --target {128 << 20}"
    assert "Compaction of table" in Path(write_page(table, tmp_path / "p.html", run=name)).read_text()


def test_a_report_that_cannot_be_written_changes_nothing_else(job, tmp_path, monkeypatch, reporter):
    real = storage.put

    def refuses_reports(url, data):
        if url.endswith("report.json"):
            raise StorageError("the disk is full")
        real(url, data)

    monkeypatch.setattr(storage, "put", refuses_reports)
    assert backfill(job, reporter).published
    assert "the report of the run could not be written: the disk is full" in reporter.steps
    assert delta_table.open_table(str(tmp_path / "table")) is not None


def test_a_run_that_could_not_be_measured_is_measured_later(job, tmp_path, monkeypatch, reporter):
    whole = backfill(job.model_copy(update={"table": job.table.model_copy(update={"uri": str(tmp_path / "other")})}))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.report.recorder.measure", lambda ledger, calls: 1 / 0)
        assert backfill(job, reporter).published
    assert "the run could not be measured for its report: division by zero" in reporter.steps
    assert "totals" not in stored(tmp_path / "table")
    report = load_report(str(tmp_path / "table"))
    jsonschema.validate(report, SCHEMA)
    assert (report["state"], report["totals"]["tokens"]) == ("published", whole.tokens)


def test_the_command_of_a_report_finds_the_same_run(job, tmp_path):
    outcome = backfill(job)
    words = shlex.split(stored(tmp_path / "table")["command"])
    again = backfill(load_job(None, settings=words[3::2]))
    assert (words[:2], again.run, again.published) == (["vectide", "backfill"], outcome.run, False)
