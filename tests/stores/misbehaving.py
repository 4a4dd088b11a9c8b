"""A run on a store that does wrong, again and again until it ends, and the comparison with a run that met none of it.

Used on moto by tests/integration/test_misbehaving.py and on Ceph by tests/s3/test_misbehaving.py. One scenario gives
every kind of request a fault of its own, so a few runs try many pairs. The trade-off: a run meets several faults, which
is harder on it than one at a time, and tells less about which of them was too much.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from actors import storage
from actors.errors import ConfigError, VectideError
from pipeline.execute.progress import Outcome
from pipeline.job.config import Job
from pipeline.ledger import create_probe
from pipeline.ledger.ledger import Ledger
from pipeline.run.backfill import backfill
from pipeline.table import delta_table
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.proxy import Fault, Proxy, hurry
from tests.stores.server import BUCKET, use
from tests.stores.suite import options, parquet, put_corpus

# The requests of a run in about their order: name to method, and a pattern of path and query.
KINDS = {
    "source list": ("GET", r"list-type=2&prefix=[^&]*/corpus"),
    "log list": ("GET", r"list-type=2&prefix=[^&]*/_delta_log"),
    "lock list": ("GET", r"list-type=2&prefix=[^&]*/lock/"),
    "lock create": ("PUT", r"/lock/\d+\.json"),
    "source head": ("HEAD", r"/corpus/part-"),
    "source read": ("GET", r"/corpus/part-[^&]*parquet$"),
    "probe create": ("PUT", r"/probes/"),
    "probe read": ("GET", r"/probes/[^&]*$"),
    "probe delete": ("DELETE", r"/probes/"),
    "plan create": ("PUT", r"/plan\.parquet"),
    "description create": ("PUT", r"/run\.json"),
    "description read": ("GET", r"/run\.json$"),
    "plan read": ("GET", r"/plan\.parquet$"),
    "data put": ("PUT", r"/table/data/"),
    "quarantine put": ("PUT", r"/quarantine/"),
    "receipt create": ("PUT", r"/receipts/"),
    "receipt list": ("GET", r"list-type=2&prefix=[^&]*/receipts/"),
    "receipt read": ("GET", r"/receipts/[^&]*json$"),
    "data head": ("HEAD", r"/table/data/"),
    "data read": ("GET", r"/table/data/[^&]*parquet$"),
    "receipt override create": ("PUT", r"/receipt_override\.json"),
    "data list": ("GET", r"list-type=2&prefix=[^&]*/table/data/"),
    "lock read": ("GET", r"/lock/\d+\.json$"),
    "log create": ("PUT", r"/_delta_log/0{20}\.json"),
    "log read": ("GET", r"/_delta_log/\d+\.json$"),
    "commit": ("PUT", r"/_delta_log/0{19}1\.json"),
}
# The most runs that a scenario may take: each fault may stop one.
_RUNS = len(KINDS) + 2

Stored = dict[str, tuple[str | None, list[float]]]


@dataclass(slots=True)
class Tally:
    """Totals of many scenarios, for the report."""

    injected: int = 0
    runs: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    pairs: set[tuple[str, str]] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.injected} faults injected, {len(self.pairs)} pairs of fault and kind of request, {self.runs} runs of "
            f"which {len(self.errors)} stopped, {self.rows} rows checked, {self.lost} lost, {self.doubled} doubled"
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """Results of a run without a fault."""

    stored: Stored
    quarantine: list[tuple[str, int, str]]


def put_rows(lake: str) -> str:
    """A small corpus with a row that the reader quarantines, and one that the check for duplicate ids does."""
    source = rows(33)
    source[7]["title"] = source[7]["text"] = None
    source[32]["id"] = "r3"
    return put_corpus(lake, source[:20], source[20:])


def job_of(lake: str, model: Path) -> Job:
    """The job over it."""
    return make_job(
        f"{lake}/corpus/*.parquet", f"{lake}/table", model, table__partition_by=["lang"], run__max_quarantined=0.5
    )


def faults_by_turns(faults: Sequence[str], turn: int, *, first: int = 1) -> list[Fault]:
    """A fault for each kind of request. Over all turns each kind meets each fault."""
    return [
        Fault(faults[(number + turn) % len(faults)], method, target, first)
        for number, (method, target) in enumerate(KINDS.values())
    ]


def look(lake: str) -> tuple[Expected, int]:
    """What is there now, read past the proxy; and how many rows are there twice."""
    url = f"{lake}/table"
    table = DeltaTable(url, storage_options=options(url))
    found: list[dict[str, Any]] = table.to_pyarrow_table().to_pylist()
    stored = {str(row["id"]): (row["lang"], row["embedding"]) for row in found}
    state = delta_table.state_of(table)  # runs that were stopped have a quarantine too
    ledger = Ledger(url, state.run if state is not None else "")
    quarantine = ledger.quarantine(ledger.receipts().values()).to_pylist()
    bad = [(row["shard"].removeprefix(lake), row["position"], row["reason"]) for row in quarantine]
    return Expected(stored, sorted(bad)), len(found) - len(stored)


def kind_of(method: str, target: str) -> str:
    """The name of a request's kind."""
    return next(
        (name for name, (verb, where) in KINDS.items() if verb == method and re.search(where, target)), "another"
    )


def clean_run(lake: str, model: Path) -> Expected:
    """A run that meets no fault, and what it made."""
    put_rows(lake)
    backfill(job_of(lake, model), Silent())
    return look(lake)[0]


def change_source(lake: str) -> None:
    """The corpus after some days: rows gone, rows new, a row with another text."""
    source = [row for row in rows(40) if row["id"] not in ("r1", "r30")]
    source[5]["text"] = "another text than before"
    storage.put(f"{lake}/corpus/part-0001.parquet", parquet(source[19:]))


@dataclass(slots=True)
class Trial:
    """One job on a store with faults.

    Attributes:
        expected: Expected content of the table at the end.
    """

    lake: str
    model: Path
    faulty: Proxy
    expected: Expected
    monkeypatch: pytest.MonkeyPatch

    @property
    def job(self) -> Job:
        """The job over the small corpus."""
        return job_of(self.lake, self.model)

    def misbehave(self, *faults: Fault) -> None:
        """Inject faults from here on."""
        self.faulty.play(*faults)
        use(self.faulty.server, self.monkeypatch)
        hurry(self.monkeypatch)

    def until_it_ends(self, work: Callable[[Job, Silent], Outcome], tally: Tally) -> Outcome:
        """Repeat the command until it succeeds; each error must be a VectideError other than ConfigError."""
        for _ in range(_RUNS):
            tally.runs += 1
            try:
                return work(self.job, Silent())
            except VectideError as error:
                tally.errors.append(str(error))
                assert not isinstance(error, ConfigError), error  # noqa: PT017  (a run may also succeed)
                assert "\n" not in str(error)  # noqa: PT017
        raise AssertionError(f"{_RUNS} runs did not end; the last: {tally.errors[-3:]}")

    def check(self, tally: Tally) -> None:
        """Check that the table equals that of a run without faults. Reads without the proxy."""
        injected = self.faulty.injected()
        tally.injected += len(injected)
        tally.pairs |= {(what, kind_of(method, target)) for what, method, target in injected}
        use(self.faulty.behind, self.monkeypatch)
        found, doubled = look(self.lake)
        there, expected = found.stored, self.expected.stored
        tally.rows += len(expected)
        tally.lost += len(expected.keys() - there.keys())
        tally.doubled += doubled
        assert there.keys() == expected.keys()
        assert doubled == 0
        assert found.quarantine == self.expected.quarantine
        for name, (lang, vector) in expected.items():
            assert there[name][0] == lang
            np.testing.assert_allclose(there[name][1], vector, atol=1e-3)


@pytest.fixture(scope="module")
def expected(faulty: Proxy, tiny_model: Path) -> Iterator[Expected]:
    """What a run makes that meets no fault."""
    with pytest.MonkeyPatch.context() as patch:
        use(faulty.behind, patch)
        yield clean_run(f"s3://{BUCKET}/{secrets.token_hex(4)}", tiny_model)


@pytest.fixture
def trial(lake: str, tiny_model: Path, faulty: Proxy, expected: Expected, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A small corpus on a store that does no wrong yet. The race for an exclusive create is one of two, once: how a
    store decides races is not the matter here."""
    put_rows(lake)
    monkeypatch.setattr("pipeline.run.backfill.probe_create", partial(create_probe.probe_create, racers=2, rounds=1))
    return Trial(lake, tiny_model, faulty, expected, monkeypatch)
