"""Several units in one encode actor: one is computed, others are unpacked and packed meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.encoders.running import Stats
from actors.errors import ConfigError
from actors.schema import HASH, ID, INPUT_IDS
from actors.unit.unit_batch import UnitBatch, pack, unpack
from actors.vectors import Encoded, VectorColumn, dense
from pipeline.execute import ray_data
from pipeline.execute.attempts import NoAttemptLog
from pipeline.execute.stages import encode
from pipeline.plan.resources import Pool

WAIT_S = 30.0


class Encoder:
    """Computes a unit when the next one has been prepared, and a later unit when the one before has been packed."""

    compute = SimpleNamespace(memory=lambda: None)

    def __init__(self) -> None:
        self.prepared, self.packed = threading.Semaphore(0), threading.Semaphore(0)
        self.busy, self.units = threading.Lock(), 0

    @property
    def stats(self) -> Stats:
        return Stats(rows=2 * self.units, padding_tokens=7 * self.units)

    def encode_rows(self, rows: pa.Table, chunking: Any) -> Encoded:
        assert self.busy.acquire(blocking=False), "two units are computed at once"
        self.units += 1
        if self.units < 3:
            assert self.prepared.acquire(timeout=WAIT_S)
        if self.units > 1:
            assert self.packed.acquire(timeout=WAIT_S)
        self.busy.release()
        return Encoded((dense(np.array([row[0] for row in rows[INPUT_IDS].to_pylist()], np.float32)[:, None]),))


def test_other_units_are_prepared_and_packed_while_one_is_computed(monkeypatch):
    encoder = Encoder()
    spec: Any = SimpleNamespace(
        chunking=None, row_timeout_s=None, model=SimpleNamespace(outputs=(VectorColumn("embedding", "dense", 1),))
    )
    stage = encode.EncodeStage(spec, NoAttemptLog(), 1, "cpu")
    stage.__dict__["encoder"] = encoder
    work_of = encode._work
    count = threading.Semaphore(0)

    def prepare(rows: pa.Table) -> Any:
        work = work_of(rows)
        if count.acquire(blocking=False):  # not for the first unit: the encoder waits for those after it
            encoder.prepared.release()
        count.release()
        return work

    def pack_one(batch: UnitBatch) -> pa.Table:
        block = pack(batch)
        encoder.packed.release()
        return block

    monkeypatch.setattr(encode, "_work", prepare)
    monkeypatch.setattr(encode, "pack", pack_one)
    blocks = [
        pack(
            UnitBatch(
                unit,
                table=pa.table({ID: ["a", "b"], HASH: ["1", "2"]}),
                inputs=pa.table({INPUT_IDS: [[2 * unit], [2 * unit + 1]]}),
                counts={"documents": 2},
            )
        )
        for unit in range(3)
    ]
    with ThreadPoolExecutor(3) as threads:
        done = [unpack(block) for block in threads.map(stage, blocks)]
    assert [batch.error for batch in done] == [None] * 3
    tables = [batch.table for batch in done]
    assert [table and table["embedding"].to_pylist() for table in tables] == [[[0], [1]], [[2], [3]], [[4], [5]]]
    # What the encoder counts is counted once for each unit, whichever thread had it.
    assert [batch.counts["padding"] for batch in done] == [7, 7, 7]


def test_a_wrong_setting_is_an_error_of_the_unit_and_of_no_row():
    def encode_rows(rows: pa.Table, chunking: Any) -> Encoded:
        raise ConfigError("VECTIDE_FUSE is 1, and nothing compiles here")

    spec: Any = SimpleNamespace(chunking=None, row_timeout_s=None)
    stage = encode.EncodeStage(spec, NoAttemptLog(), 1, "cpu")
    stage.__dict__["encoder"] = SimpleNamespace(encode_rows=encode_rows)
    rows = pa.table({ID: ["a", "b"], HASH: ["1", "2"]})
    done = unpack(stage(pack(UnitBatch(0, table=rows, inputs=pa.table({INPUT_IDS: [[1], [2]]})))))
    assert isinstance(done.error, ConfigError)
    assert done.bad == []


@pytest.mark.parametrize(("device", "threads"), [("cuda", 3), ("cpu", 1)])
def test_actors_on_gpus_have_threads_for_three_units(device, threads):
    pool = Pool(2, 1.0 * (device == "cuda"), cpus=1.0, threads=None, io_cpus=1.0, device=device)
    actors = ray_data._actors(pool, 100)
    assert (actors.max_concurrent_calls_per_actor or 1) == threads
    assert actors.enable_true_multi_threading == (threads > 1)
    assert actors.max_tasks_in_flight_per_actor > threads
