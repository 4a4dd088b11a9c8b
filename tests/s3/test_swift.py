"""A store that is not safe: the probe finds it out, and nothing is written there.

Its S3 layer looks whether an object is there and then writes, so callers that ask at once can all win.
"""

from __future__ import annotations

from functools import partial

import pytest

from actors import storage
from actors.errors import UnsafeStore
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import run_names
from pipeline.run.backfill import backfill
from tests.integration.conftest import make_job, rows
from tests.s3.servers import Swift
from tests.stores.server import keys
from tests.stores.suite import put_corpus


@pytest.fixture(scope="module")
def server():
    with Swift() as started:
        yield started.server


def test_sequential_creates_on_swift_look_exclusive(lake):
    for number in range(10):
        assert storage.create(f"{lake}/{number}", b"first")
        assert not storage.create(f"{lake}/{number}", b"second")


def test_the_probe_races_creates_and_refuses_swift(lake, server):
    with pytest.raises(UnsafeStore, match=r"does not honour an exclusive create: \d+ of 16 racing callers"):
        probe_create(f"{lake}/probes", rounds=20)
    assert keys(server, lake) == []


def test_a_backfill_on_swift_ends_before_the_plan(lake, tiny_model, reporter, monkeypatch):
    monkeypatch.setattr("pipeline.run.backfill.probe_create", partial(probe_create, rounds=20))  # as good as certain
    job = make_job(put_corpus(lake, rows(20)), f"{lake}/table", tiny_model)
    with pytest.raises(UnsafeStore, match="Use a store that does"):
        backfill(job, reporter)
    assert reporter.receipts == []
    assert run_names(f"{lake}/table") == []
