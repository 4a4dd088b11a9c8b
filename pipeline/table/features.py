"""Check of the Delta features of a table, before anything is encoded.

Called when a run, a compaction or a rollback begins. Other tools can enable features in a table that Vectide wrote. A commit that
ignores them would break the table, and a reader that does not know them would read deleted rows.
"""

from __future__ import annotations

from deltalake import DeltaTable

from actors.errors import TableConflict

# Features without effect on plain columns and whole files, and features that need a property to be in effect.
_KNOWN = {
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "domainMetadata",
    "generatedColumns",
    "invariants",
    "timestampNtz",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
_COLUMNS = {
    "delta.generationExpression": "a generated column",
    "delta.identity.start": "an identity column",
    "delta.invariants": "an invariant",
}


def check_features(table: DeltaTable, url: str) -> None:
    """Raise TableConflict if a table needs a feature that vectide does not support; the message names it and the fix."""
    reason = _why_not(table)
    if reason is not None:
        raise TableConflict(
            f"{url!r} {reason}, which vectide cannot write to. Drop that with the tool that switched it on, or give "
            f"table.uri an empty place"
        )


def _why_not(table: DeltaTable) -> str | None:
    protocol, settings = table.protocol(), dict(table.metadata().configuration)
    if "deletionVectors" in (protocol.reader_features or ()):
        return "may mark rows as deleted without rewriting their files (table feature deletionVectors)"
    if settings.get("delta.appendOnly", "").lower() == "true":
        return "allows nothing but appends (delta.appendOnly)"
    if settings.get("delta.columnMapping.mode", "none") != "none":
        return f"names its columns otherwise in its files (delta.columnMapping.mode = {settings['delta.columnMapping.mode']})"
    if settings.get("delta.enableRowTracking", "").lower() == "true":
        return "tracks rows (delta.enableRowTracking)"
    constraints = sorted(name for name in settings if name.startswith("delta.constraints."))
    if constraints:
        return f"has check constraints ({', '.join(constraints)})"
    for field in table.schema().fields:
        for key, what in _COLUMNS.items():
            if key in (field.metadata or {}):
                return f"has {what} ({field.name!r})"
    unknown = sorted({*(protocol.writer_features or ()), *(protocol.reader_features or ())} - _KNOWN)
    return f"asks for the table features {', '.join(unknown)}" if unknown else None
