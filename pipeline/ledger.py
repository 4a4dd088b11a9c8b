"""The run's folder: the frozen plan, the receipts, the quarantine.

    <table>/_vectide/runs/<run>/run.json          what the run is, created if absent: job, lineage, totals, which plan
                                plans/<token>/    the plan of one driver; run.json names the one that counts
                                    plan.parquet      one line a piece
                                    listing.parquet   the shards that it was made from
                                    reuse.parquet     where the vector of a text is that has one already
                                    replaced.parquet  for a refresh: the shards whose old rows go
                                receipts/         one JSON a unit, in folders of a thousand
                                quarantine/       one Parquet a unit that set rows aside
                                amendment.json    what the check for duplicate ids changed, if it had to

Used by the backfill, `status` and publish. A run is named by what it would produce, so the same command finds its own
ledger and goes on. The trade-off: a receipt is an object of its own, so a resume lists them (a thousand a request).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.receipt import Receipt
from actors.schema import QUARANTINE_SCHEMA, Piece, Shard, Unit

FOLDER = "_vectide"
PLAN_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("rows", pa.int64()),
        ("rows_exact", pa.bool_()),
        ("carry", pa.bool_()),
    ]
)
_THREADS = 32


def runs_folder(table: str) -> str:
    """Where the ledgers of a table are."""
    return storage.join(table, FOLDER, "runs")


def run_names(table: str) -> list[str]:
    """The runs that a table has ledgers of."""
    return storage.folders(runs_folder(table))


def listing_table(shards: Iterable[Shard]) -> pa.Table:
    """A listing as `Ledger.listing` reads it."""
    rows = [{"path": shard.path, "size_bytes": shard.size_bytes, "etag": shard.etag} for shard in shards]
    return pa.Table.from_pylist(rows, schema=pa.schema([PLAN_SCHEMA.field(n) for n in ("path", "size_bytes", "etag")]))


def units_to_table(units: Iterable[Unit]) -> pa.Table:
    """A plan as a table (`PLAN_SCHEMA`), one line a piece."""
    columns: dict[str, list[Any]] = {name: [] for name in PLAN_SCHEMA.names}
    for unit in units:
        for piece in unit.pieces:
            values = (
                unit.number,
                piece.shard.path,
                piece.shard.size_bytes,
                piece.shard.etag,
                piece.start,
                piece.stop,
                piece.rows,
                piece.rows_exact,
                unit.carry,
            )
            for name, value in zip(PLAN_SCHEMA.names, values, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=PLAN_SCHEMA)


def table_to_units(table: pa.Table, skip: frozenset[int] | set[int] = frozenset()) -> Iterator[Unit]:
    """The units of a plan, in order, one at a time; those in `skip` are left out."""
    number: int | None = None
    carry = False
    pieces: list[Piece] = []
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            if row["unit"] != number:
                if number is not None and number not in skip:
                    yield Unit(number, tuple(pieces), carry)
                number, carry, pieces = row["unit"], row["carry"], []
            shard = Shard(row["path"], row["size_bytes"], row["etag"])
            pieces.append(Piece(shard, row["start"], row["stop"], row["rows"], row["rows_exact"]))
    if number is not None and number not in skip:
        yield Unit(number, tuple(pieces), carry)


class Ledger:
    """One run's folder.

    Args:
        table: URL of the table's folder.
        run: Name of the run.
    """

    def __init__(self, table: str, run: str) -> None:
        self.run = run
        self.url = storage.join(runs_folder(table), run)
        self._description: dict[str, Any] | None = None

    def freeze(self, description: dict[str, Any], plan: pa.Table, **tables: pa.Table) -> dict[str, Any]:
        """Write the plan and what belongs to it, unless another driver of the same run was first.

        Each driver writes its tables to a place of its own; `run.json`, created last and if absent, names the place, so
        that the tables that count are always all of one driver.

        Returns:
            The description that counts: this driver's, or that of the one who was first.

        Raises:
            StorageError: it was written and cannot be read back.
        """
        place = f"plans/{secrets.token_hex(6)}"
        for name, table in {"plan": plan, **tables}.items():
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            storage.put(storage.join(self.url, place, f"{name}.parquet"), bytes(sink.getvalue()))
        text = json.dumps({**description, "tables": place}, indent=1, sort_keys=True)
        storage.create(storage.join(self.url, "run.json"), text.encode())
        found = self.description()
        if found is None:
            raise StorageError(f"{self.url!r} was written but cannot be read back; check the store and run again")
        return found

    def description(self) -> dict[str, Any] | None:
        """What `freeze` was told, or None where no plan is frozen yet."""
        if self._description is None:
            try:
                self._description = dict(json.loads(storage.read(storage.join(self.url, "run.json"))))
            except FileNotFoundError:
                return None
        return self._description

    def tables_url(self) -> str:
        """The folder of the tables that count.

        Raises:
            FileNotFoundError: no plan is frozen.
        """
        description = self.description()
        if description is None:
            raise FileNotFoundError(f"{self.url!r} has no frozen plan")
        return storage.join(self.url, description["tables"])

    def plan(self) -> pa.Table:
        """The frozen plan (`PLAN_SCHEMA`)."""
        return self.table("plan")

    def table(self, name: str) -> pa.Table:
        """A table that `freeze` was given.

        Raises:
            FileNotFoundError: it was given none of that name.
        """
        return pq.read_table(pa.BufferReader(storage.read(storage.join(self.tables_url(), f"{name}.parquet"))))

    def listing(self) -> dict[str, tuple[int, str]] | None:
        """The shards that the run was made from, path to size and etag; None where it was not written down."""
        try:
            rows = self.table("listing").to_pydict()
        except FileNotFoundError:
            return None
        return dict(zip(rows["path"], zip(rows["size_bytes"], rows["etag"], strict=True), strict=True))

    def done(self) -> set[int]:
        """Numbers of the units that have a receipt."""
        return {int(shard.path.rsplit("/", 1)[1][:-5]) for shard in self._receipts()}

    def _receipts(self) -> Iterator[Shard]:
        for shard in storage.walk(storage.join(self.url, "receipts")):
            if shard.path.endswith(".json"):
                yield shard

    def receipts(self) -> dict[int, Receipt]:
        """Every receipt by unit, amended where the check for duplicate ids replaced it."""
        with ThreadPoolExecutor(_THREADS) as pool:
            texts = pool.map(lambda shard: storage.read(shard.path), self._receipts())
            found = {receipt.unit: receipt for receipt in map(Receipt.from_json, texts)}
        for receipt in self.amendment() or []:
            if receipt.unit not in found and receipt.replaces is None:
                raise InvariantBroken(f"run {self.run}: unit {receipt.unit} was amended but has no receipt.")
            found[receipt.unit] = receipt
        return found

    def amendment(self) -> list[Receipt] | None:
        """The receipts that replace others, or None where nothing was amended."""
        try:
            lines = storage.read(storage.join(self.url, "amendment.json")).splitlines()
        except FileNotFoundError:
            return None
        return [Receipt.from_json(line) for line in lines]

    def amend(self, receipts: Iterable[Receipt]) -> bool:
        """Replace receipts, once and for all; False if another driver did so first."""
        lines = "\n".join(receipt.to_json() for receipt in receipts)
        return storage.create(storage.join(self.url, "amendment.json"), lines.encode())

    def quarantine(self, receipts: Iterable[Receipt]) -> pa.Table:
        """Every bad row of the run (`QUARANTINE_SCHEMA`)."""
        paths = [path for receipt in receipts for path in (receipt.quarantine or "").split(",") if path]
        with ThreadPoolExecutor(_THREADS) as pool:
            files = pool.map(lambda path: storage.read(storage.join(self.url, path)), paths)
            tables = [pq.read_table(pa.BufferReader(data)) for data in files]
            return pa.concat_tables([self.carried_quarantine(), *tables])

    def carried_quarantine(self) -> pa.Table:
        """Bad rows of shards that this run left as they were, from the run before it."""
        try:
            return self.table("carried_quarantine")
        except FileNotFoundError:
            return QUARANTINE_SCHEMA.empty_table()
