"""Puts many small files of a table together into few large ones. No row changes, and no model is asked for.

Called by `jobs compact`. The files of a partition that are smaller than half the target are packed, in order, into files
of about the target; each such pack is a unit, with a receipt, and all of them go into one commit, so a compaction is
resumed like a backfill. The commit says that no data changed: readers of changes may skip it. The trade-off: a pack is put
together in memory, some four times the target for each worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from actors import storage
from actors.errors import ConfigError, TableConflict
from actors.schema import Piece, Shard, Unit
from actors.unit.receipt import DataFile
from actors.unit.writer import WriterSpec
from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.execute.completion import check_files, collect_outcomes, load_complete_receipts
from pipeline.execute.progress import NullReporter, Reporter, Started
from pipeline.job.config import Run
from pipeline.job.fingerprint import digest
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import FOLDER, Ledger, table_to_units, units_to_table
from pipeline.ledger.table_lock import lock_table
from pipeline.table import commit, delta_table
from pipeline.table.features import check_features
from pipeline.table.foreign import foreign_commits, look

TARGET_BYTES = 128 << 20
# Below this much to copy, starting a cluster costs more than it saves.
INLINE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did. `published` is False where there was nothing to put together."""

    table: str
    version: int
    published: bool
    files_before: int
    files_after: int
    files_packed: int
    rows: int
    size_bytes: int


def compact(
    table: str,
    reporter: Reporter | None = None,
    *,
    target_bytes: int = TARGET_BYTES,
    address: str = "auto",
    inline_bytes: int = INLINE_BYTES,
) -> Compacted:
    """Rewrite the small files of the current version into large ones, in a new version.

    Args:
        table: URI of the table.
        reporter: Who is told how it goes.
        target_bytes: Size of the files to make.
        address: Where to do it; see `run.address` of a job.
        inline_bytes: Up to which size of all packs together it is done in this process, unless a cluster is named.

    Raises:
        ConfigError: there is no table, or the target is not positive.
        TableConflict: something else made the table, or holds it.
        ForeignCommits: other tools changed rows of it, and no refresh has decided about that.
    """
    reporter = reporter or NullReporter()
    if target_bytes < 1:
        raise ConfigError(f"the target size is {target_bytes} bytes; it must be above 0, as in --target 128MiB")
    url = storage.absolute(table)
    opened = delta_table.need_table(url)
    state, embedding_spec = delta_table.state_of(opened), delta_table.embedding_spec_of(opened)
    if state is None or embedding_spec is None:
        raise TableConflict(f"{url!r} holds no rows that vectide published; there is nothing to compact")
    check_features(opened, url)
    if (foreign := look(opened, url, state)) is not None:
        raise foreign_commits(foreign, url)
    files = commit.files_of(opened)
    packs = list(pack(files.values(), target_bytes))
    untouched = Compacted(url, state.version, False, len(files), len(files), 0, 0, 0)
    if not packs:
        return untouched
    ledger = Ledger(url, digest(["compact", str(state), target_bytes], length=8))
    with lock_table(url, ledger.run, what="vectide compact") as lock:
        commit.check_base(delta_table.open_table(url), url, state)
        description = ledger.description() or _freeze(ledger, url, packs, embedding_spec)
        done = ledger.done()
        schema = delta_table.plain_schema(opened)
        partition_by = tuple(opened.metadata().partition_columns)
        if len(done) < description["units"]:
            size_bytes = sum(file.size_bytes for part in packs for file in part)
            run = Run(address=address)
            executor = inline_if_small(address, fits_in_process=size_bytes <= inline_bytes) or executor_for(run)
            reporter.started(
                Started(
                    run=ledger.run,
                    units=description["units"],
                    units_done=len(done),
                    rows=description["rows"],
                    rows_exact=True,
                    replicas=executor.pool.replicas,
                    device="cpu",
                )
            )
            spec = WriterSpec(
                table=url,
                ledger=ledger.home(),
                run=ledger.run,
                schema=schema,
                partition_by=partition_by,
                precision=embedding_spec.lineage["precision_stored"],
                lineage=json.dumps(embedding_spec.lineage, sort_keys=True),
            )
            units = table_to_units(ledger.plan(), done)
            collect_outcomes(executor.rewrite(units, spec, run.row_timeout_s), ledger, reporter)
        reporter.step("publishing")
        made = tuple(file for receipt in load_complete_receipts(ledger, description).values() for file in receipt.files)
        lock.check()  # before the files: a vacuum that took the table meanwhile has ended, or this compaction does
        check_files(ledger, url, commit.missing_files(url, made), len(made))
        gone = tuple(ledger.table("removed")["path"].to_pylist())
        version = commit.publish(
            url,
            commit.Publication(
                commit=ledger.run,
                run=state.run,
                operation="compact",
                embedding_spec=embedding_spec,
                schema=schema,
                partition_by=partition_by,
                base=state,
                add=made,
                remove=gone,
                data_change=False,
                kept=state.kept,
            ),
        )
    return replace(
        untouched,
        version=version,
        published=True,
        files_after=len(files) - len(gone) + len(made),
        files_packed=len(gone),
        rows=sum(file.rows for file in made),
        size_bytes=sum(file.size_bytes for file in made),
    )


def pack(files: Iterable[DataFile], target_bytes: int) -> Iterator[list[DataFile]]:
    """Small files that are to become one: of one partition, in the order of their paths, of about `target_bytes`."""
    partitions: dict[tuple[tuple[str, str | None], ...], list[DataFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.size_bytes < target_bytes / 2:
            partitions.setdefault(tuple(sorted(file.partition.items())), []).append(file)
    for small in partitions.values():
        part: list[DataFile] = []
        size_bytes = 0
        for file in small:
            part.append(file)
            size_bytes += file.size_bytes
            if size_bytes >= target_bytes:
                if len(part) > 1:
                    yield part
                part, size_bytes = [], 0
        if len(part) > 1:
            yield part


def _freeze(
    ledger: Ledger, url: str, packs: list[list[DataFile]], embedding_spec: delta_table.EmbeddingSpec
) -> dict[str, Any]:
    probe_create(storage.join(url, FOLDER, "probes"))
    units = [
        Unit(
            number,
            tuple(Piece(Shard(file.path, 0, json.dumps(file.partition)), 0, file.rows, file.rows) for file in part),
            carry=True,
        )
        for number, part in enumerate(packs)
    ]
    gone = [file.path for part in packs for file in part]
    return ledger.freeze(
        {
            "run": ledger.run,
            "operation": "compact",
            "fingerprint": embedding_spec.fingerprint,
            "units": len(units),
            "rows": sum(file.rows for part in packs for file in part),
            "rows_exact": True,
        },
        units_to_table(units),
        removed=pa.table({"path": pa.array(gone, pa.string())}),
        replaced=pa.table({"path": pa.array([], pa.string())}),
    )
