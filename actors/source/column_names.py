"""Checks the names of the columns of a table.

Used when a job is parsed and when its source is checked. Delta Lake refuses two names that are equal in lower case, and
readers such as Spark ignore case in column names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.schema import CHUNK, EMBEDDING, END, ID, RESERVED, START, TOKENS

_OWN = (ID, EMBEDDING, TOKENS)
_OF_CHUNKS = (CHUNK, START, END)


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two names that are equal if case is ignored, or None."""
    seen: dict[str, str] = {}
    for name in names:
        # Two keys: Rust compares lower case ('İ'), Java also upper case ('ſ' and 's').
        keys = (f"lower {name.lower()}", f"fold {name.casefold()}")
        if earlier := next((seen[key] for key in keys if key in seen), None):
            return earlier, name
        seen |= dict.fromkeys(keys, name)
    return None


def misnamed(keep: Sequence[str], *, chunked: bool = False) -> str | None:
    """Return an error message for the first invalid name of a kept column, or None.

    Args:
        keep: The names, in order.
        chunked: Whether the table has chunks, and so more columns of its own.
    """
    columns = _OWN + _OF_CHUNKS if chunked else _OWN
    for name in keep:
        if name in RESERVED or name.startswith("_"):
            return f"keep names {name!r}, which is reserved for the table. Rename it in the source"
        if own := next((own for own in columns if alike((own, name))), None):
            return (
                f"keep names {name!r}, and the table has a column {own!r} of its own. To Delta Lake, names that differ "
                f"only in case are the same. Rename it in the source, or leave it out of source.keep"
            )
        if "\0" in name:
            return f"keep names {name!r}, and Delta Lake allows no NUL character in a name. Rename it"
    if pair := alike(dict.fromkeys(keep)):
        return (
            f"keep names {pair[0]!r} and {pair[1]!r}. To Delta Lake, names that differ only in case are the same. Rename "
            f"one of them in the source, or leave it out of source.keep"
        )
    return None
