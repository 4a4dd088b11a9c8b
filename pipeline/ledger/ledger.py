"""Folder of one run: the frozen plan, the receipts and the quarantine.

    <table>/_vectide/runs/<run>/run.json          description of the run, created if absent: job, lineage, totals, plan
                                plans/<token>/    the plan of one driver; run.json names the plan in use
                                    plan.parquet      one line a piece
                                    listing.parquet   the shards that were listed for the plan
                                    reuse.parquet     places of the stored vectors of known texts; if they are too
                                                      many for memory, reuse/000.parquet and so on
                                    replaced.parquet  for a refresh: the shards whose old rows are removed
                                    duplicates.parquet    and the rows to quarantine for their id, if any
                                    receipts/         one JSON a unit, in folders of a thousand
                                    receipt_batches/  copies of receipts, a thousand in a file
                                    quarantine/       one Parquet a unit with quarantined rows
                                    receipt_override.json    receipts that the check for duplicate ids replaced, if any
                                merge/            the same for the merge of the run's small files, if there was one

Receipts are stored below their plan. A worker may outlive its run after a vacuum has removed that run; its receipt is then
not below the plan of a later run, which cuts the corpus differently.

Used by the backfill, `status` and publish. A run is named by the content that it would produce, so the same command finds
its own ledger and resumes. Each receipt is an object of its own, so that the first attempt wins. A store takes minutes
to list and read a million objects, so the driver also writes copies of the receipts that it saw, many in a file. A
receipt never changes, so a copy is equal to it; a receipt without a copy is read itself.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.schema import QUARANTINE_SCHEMA, Dialect, Piece, RewriteUnit, RewrittenFile, Shard, Unit
from actors.unit.receipt import DataFile, Receipt
from actors.unit.writer import UNITS_A_FOLDER
from pipeline.ledger.run_description import RunDescription

FOLDER = "_vectide"
ROWS_FOLDER = "curation/rows"  # of a curation, below FOLDER: the rows of its units
UNIT_FILES = "unit_files"  # table of a curation: the files in that folder that it read
EVIDENCE = "evidence.json"  # of a curation, beside its plan
PLAN_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),  # for a rewrite, the partition values of the file as JSON
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("rows", pa.int64()),
        ("rows_exact", pa.bool_()),
        ("rewrite", pa.bool_()),
        # Dialect of a delimited shard, detected once, so that no worker and no later run detects another one.
        ("quote", pa.string()),
        ("escape", pa.string()),
    ]
)
RECEIPT_BATCH_SCHEMA = pa.schema([("unit", pa.int64()), ("receipt", pa.string())])
RECEIPT_BATCH_UNITS = 1000
_THREADS = 32


def runs_folder(table: str) -> str:
    """Return the URL of the folder of a table's ledgers."""
    return storage.join(table, FOLDER, "runs")


def run_names(table: str) -> list[str]:
    """Return the names of the runs of which a table has ledgers."""
    return storage.folders(runs_folder(table))


def listing_table(shards: Iterable[Shard]) -> pa.Table:
    """Return a listing as the table that `Ledger.listing` reads."""
    rows = [{"path": shard.path, "size_bytes": shard.size_bytes, "etag": shard.etag} for shard in shards]
    return pa.Table.from_pylist(rows, schema=pa.schema([PLAN_SCHEMA.field(n) for n in ("path", "size_bytes", "etag")]))


def units_to_table(units: Iterable[Unit | RewriteUnit]) -> pa.Table:
    """Return a plan as a table (`PLAN_SCHEMA`), one line a piece, or a file of a rewrite unit."""
    columns: dict[str, list[Any]] = {name: [] for name in PLAN_SCHEMA.names}
    for unit in units:
        for line in _rewrite_lines(unit) if isinstance(unit, RewriteUnit) else _lines(unit):
            for name, value in zip(PLAN_SCHEMA.names, line, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=PLAN_SCHEMA)


def _lines(unit: Unit) -> Iterator[tuple[Any, ...]]:
    for piece in unit.pieces:
        shard = piece.shard
        place = (shard.path, shard.size_bytes, shard.etag, piece.start, piece.stop, piece.rows, piece.rows_exact)
        dialect = (shard.dialect.quote, shard.dialect.escape) if shard.dialect else (None, None)
        yield unit.number, *place, False, *dialect


def _rewrite_lines(unit: RewriteUnit) -> Iterator[tuple[Any, ...]]:
    for file in unit.files:
        yield unit.number, file.path, 0, json.dumps(file.partition), 0, file.rows, file.rows, True, True, None, None


def table_to_units(table: pa.Table, skip: Collection[int] = ()) -> Iterator[Unit | RewriteUnit]:
    """Yield the units of a plan in order, without those whose number is in `skip`."""
    if skip:  # filtered as columns, because most units of a large plan may be finished
        skipped = pa.array(sorted(skip), pa.int64())
        table = table.filter(pc.invert(pc.is_in(table["unit"], value_set=skipped)))
    rows = (row for batch in table.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
    for (number, rewrite), lines in itertools.groupby(rows, key=itemgetter("unit", "rewrite")):
        if rewrite:
            yield RewriteUnit(
                number, tuple(RewrittenFile(row["path"], json.loads(row["etag"]), row["rows"]) for row in lines)
            )
        else:
            yield Unit(number, tuple(map(_piece, lines)))


def _piece(row: dict[str, Any]) -> Piece:
    dialect = Dialect(row["quote"], row["escape"]) if row.get("quote") is not None else None
    shard = Shard(row["path"], row["size_bytes"], row["etag"], dialect=dialect)
    return Piece(shard, row["start"], row["stop"], row["rows"], row["rows_exact"])


def merge_ledger(ledger: Ledger) -> Ledger:
    """Return the ledger of the merge of a run's small files, which is inside the run's folder."""
    return Ledger(ledger.table_url, f"{ledger.run}/merge")


def files_of_run(ledger: Ledger) -> list[DataFile]:
    """Return the data files that receipts of a run name, those of the merge of its small files included."""
    receipts = [*ledger.receipts().values(), *merge_ledger(ledger).receipts().values()]
    return [file for receipt in receipts for file in receipt.files]


class Ledger:
    """Folder of one run.

    Args:
        table: URL of the table's folder.
        run: Name of the run.
    """

    def __init__(self, table: str, run: str) -> None:
        self.run = run
        self.table_url = table
        self.url = storage.join(runs_folder(table), run)
        self._description: RunDescription | None = None

    def freeze(
        self, description: RunDescription, plan: pa.Table, **tables: pa.Table | Iterable[pa.Table]
    ) -> RunDescription:
        """Write the plan and its tables, unless a concurrent driver of the same run was first.

        Each driver writes its tables to a folder of its own. `run.json`, created last and if absent, names that folder,
        so all tables in use are of one driver. A table that is given in parts becomes a folder; one part at a time is in
        memory.

        Returns:
            The description in use: this driver's, or that of the driver that was first.

        Raises:
            StorageError: `run.json` was written and cannot be read back.
        """
        place = f"plans/{secrets.token_hex(6)}"
        for name, table in {"plan": plan, **tables}.items():
            if isinstance(table, pa.Table):
                self._put(f"{place}/{name}.parquet", table)
                continue
            for number, part in enumerate(table):
                self._put(f"{place}/{name}/{number:03d}.parquet", part)
        text = replace(description, run=self.run, plan=place).to_json()
        storage.create(storage.join(self.url, "run.json"), text.encode())
        stored = self.description()
        if stored is None:
            raise StorageError(f"{self.url!r} was written but cannot be read back; check the store and run again")
        return stored

    def _put(self, path: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.put(storage.join(self.url, path), bytes(sink.getvalue()))

    def description(self) -> RunDescription | None:
        """Return the description that `freeze` stored, or None if no plan is frozen yet.

        Raises:
            TableConflict: a development version of vectide wrote the ledger, with other names.
        """
        if self._description is None:
            with suppress(FileNotFoundError):
                text = storage.read(storage.join(self.url, "run.json"))
                self._description = RunDescription.from_json(text, url=self.url)
        return self._description

    def frozen(self) -> RunDescription:
        """Return the description of a run whose plan is frozen.

        Raises:
            FileNotFoundError: no plan is frozen.
        """
        description = self.description()
        if description is None:
            raise FileNotFoundError(f"{self.url!r} has no frozen plan")
        return description

    def holds(self, content: str) -> bool:
        """Return whether `content` (see `fingerprint.content_name`) is what this run publishes."""
        description = self.description()
        return description is not None and description.content == content

    def home(self) -> str:
        """Return the URL of the folder of the plan in use, with its tables and receipts.

        Raises:
            FileNotFoundError: no plan is frozen.
        """
        return storage.join(self.url, self.frozen().plan)

    def plan(self) -> pa.Table:
        """Return the frozen plan (`PLAN_SCHEMA`).

        Raises:
            StorageError: the plan was removed.
        """
        try:
            return self.table("plan")
        except FileNotFoundError:
            raise StorageError(
                f"the plan that {self.url!r} names does not exist any more: another program removed it. Remove that folder "
                f"and run the same command again"
            ) from None

    def table(self, name: str) -> pa.Table:
        """Return a table that was passed to `freeze` or `add_table`.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return pq.read_table(pa.BufferReader(storage.read(storage.join(self.home(), f"{name}.parquet"))))

    def add_table(self, name: str, table: pa.Table) -> None:
        """Write a table beside the frozen plan; `table` reads it."""
        self._put(f"{self.frozen().plan}/{name}.parquet", table)

    def listing(self) -> dict[str, tuple[int, str]] | None:
        """Return the shards that the run reads, path to size and etag; None if no listing was stored."""
        try:
            rows = self.table("listing").to_pydict()
        except FileNotFoundError:
            return None
        return dict(zip(rows["path"], zip(rows["size_bytes"], rows["etag"], strict=True), strict=True))

    def evidence(self) -> dict[str, Any] | None:
        """Return what a curation found out (`EVIDENCE`); None before it has decided, and for other runs."""
        try:
            found: dict[str, Any] = json.loads(storage.read(storage.join(self.home(), EVIDENCE)))
        except FileNotFoundError:
            return None
        return found

    def done(self) -> set[int]:
        """Return the numbers of the units that have a receipt."""
        done: set[int] = set()
        if self.description() is None:
            return done
        for table in self._receipt_batches(["unit"]):
            done.update(table["unit"].to_pylist())
        done.update(unit for unit, _ in self._receipts(done))
        return done

    def write_receipt_batch(self, receipts: Collection[Receipt]) -> None:
        """Write copies of existing receipts to one file with a unique name."""
        units = [receipt.unit for receipt in receipts]
        rows = [units, [receipt.to_json() for receipt in receipts]]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(rows, schema=RECEIPT_BATCH_SCHEMA), sink, compression="zstd", use_dictionary=False)
        url = storage.join(self.home(), "receipt_batches", f"{min(units):09d}-{secrets.token_hex(6)}.parquet")
        storage.put(url, bytes(sink.getvalue()))

    def _receipt_batches(self, columns: list[str]) -> Iterator[pa.Table]:
        def load(shard: Shard) -> pa.Table:
            return pq.read_table(pa.BufferReader(storage.read(shard.path)), columns=columns)

        files = list(storage.walk(storage.join(self.home(), "receipt_batches")))
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(files), _THREADS):  # a few at a time, because all of them may be a gigabyte
                yield from pool.map(load, files[start : start + _THREADS])

    def _receipts(self, known: Collection[int]) -> Iterator[tuple[int, str]]:
        """Yield the unit and the path of each receipt whose unit is not `known`.

        A folder is not listed if all of its units are known.
        """
        root = storage.join(self.home(), "receipts")
        counts = Counter(unit // UNITS_A_FOLDER for unit in known)
        folders = [name for name in storage.folders(root) if counts[int(name)] < UNITS_A_FOLDER]

        def list_receipts(folder: str) -> list[str]:
            paths = (shard.path for shard in storage.walk(storage.join(root, folder)))
            return [path for path in paths if path.endswith(".json")]

        with ThreadPoolExecutor(_THREADS) as pool:
            for path in itertools.chain.from_iterable(pool.map(list_receipts, folders)):
                unit = int(path.rsplit("/", 1)[1][:-5])
                if unit not in known:
                    yield unit, path

    def receipts(self) -> dict[int, Receipt]:
        """Return every receipt by unit, with those that the receipt override replaces."""
        receipts: dict[int, Receipt] = {}
        if self.description() is None:
            return receipts
        for table in self._receipt_batches(["receipt"]):
            for text in table["receipt"].to_pylist():
                receipt = Receipt.from_json(text)
                receipts[receipt.unit] = receipt
        paths = [path for _, path in self._receipts(receipts.keys())]
        with ThreadPoolExecutor(_THREADS) as pool:
            for receipt in map(Receipt.from_json, pool.map(storage.read, paths)):
                receipts[receipt.unit] = receipt
        receipts = dict(sorted(receipts.items()))
        for receipt in self.receipt_override() or []:
            if receipt.unit not in receipts and receipt.replaces is None:
                raise InvariantBroken(f"run {self.run}: unit {receipt.unit} has a receipt override but no receipt.")
            receipts[receipt.unit] = receipt
        return receipts

    def receipt_override(self) -> list[Receipt] | None:
        """Return the receipts that replace others, or None if there is no receipt override."""
        try:
            lines = storage.read(storage.join(self.home(), "receipt_override.json")).splitlines()
        except FileNotFoundError:
            return None
        return [Receipt.from_json(line) for line in lines]

    def override_receipts(self, receipts: Iterable[Receipt]) -> bool:
        """Write the receipt override, which never changes; return False if another driver wrote it first."""
        lines = "\n".join(receipt.to_json() for receipt in receipts)
        return storage.create(storage.join(self.home(), "receipt_override.json"), lines.encode())

    def quarantine(self, receipts: Iterable[Receipt]) -> pa.Table:
        """Return the quarantined rows of the run (`QUARANTINE_SCHEMA`)."""
        paths = [path for receipt in receipts for path in receipt.quarantine]
        with ThreadPoolExecutor(_THREADS) as pool:
            files = pool.map(lambda path: storage.read(storage.join(self.home(), path)), paths)
            tables = [pq.read_table(pa.BufferReader(data)) for data in files]
            return pa.concat_tables([self.previous_quarantine(), *tables])

    def previous_quarantine(self) -> pa.Table:
        """Return the quarantined rows of the shards that this run does not read, from the run before it."""
        try:
            return self.table("previous_quarantine")
        except FileNotFoundError:
            return QUARANTINE_SCHEMA.empty_table()
