"""What earlier runs of the same making have left in a table's folder: vectors that need not be paid for again.

Asked when a run is planned. A backfill whose source changed while it was stopped, a generation that was built and held, a
version that was rolled back: their files are still there, and `reuse` finds the vector of a text in them by its hash.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deltalake import DeltaTable

from actors.unit.receipt import DataFile
from pipeline.ledger.ledger import Ledger, run_names
from pipeline.table import delta_table
from pipeline.table.commit import missing_files

_THREADS = 16


def find_unpublished_files(
    table: str, fingerprint: str, opened: DeltaTable | None, *, but: str, published: bool = False
) -> list[str]:
    """Files with vectors of one making that runs have left in the table's folder without publishing them.

    Args:
        table: URL of the table's folder.
        fingerprint: Of the making.
        opened: The table, where there is one.
        but: A run that does not count.
        published: Take files of published runs too: they may have gone out of the current version.

    Returns:
        Paths relative to the table, of files that are there.
    """

    def look(name: str) -> Ledger | None:
        ledger = Ledger(table, name)
        description = ledger.description()
        if description is None or description.get("fingerprint") != fingerprint:
            return None
        return None if not published and delta_table.is_published(opened, name) else ledger

    found: list[DataFile] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        ledgers = [ledger for ledger in pool.map(look, [n for n in run_names(table) if n != but]) if ledger]
    for ledger in ledgers:
        files = [file for receipt in ledger.receipts().values() for file in receipt.files]
        gone = set(missing_files(table, files))
        found += [file for file in files if file.path not in gone]
    return [file.path for file in found]
