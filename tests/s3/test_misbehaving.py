"""Every kind of request through every fault, on a real store behind the proxy; `make test` has a few of the pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from tests.integration.conftest import Silent
from tests.stores.misbehaving import (
    KINDS,
    Tally,
    change_source,
    expected,
    faults_by_turns,
    job_of,
    look,
    put_rows,
    trial,
)
from tests.stores.proxy import FAULTS, Proxy, proxy
from tests.stores.server import use

__all__ = ["expected", "trial"]  # fixtures

TALLY = Tally()


@pytest.fixture(scope="module")
def faulty(ceph) -> Iterator[Proxy]:
    with proxy(ceph.server) as started:
        yield started


@pytest.mark.parametrize("turn", range(len(FAULTS)))
def test_a_run_survives_every_fault_in_each_kind_of_request(trial, turn):
    faults = faults_by_turns(FAULTS, turn)
    trial.misbehave(*faults)
    trial.until_it_ends(backfill, TALLY)
    trial.check(TALLY)
    print(f"so far: {TALLY}")
    assert {(fault.what, kind) for kind, fault in zip(KINDS, faults, strict=True)} <= TALLY.pairs


@pytest.mark.parametrize("turn", range(0, len(FAULTS), 4))
def test_a_refresh_survives_every_fault_too(trial, turn):
    backfill(trial.job, Silent())
    change_source(trial.lake)
    fresh = f"{trial.lake}/fresh"
    put_rows(fresh)
    change_source(fresh)
    backfill(job_of(fresh, trial.model), Silent())
    trial.misbehave(*faults_by_turns(FAULTS, turn))
    tally = Tally()
    trial.until_it_ends(refresh, tally)
    injected = len(trial.faulty.injected())
    use(trial.faulty.behind, trial.monkeypatch)
    (there, doubled), (wanted, _) = look(trial.lake), look(fresh)
    assert doubled == 0
    assert there.stored.keys() == wanted.stored.keys()
    for name, (lang, vector) in wanted.stored.items():
        assert there.stored[name][0] == lang
        np.testing.assert_allclose(there.stored[name][1], vector, atol=1e-3)
    print(f"a refresh: {injected} faults injected, {tally.runs} runs, {len(wanted.stored)} rows checked")
