"""The run's folder: the frozen plan, the receipts, the quarantine.

    <table>/_vectide/runs/<run>/run.json          what the run is, created if absent: job, lineage, totals, which plan
                                plans/<token>/    the plan of one driver; run.json names the one that counts
                                    plan.parquet      one line a piece
                                    listing.parquet   the shards that it was made from
                                    reuse.parquet     where the vector of a text is that has one already; where
                                                      that is more than memory takes, reuse/000.parquet and so on
                                    replaced.parquet  for a refresh: the shards whose old rows go
                                    receipts/         one JSON a unit, in folders of a thousand
                                    receipt_batches/  copies of receipts, a thousand in a file
                                    quarantine/       one Parquet a unit that set rows aside
                                    receipt_override.json    what the check for duplicate ids changed, if it had to

Receipts lie below the plan that they are of: a worker that outlives its run, and a vacuum that gives the run up, can leave
none that a later plan, cut differently, would take for its own.

Used by the backfill, `status` and publish. A run is named by what it would produce, so the same command finds its own
ledger and goes on. The trade-off: a receipt is an object of its own, so that the first wins; a million of them would take
a store minutes to list and read one by one. So the driver leaves copies of those that it saw, many in a file. A
receipt never changes, so a copy is as good; a receipt without one is read itself.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors import storage
from actors.errors import InvariantBroken, StorageError
from actors.schema import QUARANTINE_SCHEMA, Dialect, Piece, Shard, Unit
from actors.unit.receipt import Receipt
from actors.unit.writer import UNITS_A_FOLDER

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
        # How a delimited shard is written: decided once, so that no worker and no later run decides otherwise.
        ("quote", pa.string()),
        ("escape", pa.string()),
    ]
)
RECEIPT_BATCH_SCHEMA = pa.schema([("unit", pa.int64()), ("receipt", pa.string())])
RECEIPT_BATCH_UNITS = 1000
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
                piece.shard.dialect.quote if piece.shard.dialect else None,
                piece.shard.dialect.escape if piece.shard.dialect else None,
            )
            for name, value in zip(PLAN_SCHEMA.names, values, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=PLAN_SCHEMA)


def table_to_units(table: pa.Table, skip: frozenset[int] | set[int] = frozenset()) -> Iterator[Unit]:
    """The units of a plan, in order, one at a time; those in `skip` are left out."""
    if skip:  # here, where it costs nothing: most of a large plan may be done
        unwanted = pa.array(sorted(skip), pa.int64())
        table = table.filter(pc.invert(pc.is_in(table["unit"], value_set=unwanted)))
    number: int | None = None
    carry = False
    pieces: list[Piece] = []
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            if row["unit"] != number:
                if number is not None:
                    yield Unit(number, tuple(pieces), carry)
                number, carry, pieces = row["unit"], row["carry"], []
            dialect = Dialect(row["quote"], row["escape"]) if row.get("quote") is not None else None
            shard = Shard(row["path"], row["size_bytes"], row["etag"], dialect=dialect)
            pieces.append(Piece(shard, row["start"], row["stop"], row["rows"], row["rows_exact"]))
    if number is not None:
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

    def freeze(
        self, description: dict[str, Any], plan: pa.Table, **tables: pa.Table | Iterable[pa.Table]
    ) -> dict[str, Any]:
        """Write the plan and what belongs to it, unless another driver of the same run was first.

        Each driver writes its tables to a place of its own; `run.json`, created last and if absent, names the place, so
        that the tables that count are always all of one driver. One that comes in parts is a folder, and of its
        parts one is in memory at a time.

        Returns:
            The description that counts: this driver's, or that of the one who was first.

        Raises:
            StorageError: it was written and cannot be read back.
        """
        place = f"plans/{secrets.token_hex(6)}"
        for name, table in {"plan": plan, **tables}.items():
            if isinstance(table, pa.Table):
                self._put(f"{place}/{name}.parquet", table)
                continue
            for number, part in enumerate(table):
                self._put(f"{place}/{name}/{number:03d}.parquet", part)
        text = json.dumps({**description, "plan": place}, indent=1, sort_keys=True)
        storage.create(storage.join(self.url, "run.json"), text.encode())
        found = self.description()
        if found is None:
            raise StorageError(f"{self.url!r} was written but cannot be read back; check the store and run again")
        return found

    def _put(self, path: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.put(storage.join(self.url, path), bytes(sink.getvalue()))

    def description(self) -> dict[str, Any] | None:
        """What `freeze` was told, or None where no plan is frozen yet."""
        if self._description is None:
            try:
                self._description = dict(json.loads(storage.read(storage.join(self.url, "run.json"))))
            except FileNotFoundError:
                return None
        return self._description

    def holds(self, content: str) -> bool:
        """Whether this run's table, once it is published, has what `fingerprint.content_name` calls so."""
        return (self.description() or {}).get("content") == content

    def home(self) -> str:
        """The folder of the plan that counts, and of all that belongs to it.

        Raises:
            FileNotFoundError: no plan is frozen.
        """
        description = self.description()
        if description is None:
            raise FileNotFoundError(f"{self.url!r} has no frozen plan")
        return storage.join(self.url, description["plan"])

    def plan(self) -> pa.Table:
        """The frozen plan (`PLAN_SCHEMA`).

        Raises:
            StorageError: something removed it.
        """
        try:
            return self.table("plan")
        except FileNotFoundError:
            raise StorageError(
                f"the plan that {self.url!r} names is gone: something removed it. Remove that folder and run the same "
                f"command again"
            ) from None

    def table(self, name: str) -> pa.Table:
        """A table that `freeze` was given.

        Raises:
            FileNotFoundError: it was given none of that name.
        """
        return pq.read_table(pa.BufferReader(storage.read(storage.join(self.home(), f"{name}.parquet"))))

    def listing(self) -> dict[str, tuple[int, str]] | None:
        """The shards that the run was made from, path to size and etag; None where it was not written down."""
        try:
            rows = self.table("listing").to_pydict()
        except FileNotFoundError:
            return None
        return dict(zip(rows["path"], zip(rows["size_bytes"], rows["etag"], strict=True), strict=True))

    def done(self) -> set[int]:
        """Numbers of the units that have a receipt."""
        done: set[int] = set()
        if self.description() is None:
            return done
        for table in self._receipt_batches(["unit"]):
            done.update(table["unit"].to_pylist())
        done.update(unit for unit, _ in self._receipts(done))
        return done

    def write_receipt_batch(self, receipts: Collection[Receipt]) -> None:
        """Leave copies of receipts that are written, under a name that nobody else takes."""
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
            for start in range(0, len(files), _THREADS):  # a few at a time: all of them together may be a gigabyte
                yield from pool.map(load, files[start : start + _THREADS])

    def _receipts(self, known: Collection[int]) -> Iterator[tuple[int, str]]:
        """Units that have a receipt and are not `known`, and where it is. A folder whose units are all known is not
        listed."""
        root = storage.join(self.home(), "receipts")
        counts = Counter(unit // UNITS_A_FOLDER for unit in known)
        folders = [name for name in storage.folders(root) if counts[int(name)] < UNITS_A_FOLDER]

        def look(folder: str) -> list[str]:
            paths = (shard.path for shard in storage.walk(storage.join(root, folder)))
            return [path for path in paths if path.endswith(".json")]

        with ThreadPoolExecutor(_THREADS) as pool:
            for path in itertools.chain.from_iterable(pool.map(look, folders)):
                unit = int(path.rsplit("/", 1)[1][:-5])
                if unit not in known:
                    yield unit, path

    def receipts(self) -> dict[int, Receipt]:
        """Every receipt by unit, amended where the check for duplicate ids replaced it."""
        found: dict[int, Receipt] = {}
        if self.description() is None:
            return found
        for table in self._receipt_batches(["receipt"]):
            for text in table["receipt"].to_pylist():
                receipt = Receipt.from_json(text)
                found[receipt.unit] = receipt
        paths = [path for _, path in self._receipts(found.keys())]
        with ThreadPoolExecutor(_THREADS) as pool:
            for receipt in map(Receipt.from_json, pool.map(storage.read, paths)):
                found[receipt.unit] = receipt
        found = dict(sorted(found.items()))
        for receipt in self.receipt_override() or []:
            if receipt.unit not in found and receipt.replaces is None:
                raise InvariantBroken(f"run {self.run}: unit {receipt.unit} was amended but has no receipt.")
            found[receipt.unit] = receipt
        return found

    def receipt_override(self) -> list[Receipt] | None:
        """The receipts that replace others, or None where nothing was amended."""
        try:
            lines = storage.read(storage.join(self.home(), "receipt_override.json")).splitlines()
        except FileNotFoundError:
            return None
        return [Receipt.from_json(line) for line in lines]

    def override_receipts(self, receipts: Iterable[Receipt]) -> bool:
        """Replace receipts, once and for all; False if another driver did so first."""
        lines = "\n".join(receipt.to_json() for receipt in receipts)
        return storage.create(storage.join(self.home(), "receipt_override.json"), lines.encode())

    def quarantine(self, receipts: Iterable[Receipt]) -> pa.Table:
        """Every bad row of the run (`QUARANTINE_SCHEMA`)."""
        paths = [path for receipt in receipts for path in (receipt.quarantine or "").split(",") if path]
        with ThreadPoolExecutor(_THREADS) as pool:
            files = pool.map(lambda path: storage.read(storage.join(self.home(), path)), paths)
            tables = [pq.read_table(pa.BufferReader(data)) for data in files]
            return pa.concat_tables([self.carried_quarantine(), *tables])

    def carried_quarantine(self) -> pa.Table:
        """Bad rows of shards that this run left as they were, from the run before it."""
        try:
            return self.table("carried_quarantine")
        except FileNotFoundError:
            return QUARANTINE_SCHEMA.empty_table()
