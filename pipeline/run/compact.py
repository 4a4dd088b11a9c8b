"""Compaction: combines the small files of a table into few large ones. No row changes, and no model is loaded.

Called by `jobs compact`. The files of a partition that are smaller than half the target size are packed, in order, into
files of about the target size. Each pack is a rewrite unit with a receipt, and one commit replaces the files, so a
compaction is resumed like a backfill. The commit is marked as one without data changes, so that readers of changes may
skip it. The trade-off: a pack is built in memory, which takes some four times the target size in each worker.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from actors import storage
from actors.errors import ConfigError, TableConflict
from pipeline.execute.progress import NullReporter, Outcome, Reporter
from pipeline.job.fingerprint import digest
from pipeline.ledger.create_probe import probe_create
from pipeline.ledger.ledger import FOLDER, Ledger
from pipeline.report.recorder import recorded
from pipeline.run.packs import INLINE_BYTES, freeze_packs, pack, run_packs, writer_spec
from pipeline.table import delta_table
from pipeline.table.commit import Publication, files_of
from pipeline.table.features import check_features
from pipeline.table.foreign import foreign_commits, look
from pipeline.table.transaction import table_transaction

TARGET_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of a compaction. `published` is False if there was nothing to compact."""

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
        reporter: Receives the events of the run.
        target_bytes: Size of the new files.
        address: Executor; see `run.address` of a job.
        inline_bytes: Total size of the packs up to which this process does the work, unless a cluster is named.

    Raises:
        ConfigError: there is no table, or the target is not positive.
        TableConflict: vectide did not create the table, or another run has locked it.
        ForeignCommits: other tools changed rows, and no refresh has kept or undone that yet.
    """
    reporter = reporter or NullReporter()
    if target_bytes < 1:
        raise ConfigError(f"the target size is {target_bytes} bytes; it must be above 0, as in --target 128MiB")
    url = storage.absolute(table)
    opened = delta_table.need_table(url)
    state, embedding_spec = delta_table.state_of(opened), delta_table.embedding_spec_of(opened)
    if state is None or embedding_spec is None:
        raise TableConflict(f"{url!r} has no rows that vectide published; there is nothing to compact")
    check_features(opened, url)
    if (foreign := look(opened, url, state)) is not None:
        raise foreign_commits(foreign, url)
    files = files_of(opened)
    packs = list(pack(files.values(), target_bytes, target_bytes / 2))
    untouched = Compacted(url, state.version, False, len(files), len(files), 0, 0, 0)
    if not packs:
        return untouched
    ledger = Ledger(url, digest(["compact", str(state), target_bytes], length=8))
    command = shlex.join(["vectide", "compact", url, "--target", str(target_bytes)])
    with table_transaction(url, ledger.run, state, what="vectide compact") as transaction:
        if transaction.published is not None:
            return replace(untouched, version=transaction.published)
        with recorded(ledger, reporter, "compact", command) as record:
            if ledger.description() is None:
                probe_create(storage.join(url, FOLDER, "probes"))
                freeze_packs(ledger, packs, "compact", fingerprint=embedding_spec.fingerprint)
            removed = tuple(ledger.table("removed")["path"].to_pylist())
            publication = Publication(
                commit=ledger.run,
                run=state.run,
                operation="compact",
                embedding_spec=embedding_spec,
                schema=delta_table.plain_schema(opened),
                partition_by=tuple(opened.metadata().partition_columns),
                base=state,
                remove=removed,
                data_change=False,
                kept=state.kept,
            )
            packed = run_packs(
                ledger,
                ledger.done(),
                writer_spec(publication, ledger),
                lock=transaction.lock,
                reporter=record,
                address=address,
                inline_bytes=inline_bytes,
            )
            record.step("publishing")
            version = transaction.publish(replace(publication, add=packed))
            record.ended(Outcome(url, ledger.run, version, published=True))
    return replace(
        untouched,
        version=version,
        published=True,
        files_after=len(files) - len(removed) + len(packed),
        files_packed=len(removed),
        rows=sum(file.rows for file in packed),
        size_bytes=sum(file.size_bytes for file in packed),
    )
