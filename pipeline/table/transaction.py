"""One change of a table: its lock, the check of the version that the change starts from, and the commit.

Used by everything that writes a version: backfill, refresh, compaction, rollback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.ledger.table_lock import TableLock, lock_table
from pipeline.table import commit, delta_table
from pipeline.table.commit import Publication


@dataclass(frozen=True, slots=True)
class Transaction:
    """A change of a table that is locked.

    Attributes:
        url: URL of the table.
        lock: The table lock.
        published: The version, if a concurrent driver of the same run has committed it by now; else None.
    """

    url: str
    lock: TableLock
    published: int | None

    def publish(self, publication: Publication) -> int:
        """Commit, after a check that no other run has taken the lock; see `commit.publish`."""
        self.lock.check()
        return commit.publish(self.url, publication)


@contextmanager
def table_transaction(url: str, name: str, base: delta_table.State | None, *, what: str) -> Iterator[Transaction]:
    """Hold the lock of a table from the check of its base to the commit.

    Args:
        url: URL of the table.
        name: Name of the run, and of its commit.
        base: State of the table when the run began.
        what: The command, for messages.

    Raises:
        CommitConflict: the table is in another state by now.
        TableConflict: another run holds the lock.
    """
    with lock_table(url, name, what=what) as lock:
        opened = delta_table.open_table(url)  # again, because it was read before it was locked
        published = delta_table.published_version(opened, name)
        if published is None:
            commit.check_base(opened, url, base)
        yield Transaction(url, lock, published)
