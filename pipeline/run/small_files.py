"""Merging of the small files of a run before its commit.

A unit writes a file per partition, so a partitioned run leaves many small files. Before the commit a run merges them, as
rewrite units with a plan and receipts of their own in `<run>/merge/`, so that a crash during the merge costs no more than
the units that were at work. The files that were merged are in no version; they are deleted after the commit, and a vacuum
finds those that a crash leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from deltalake import DeltaTable

from actors import storage
from actors.errors import StorageError
from actors.quantities import parse_bytes
from actors.unit.receipt import DataFile
from actors.unit.table_files import run_of
from actors.unit.writer import WriterSpec
from pipeline.execute.progress import NullReporter, Outcome, Reporter
from pipeline.job.config import Job
from pipeline.ledger.ledger import Ledger, merge_ledger
from pipeline.ledger.table_lock import TableLock
from pipeline.run.packs import freeze_packs, pack, partition_key, run_packs
from pipeline.table import commit

# A file below this share of the target is small. Larger ones are left alone, because each merge writes its rows again.
_SMALL = 1 / 8
# Small files that a partition may have: of a table that is written as a whole, and of one that refreshes add to. With
# the second number a row of a table that is refreshed often is copied once in so many refreshes.
_MOST_NEW, _MOST_STANDING = 2, 8
_THREADS = 32


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of a merge.

    Attributes:
        files: Files of the version in place of those of the run: merged ones, and those that were large enough.
        removed: Paths of files of the table that are merged too, and leave it.
        discarded: Paths of files of the run that are in no version.
    """

    files: tuple[DataFile, ...]
    removed: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()

    def count(self, outcome: Outcome) -> Outcome:
        """Return the outcome with the number and the size of these files."""
        return replace(outcome, files=len(self.files), size_bytes=sum(file.size_bytes for file in self.files))


def merge_small_files(
    ledger: Ledger,
    files: tuple[DataFile, ...],
    table: DeltaTable | None,
    removed: tuple[str, ...] | None,
    *,
    writer: WriterSpec,
    lock: TableLock,
    reporter: Reporter,
    job: Job,
) -> Merged:
    """Merge small files of a finished run, and small files of the table beside them.

    Args:
        ledger: The run.
        files: The files of its receipts.
        table: The table whose small files are merged too; None for none of them.
        removed: Files that the run removes from the table; None for all.
        writer: As the run's own files were written.
        lock: Checked before the merged files are.
        reporter: Receives one step.
        job: Its `table.file_size` is the size of the files to make; None merges none.

    Raises:
        VectideError: a merge failed; the same command repeats what is missing.
    """
    file_size = job.table.file_size
    if file_size is None:
        return Merged(files)
    merge = merge_ledger(ledger)
    description = merge.description()
    if description is None:
        packs = list(choose_packs(files, _staying(table, removed), parse_bytes(file_size, option="table.file_size")))
        if not packs:
            return Merged(files)
        description = freeze_packs(merge, packs, "merge")
    old = merge.table("removed")["path"].to_pylist()
    done = merge.done()
    if len(done) < description.units:
        reporter.step(f"merging {len(old)} small files into {description.units}")
    new = run_packs(merge, done, writer, lock=lock, reporter=NullReporter(), address=job.run.address)
    merged, own = set(old), {file.path for file in files}
    return Merged(
        files=(*(file for file in files if file.path not in merged), *new),
        removed=tuple(path for path in old if path not in own),
        discarded=tuple(path for path in old if path in own),
    )


def _staying(table: DeltaTable | None, removed: tuple[str, ...] | None) -> list[DataFile]:
    """Return the files that vectide wrote and the run keeps; none if `removed` is None, because then it keeps no file.

    Files that other tools wrote are left as they are.
    """
    if table is None or removed is None:
        return []
    files = commit.sized_files(table)
    return [files[path] for path in sorted(files.keys() - set(removed)) if run_of(path) is not None]


def delete_discarded(table: str, paths: Iterable[str]) -> None:
    """Delete files that were merged before the commit; a file that the store does not delete is left to a vacuum."""

    def delete(path: str) -> None:
        with suppress(StorageError):
            storage.delete(storage.join(table, path))

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(delete, paths))


def choose_packs(
    files: Collection[DataFile], of_table: Collection[DataFile], target_bytes: int
) -> Iterator[list[DataFile]]:
    """Yield the files that a run merges, each list into one file: in partitions that it writes and that have too many.

    Args:
        files: Files of the run.
        of_table: Files of the table that the run keeps.
        target_bytes: Size of the files to make.
    """
    small_bytes = target_bytes * _SMALL
    standing = {partition_key(file) for file in of_table}
    counts = Counter(partition_key(file) for file in (*of_table, *files) if file.size_bytes < small_bytes)
    crowded = {
        partition
        for partition in {partition_key(file) for file in files}
        if counts[partition] > (_MOST_STANDING if partition in standing else _MOST_NEW)
    }
    candidates = (file for file in (*of_table, *files) if partition_key(file) in crowded)
    yield from pack(candidates, target_bytes, small_bytes)
