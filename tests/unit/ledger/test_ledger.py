"""The ledger: receipts are found in their own files, in receipt batches, or in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors import storage
from actors.errors import TableConflict
from actors.schema import Dialect, Piece, RewriteUnit, RewrittenFile, Shard, Unit
from actors.unit.receipt import DataFile, Receipt
from actors.unit.writer import UNITS_A_FOLDER, receipt_path
from pipeline.ledger.ledger import Ledger, table_to_units, units_to_table
from pipeline.ledger.run_description import RunDescription


def receipt(unit: int) -> Receipt:
    file = DataFile(f"data/run/{unit}.parquet", 10, 2, {"lang": None}, '{"numRecords":2}')
    return Receipt(unit, f"attempt{unit}", (file,), 3, 2, 2, 1, 20, 0, 2, quarantine=("q",), seconds={"read": 0.5})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path / "table"), "run")
    ledger.freeze(RunDescription("backfill", 1, 3), units_to_table([]))
    return ledger


def write_receipts(ledger: Ledger, *units: int) -> None:
    """Write receipts as the writer of units does."""
    for unit in units:
        assert storage.create(storage.join(ledger.home(), receipt_path(unit)), receipt(unit).to_json().encode())


def test_plan_keeps_the_dialect_of_each_shard():
    shards = [
        Shard("a.csv", 9, "e", dialect=Dialect('"', "double")),
        Shard("b.tsv", 9, "e", dialect=Dialect("none", "backslash")),
        Shard("c.jsonl", 9, "e"),
    ]
    units = [Unit(number, (Piece(shard, 0, 9, 1),)) for number, shard in enumerate(shards)]
    assert list(table_to_units(units_to_table(units))) == units


def test_ledger_without_receipts_has_no_finished_unit(ledger: Ledger):
    assert ledger.done() == set()
    assert ledger.receipts() == {}


def test_ledger_without_a_plan_is_empty(tmp_path: Path):
    ledger = Ledger(str(tmp_path), "run")
    assert (ledger.done(), ledger.receipts(), ledger.listing()) == (set(), {}, None)


def test_ledger_with_the_names_of_a_development_version_is_refused(ledger: Ledger):
    url = storage.join(ledger.url, "run.json")
    description = json.loads(storage.read(url))
    del description["format"]
    storage.put(url, json.dumps(description).encode())
    with pytest.raises(TableConflict, match="from before the first release.*Name another table.uri"):
        Ledger(str(Path(ledger.url).parents[2]), "run").description()


def test_later_plan_has_no_receipt_of_an_earlier_plan(ledger: Ledger):
    """A worker may write its receipt after a vacuum has removed its run."""
    write_receipts(ledger, 3)
    home = ledger.home()
    storage.delete(storage.join(ledger.url, "run.json"))
    again = Ledger(str(Path(ledger.url).parents[2]), "run")
    again.freeze(RunDescription("backfill", 9, 9), units_to_table([]))
    storage.create(storage.join(home, receipt_path(5)), receipt(5).to_json().encode())
    assert again.done() == set()


def test_receipts_of_batches_and_of_single_files_are_read_once_and_in_order(ledger: Ledger):
    write_receipts(ledger, 4, 2, 0, UNITS_A_FOLDER + 1, 3 * UNITS_A_FOLDER)
    ledger.write_receipt_batch([receipt(4), receipt(UNITS_A_FOLDER + 1)])
    ledger.write_receipt_batch([receipt(2), receipt(4)])  # two drivers of one run may see the same unit
    units = [0, 2, 4, UNITS_A_FOLDER + 1, 3 * UNITS_A_FOLDER]
    assert ledger.done() == set(units)
    assert list(ledger.receipts().items()) == [(unit, receipt(unit)) for unit in units]


def test_only_folders_with_units_missing_from_batches_are_listed(ledger: Ledger):
    ledger.write_receipt_batch([receipt(unit) for unit in range(UNITS_A_FOLDER)])
    ledger.write_receipt_batch([receipt(UNITS_A_FOLDER)])
    storage.put(storage.join(ledger.home(), "receipts", "000000", "no number.json"), b"listing this folder fails")
    write_receipts(ledger, UNITS_A_FOLDER + 7)
    assert ledger.done() == {*range(UNITS_A_FOLDER + 1), UNITS_A_FOLDER + 7}
    assert sorted(ledger.receipts()) == [*range(UNITS_A_FOLDER + 1), UNITS_A_FOLDER + 7]


def test_object_that_is_no_receipt_is_ignored(ledger: Ledger):
    write_receipts(ledger, 5)
    storage.put(storage.join(ledger.home(), "receipts", "000000", "000000005.json.part"), b"half")
    assert ledger.done() == {5}
    assert ledger.receipts() == {5: receipt(5)}


def test_plan_is_read_back_without_the_finished_units():
    shard = Shard("corpus/a.parquet", 10, "etag")
    units: list[Unit | RewriteUnit] = [
        Unit(number, tuple(Piece(shard, 10 * piece, 10 * piece + 10, 10) for piece in range(number % 2 + 1)))
        for number in range(5)
    ]
    files = [RewrittenFile("data/r/a.parquet", {"lang": "de"}, 3), RewrittenFile("b.parquet", {"lang": None}, 4)]
    units[2] = RewriteUnit(2, tuple(files))
    table = units_to_table(units)
    assert list(table_to_units(table)) == units
    assert list(table_to_units(table, {0, 3, 99})) == [units[1], units[2], units[4]]
    assert list(table_to_units(table, set(range(5)))) == []
