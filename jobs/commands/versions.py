"""`vectide versions`: lists the versions of a table."""

from __future__ import annotations

from jobs import output
from jobs.options import AsJson, Table


def versions(table: Table, json: AsJson = False) -> None:
    """List the versions in the table's log, newest first: operation, rows, files, model, run."""
    from pipeline.table.versions import versions as read

    listed = read(table)
    if json:
        output.as_json(listed)
    else:
        output.print_versions(listed)
