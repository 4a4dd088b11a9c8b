"""Cutting a corpus into units: all rows once, the first unit early, the others of one size."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from actors.encoders import describe
from actors.schema import Unit
from actors.source.read_unit import read_unit
from pipeline.job.config import parse_job
from pipeline.ledger.ledger import table_to_units
from pipeline.plan import throughput
from pipeline.plan.corpus import Survey, list_corpus, survey
from pipeline.plan.sample import Sample, take_sample
from pipeline.plan.units import Plan, choose_unit_rows, cut_plan
from tests.checkpoints import write_bert

ROWS = 1000


def _lines(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def write(path, table: pa.Table, *, small_groups: bool = False) -> None:
    match path.suffixes:
        case [".parquet"]:
            pq.write_table(table, path, row_group_size=30 if small_groups else 10_000)
        case [".jsonl"]:
            path.write_bytes(_lines(table))
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress(_lines(table)))
        case [".csv"]:
            pyarrow.csv.write_csv(table, path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return describe(str(write_bert(tmp_path_factory.mktemp("model"))))


def cut(folder, model, *, replicas=1, cores=1, **run) -> tuple[Survey, Plan, list[Unit]]:
    job = parse_job(
        {
            "source": {"uri": str(folder), "id": "id", "text": "text"},
            "table": {"uri": str(folder.parent / f"{folder.name}-table")},
            "encoder": {"model": model.path},
            "run": run,
        }
    )
    found = survey(job, list_corpus(job).shards, modality="text")
    plan = cut_plan(job, found, model, take_sample(found, model), replicas=replicas, cores=cores)
    return found, plan, [unit for unit in table_to_units(plan.table) if isinstance(unit, Unit)]


def fill(folder, name: str, shards: int = 2, **options) -> None:
    for shard in range(shards):
        numbers = range(shard * ROWS // shards, (shard + 1) * ROWS // shards)
        table = pa.table({"id": [f"row {n}" for n in numbers], "text": [f"the text of row {n}" for n in numbers]})
        write(folder / f"{shard:03d}{name}", table, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [".parquet", ".jsonl", ".jsonl.gz", ".csv"])
@pytest.mark.parametrize("shards", [1, 2, 50])
def test_every_row_is_in_one_unit_and_the_first_two_are_early(tmp_path, model, name, shards):
    fill(tmp_path, name, shards)
    found, plan, units = cut(tmp_path, model)
    read = [read_unit(unit, found.source).table.column("id").to_pylist() for unit in units]
    assert sorted(name for rows in read for name in rows) == sorted(f"row {n}" for n in range(ROWS))
    assert [unit.number for unit in units] == list(range(plan.units))
    assert plan.unit_rows == 125
    # A shard of JSON Lines is cut by bytes, and what a row takes is an estimate.
    assert all(4 <= len(rows) <= 25 for rows in read[:2])
    assert all(len(rows) <= 140 for rows in read)
    assert len(read[2]) > 60


def test_row_groups_larger_or_smaller_than_the_early_unit(tmp_path, model):
    fill(tmp_path, ".parquet", 1, small_groups=True)
    found, _, units = cut(tmp_path, model)
    rows = [read_unit(unit, found.source).table.num_rows for unit in units]
    assert sum(rows) == ROWS
    assert rows[:2] == [15, 15]  # each half of the first row group: no more than an eighth of 125


def test_a_requested_unit_size_applies_to_all_units(tmp_path, model):
    fill(tmp_path, ".parquet")
    _, _, units = cut(tmp_path, model, unit_rows=100)
    assert [sum(piece.rows for piece in unit.pieces) for unit in units] == [100] * 10


def test_the_same_corpus_is_cut_in_the_same_way(tmp_path, model):
    fill(tmp_path, ".csv")
    assert cut(tmp_path, model)[2] == cut(tmp_path, model)[2]


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_unit_of_short_rows_is_bounded_for_any_corpus(tmp_path, model, replicas, monkeypatch):
    # On a faster processor four encoders of this tiny model would get larger blocks, so that the driver keeps up.
    monkeypatch.setattr(throughput, "processor_flags", frozenset)
    shard_rows, text = 1_000_000, "a short text"
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(shard_rows, np.int32)), [text])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=100_000)
    job = parse_job(
        {
            "source": {"uri": str(tmp_path), "text": "text", "keep": ["text"]},
            "table": {"uri": str(tmp_path.parent / f"{tmp_path.name}-table")},
            "encoder": {"model": model.path},
        }
    )
    found = survey(job, list_corpus(job).shards, modality="text")
    sample = take_sample(found, model)
    largest = {}
    for shards in (1, 10, 100):
        many = replace(found, shards=found.shards * shards)
        plan = cut_plan(job, many, model, sample, replicas=replicas, cores=4)
        assert plan.rows == shards * shard_rows
        rows = plan.table.group_by("unit").aggregate([("rows", "sum")])["rows_sum"].to_pylist()
        largest[shards] = max(rows)
    stored_bytes = 4 * model.dim + len(text)
    assert max(largest.values()) * stored_bytes < 32 << 20
    assert max(largest.values()) < 60_000
    assert largest[10] == largest[100]


def test_many_encoders_and_short_rows_get_larger_blocks(model):
    job = parse_job({"source": {"uri": "x", "text": "text"}, "table": {"uri": "y"}, "encoder": {"model": model.path}})
    sample = Sample(rows=1, tokens_per_row=10.0, truncated_share=0.0, bytes_per_row=20.0, inputs=None)
    one, ten, thousand, more = (
        choose_unit_rows(job, model, sample, replicas=n, cores=None) for n in (1, 10, 1000, 9999)
    )
    assert one == ten < 50_000
    assert one < thousand == more
    assert more * (4 * model.dim + 20) < 192 << 20


def test_units_get_longer_with_more_encoders_than_the_driver_can_serve(model):
    job = parse_job({"source": {"uri": "x", "text": "text"}, "table": {"uri": "y"}, "encoder": {"model": model.path}})
    sample = Sample(rows=1, tokens_per_row=30_000.0, truncated_share=0.0, bytes_per_row=1.0, inputs=None)
    few, many, more = (choose_unit_rows(job, model, sample, replicas=n, cores=None) for n in (1, 140, 1400))
    assert few == many > 100
    assert more == pytest.approx(10 * few, rel=0.01)
    long = Sample(rows=1, tokens_per_row=30_000.0, truncated_share=0.0, bytes_per_row=1e6, inputs=None)
    assert choose_unit_rows(job, model, long, replicas=1400, cores=None) < 200  # what fits in memory is the limit still


def test_units_of_encoders_with_more_cores_are_larger(model, monkeypatch):
    monkeypatch.setattr(throughput, "core_flops", lambda precision: 1e6)
    job = parse_job({"source": {"uri": "x", "text": "text"}, "table": {"uri": "y"}, "encoder": {"model": model.path}})
    sample = Sample(rows=1, tokens_per_row=1.0, truncated_share=0.0, bytes_per_row=1.0, inputs=None)
    one, four = (choose_unit_rows(job, model, sample, replicas=1, cores=cores) for cores in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.05)
