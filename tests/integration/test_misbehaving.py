"""A store that answers 409, 412, 500 and 503, is slow, cuts connections, or does the work and never says so.

Each kind of request that a run makes meets a fault; the run ends right, or stops with an error of ours and the same
command ends it. `make test-s3` puts every kind through every fault, on a real store.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pipeline.run import backfill
from tests.integration.conftest import Silent
from tests.stores.misbehaving import (
    KINDS,
    Expected,
    Tally,
    check,
    clean_run,
    faults_by_turns,
    job_of,
    put_rows,
    small_probe,
    until_it_ends,
)
from tests.stores.proxy import FAULTS, Proxy, proxy
from tests.stores.server import BUCKET, use


@pytest.fixture(scope="module")
def faulty(server) -> Iterator[Proxy]:
    with proxy(server) as started:
        yield started


@pytest.fixture(scope="module")
def expected(server, tiny_model) -> Iterator[Expected]:
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch)
        yield clean_run(f"s3://{BUCKET}/{secrets.token_hex(4)}", tiny_model)


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("turn", range(len(FAULTS)))
def test_every_kind_of_request_meets_a_fault(lake, faulty, expected, tiny_model, monkeypatch, turn, first):
    put_rows(lake)
    small_probe(monkeypatch)
    faulty.play(*faults_by_turns(FAULTS, turn, first=first))
    tally = Tally()
    until_it_ends(lambda: backfill(job_of(lake, tiny_model), Silent()), faulty, monkeypatch, tally)
    check(lake, expected, faulty, monkeypatch, tally)
    print(tally, *tally.told, sep="\n")
    assert first > 1 or {kind for _, kind in tally.pairs} == KINDS.keys()
