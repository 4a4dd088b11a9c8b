"""Compares the verdicts of a curation with those of the version before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.schema import ID
from pipeline.curate.context import DROPPED_BY, Context
from pipeline.curate.database import insert
from pipeline.table import delta_table

if TYPE_CHECKING:
    import duckdb

_SAMPLES = 5  # ids of each kind of change


def changes_of(context: Context, connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """Return the old verdicts that changed, with the smallest ids of each kind; None if there is no version before.

    `changed` counts rows by their old and new verdict: the step that dropped them, or "kept". Rows are known by their id;
    of several with one id, the first of before is the first of now.
    """
    if context.table is None or context.state is None:
        return None
    run = connection.execute
    run(f"create table before_rows (id varchar, {DROPPED_BY} varchar)")
    for path in sorted(delta_table.file_sizes(context.table)):
        with storage.open_arrow(storage.join(context.url, path)) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[ID, DROPPED_BY]):
                insert(connection, "before_rows", pa.Table.from_batches([batch]))
    source = context.read.source
    repeats = source.id is not None and not source.unique_ids
    copy = "row_number() over (partition by id order by place)" if repeats else "1"
    run(
        f"create view before as select id, {copy} as copy, {DROPPED_BY} from (select *, rowid as place from before_rows)"
    )
    run(f"create table now as select id, {copy} as copy, v.{DROPPED_BY} from verdicts v join all_rows using (n)")
    rows = run(
        f"select coalesce(b.{DROPPED_BY}, 'kept'), coalesce(n.{DROPPED_BY}, 'kept'), count(*), "
        f"array_agg(id order by id)[:{_SAMPLES}] from before b join now n using (id, copy) "
        f"where b.{DROPPED_BY} is distinct from n.{DROPPED_BY} group by all order by all"
    ).fetchall()
    new, gone = (
        run(f"select count(*) from {one} anti join {other} using (id, copy)").fetchall()[0][0]
        for one, other in (("now", "before"), ("before", "now"))
    )
    return {
        "since": context.state.version,
        "new_rows": new,
        "gone_rows": gone,
        "changed": [{"was": was, "is": now, "rows": count, "ids": ids} for was, now, count, ids in rows],
    }
