"""Finds unpublished files of earlier runs with the same embedding spec, whose vectors can be reused.

Used when a run is planned. Such files are left by a backfill that was stopped before its source changed, by a re-embedding
that was built and not published, and by a version that was rolled back. `pipeline.reuse` finds the vector of a text in them
by its hash.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deltalake import DeltaTable

from actors.unit.receipt import DataFile
from pipeline.ledger.ledger import Ledger, files_of_run, run_names
from pipeline.table import delta_table
from pipeline.table.commit import missing_files

_THREADS = 16


def find_unpublished_files(
    table: str, fingerprint: str, opened: DeltaTable | None, *, exclude_run: str, published: bool = False
) -> list[str]:
    """Return the unpublished files of all runs whose vectors have one embedding spec.

    Args:
        table: URL of the table's folder.
        fingerprint: Fingerprint of the embedding spec.
        opened: The table, or None if it does not exist yet.
        exclude_run: Name of a run to leave out.
        published: Whether to include files of published runs, which the current version may not have any more.

    Returns:
        Paths of existing files, relative to the table's folder.
    """

    def open_ledger(name: str) -> Ledger | None:
        ledger = Ledger(table, name)
        description = ledger.description()
        if description is None or description.fingerprint != fingerprint:
            return None
        return None if not published and delta_table.is_published(opened, name) else ledger

    existing: list[DataFile] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        ledgers = [
            ledger for ledger in pool.map(open_ledger, [n for n in run_names(table) if n != exclude_run]) if ledger
        ]
    for ledger in ledgers:
        files = files_of_run(ledger)
        missing = set(missing_files(table, files))
        existing += [file for file in files if file.path not in missing]
    return [file.path for file in existing]
