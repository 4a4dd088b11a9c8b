"""The calls of real commands to the store, compared with those of the protocol's model.

tests/unit/ledger/protocol explores a model of a driver and of a vacuum. Here a recorder passes each call through to the
store and writes it down; a real command must make the model's calls in the model's order. `Recorder`
lists the calls that the model leaves out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from actors import storage
from pipeline.run.backfill import backfill
from pipeline.table.vacuum import vacuum
from tests.integration.conftest import Silent, make_job, rows, write_one
from tests.unit.ledger.protocol import programs
from tests.unit.ledger.protocol.explorer import Store, calls_alone
from tests.unit.ledger.protocol.programs import Process, Rules, Stage

Step = tuple[str, str]  # what is done, and to which kind of object


class Recorder:
    """Records the calls to one table's folder, in the words of the model, and passes each through.

    The model leaves out: the probe of the store, quarantined rows, copies of receipts, records of versions, other tables of
    a plan, contents of data files and receipts, ledgers of other runs, deleted numbers and renewals of the lock, and the
    report, which reads the ledger once more after the commit and which no run reads. The code
    checks the lock once more before the commit; the invariants of the model hold without that check.
    """

    def __init__(self, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Step] = []
        self._table = table
        retried = storage.retried

        def record(url: str, what: str, call: Callable[[], Any]) -> Any:
            _, inside, path = url.partition(str(table))
            result, error = None, None
            try:
                result = retried(url, what, call)
            except FileNotFoundError as missing:
                error = missing
            if inside:
                self._note(what, path.strip("/"))
            if error is not None:
                raise error
            return result

        monkeypatch.setattr(storage, "retried", record)
        for name, what in {"__init__": "list", "create": "create", "create_write_transaction": "create"}.items():
            self._record_log(name, what, monkeypatch)

    def _record_log(self, name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        method = getattr(DeltaTable, name)

        def record(*args: Any, **more: Any) -> Any:
            if more.get("version") is None:  # an older version never changes
                self._add((what, "log"))
            return method(*args, **more)

        monkeypatch.setattr(DeltaTable, name, record)

    def _add(self, step: Step) -> None:
        """Add a step; one call of the model may be several of the code, one after the other."""
        if self.steps[-1:] != [step]:
            self.steps.append(step)

    def _note(self, what: str, path: str) -> None:
        match what, *path.split("/"):
            case "list", "_vectide", "lock":
                # After a create the numbers are listed again, to find an old listing.
                if self.steps[-1:] != [("swap", "lock")]:
                    self._add(("read", "lock"))
            case "create", "_vectide", "lock", _:
                self._add(("swap", "lock"))
            case "write", "_vectide", "lock", name:
                if json.loads((self._table / "_vectide" / "lock" / name).read_text())["released"]:
                    self._add(("swap", "lock"))
            case "write", "_vectide", "probes", name if name.startswith("clock-"):
                self._add(("list", "data"))  # a vacuum removes what is older than this moment
            case (("read" | "create"), "_vectide", "runs", _, "run.json"):
                self._add((what, "plan"))
            case "write", "_vectide", "runs", _, "plans", *_, "plan.parquet":
                self._add(("put", "tables"))
            case "read", "_vectide", "runs", _, "plans", *_, "plan.parquet":
                self._add(("read", "tables"))
            case "create", "_vectide", "runs", *_, "receipts", _, _:
                self._add(("create", "receipt"))
            case "list", "_vectide", "runs" if ("list", "data") not in self.steps:
                pass  # a backfill looks for files of earlier runs
            case ("list", "_vectide", "runs", *_, "receipts") | ("list", "_vectide", "runs"):
                self._add(("list", "receipt"))
            case "write", "data", *_:
                self._add(("put", "data"))
            case "list", "data", _:
                self._add(("list", "data"))
            case "delete", "data", *_:
                self._add(("delete", "data"))


def model_steps(stage: Stage, store: Store) -> tuple[list[Step], Store]:
    """Return the steps of a program of the model that runs alone, and the store after it."""
    _, store, calls = calls_alone(stage, store)
    steps = [(call.what, str(call.path[0])) for call in calls]
    return [step for step, _ in itertools.groupby(steps)], store


def driver(name: str, content: str) -> Stage:
    return Stage("start", (Process(name, 0, content, 0, Rules()),))


class Scene:
    """A table and its model; each command runs on both."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = folder / "table"
        self.corpus = folder / "corpus"
        self.store: Store = frozenset()
        self._patch = monkeypatch
        write_one(self.corpus / "a.parquet", rows(6))
        write_one(self.corpus / "b.parquet", rows(6, start=10))
        self.job = make_job(self.corpus, self.table, model, run__unit_rows=6)

    def compare(self, command: Callable[[], object], stage: Stage) -> None:
        with self._patch.context() as patch:
            recorder = Recorder(self.table, patch)
            patch.setattr("pipeline.report.recorder.measure", lambda ledger, calls: {})
            command()
        expected, self.store = model_steps(stage, self.store)
        steps = without_repeats(recorder.steps)
        if stage.name == "vacuum":
            assert steps.pop(0) == ("list", "log")  # is there a table? asked before the lock is taken
        assert steps == expected


# Calls that only ask once more, each between its two neighbours.
ASKED_AGAIN = (
    (("list", "data"), ("read", "lock"), ("list", "log")),  # the lock, once more before the commit
    (("create", "log"), ("list", "log"), ("read", "lock")),  # the number of the version that was just committed
)


def without_repeats(steps: list[Step]) -> list[Step]:
    triples = zip([None, *steps], steps, [*steps[1:], None], strict=False)
    return [step for before, step, after in triples if (before, step, after) not in ASKED_AGAIN]


@pytest.fixture
def scene(tmp_path, tiny_model, monkeypatch):
    return Scene(tmp_path, tiny_model, monkeypatch)


def test_a_backfill_makes_the_calls_of_the_model(scene):
    scene.compare(lambda: backfill(scene.job, Silent()), driver("a", "x"))


def test_a_vacuum_makes_the_calls_of_the_model(scene):
    scene.compare(lambda: backfill(scene.job, Silent()), driver("a", "x"))
    stray = scene.table / "data" / "stray.parquet"
    stray.write_bytes(b"of an attempt that lost")
    process = Process("v", 0, "", 0, Rules(keep=False))
    scene.store |= {(("data", programs.File(programs.Run("x", None), 0, "stray", ())), True)}
    scene.compare(lambda: vacuum(str(scene.table), 0), Stage("vacuum", (process,)))
    assert not stray.exists()
