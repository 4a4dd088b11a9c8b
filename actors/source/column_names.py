"""Names of columns: which of them a table cannot have side by side.

Used where a job is read and where its source is checked. Delta Lake refuses two names in lower case that are equal, and
readers such as Spark look columns up without regard to case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.schema import CHUNK, EMBEDDING, END, ID, RESERVED, START, TOKENS

_OWN = (ID, EMBEDDING, TOKENS)
_OF_CHUNKS = (CHUNK, START, END)


def alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that are equal but for their case, or equal."""
    seen: dict[str, str] = {}
    for name in names:
        # Two rules: Rust compares lower case ('İ'), Java upper case too ('ſ' and 's').
        keys = (f"lower {name.lower()}", f"fold {name.casefold()}")
        if found := next((seen[key] for key in keys if key in seen), None):
            return found, name
        seen |= dict.fromkeys(keys, name)
    return None


def misnamed(keep: Sequence[str], *, chunked: bool = False) -> str | None:
    """What is wrong with the names of the kept columns, for people, or None.

    Args:
        keep: The names, in order.
        chunked: Whether the table is one of chunks, which has more columns of its own.
    """
    columns = _OWN + _OF_CHUNKS if chunked else _OWN
    for name in keep:
        if name in RESERVED or name.startswith("_"):
            return f"keep names {name!r}, which the table uses itself. Rename it in the source"
        if own := next((own for own in columns if alike((own, name))), None):
            return (
                f"keep names {name!r}, and the table has a column {own!r} of its own. Delta Lake takes names that differ "
                f"by case only for one. Rename it in the source, or leave it out of source.keep"
            )
        if "\0" in name:
            return f"keep names {name!r}, and Delta Lake takes no name with a NUL character in it. Rename it"
    if pair := alike(dict.fromkeys(keep)):
        return (
            f"keep names {pair[0]!r} and {pair[1]!r}. Delta Lake takes names that differ by case only for one. Rename "
            f"one of them in the source, or leave it out of source.keep"
        )
    return None
