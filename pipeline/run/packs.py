"""Packs: small files of a table, each list of which one rewrite unit copies into one file.

Used by a compaction, and by the merge of small files before a commit. The units have a plan and receipts like those of a
backfill, so a crash costs no more than the units that were running. The trade-off: a worker holds a whole pack in memory,
some four times the target size.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from actors.schema import RewriteUnit, RewrittenFile
from actors.unit.receipt import DataFile
from actors.unit.writer import WriterSpec
from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.execute.completion import check_files, collect_outcomes, load_complete_receipts
from pipeline.execute.progress import Reporter, Started
from pipeline.job.config import Run
from pipeline.ledger.ledger import Ledger, table_to_units, units_to_table
from pipeline.ledger.run_description import RunDescription
from pipeline.ledger.table_lock import TableLock
from pipeline.table.commit import Publication

# Starting a cluster for less than this costs more time than it saves.
INLINE_BYTES = 1 << 30


def pack(files: Iterable[DataFile], target_bytes: int, small_bytes: float) -> Iterator[list[DataFile]]:
    """Yield files that are to become one: of one partition, in the order of their paths, of about `target_bytes`.

    Files of `small_bytes` or more are left out.
    """
    partitions: dict[str, list[DataFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.size_bytes < small_bytes:
            partitions.setdefault(partition_key(file), []).append(file)
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


def partition_key(file: DataFile) -> str:
    """Return a text that files of one partition share."""
    return json.dumps(file.partition, sort_keys=True)


def writer_spec(publication: Publication, ledger: Ledger) -> WriterSpec:
    """Return the settings with which the files of a publication are written."""
    lineage = publication.embedding_spec.lineage
    return WriterSpec(
        table=ledger.table_url,
        ledger=ledger.home(),
        run=ledger.run,
        schema=publication.schema,
        partition_by=publication.partition_by,
        precision=lineage["precision_stored"],
        lineage=json.dumps(lineage, sort_keys=True),
        outputs=publication.embedding_spec.outputs,
    )


def freeze_packs(
    ledger: Ledger, packs: list[list[DataFile]], operation: str, *, fingerprint: str = ""
) -> RunDescription:
    """Write the plan of rewriting packs, unless it exists; return the description in use."""
    files = [file for part in packs for file in part]
    units = [
        RewriteUnit(number, tuple(RewrittenFile(file.path, file.partition, file.rows) for file in part))
        for number, part in enumerate(packs)
    ]
    return ledger.freeze(
        RunDescription(
            operation,
            units=len(units),
            rows=sum(file.rows for file in files),
            fingerprint=fingerprint,
            size_bytes=sum(file.size_bytes for file in files),
        ),
        units_to_table(units),
        removed=pa.table({"path": pa.array([file.path for file in files], pa.string())}),
        replaced=pa.table({"path": pa.array([], pa.string())}),
    )


def run_packs(
    ledger: Ledger,
    done: Collection[int],
    writer: WriterSpec,
    *,
    lock: TableLock,
    reporter: Reporter,
    address: str,
    inline_bytes: int = INLINE_BYTES,
) -> tuple[DataFile, ...]:
    """Run the rewrite units that have no receipt, and return the files of all, after a check that they exist.

    Args:
        ledger: The ledger of the packs.
        done: Numbers of the units that have a receipt.
        writer: Settings of the writer; its ledger is replaced by this one.
        lock: Checked before the files.
        reporter: Receives the start and each unit.
        address: Executor; see `run.address` of a job.
        inline_bytes: Total size of the packs up to which this process does the work, unless a cluster is named.

    Raises:
        VectideError: a unit failed, or a file is missing.
    """
    description = ledger.frozen()
    if len(done) < description.units:
        run = Run(address=address, gpus_per_replica=0)
        is_small = description.size_bytes <= inline_bytes
        executor = inline_if_small(run, fits_in_process=is_small) or executor_for(run)
        reporter.started(
            Started(
                run=ledger.run,
                units=description.units,
                units_done=len(done),
                rows=description.rows,
                rows_exact=True,
                replicas=executor.pool.replicas,
                device="cpu",
            )
        )
        units = (unit for unit in table_to_units(ledger.plan(), done) if isinstance(unit, RewriteUnit))
        outcomes = executor.rewrite(units, replace(writer, ledger=ledger.home()), run.row_timeout_s)
        collect_outcomes(outcomes, ledger, reporter)
    return check_files(load_complete_receipts(ledger).values(), ledger, lock)
