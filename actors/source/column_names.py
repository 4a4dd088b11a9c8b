"""Checks the names of the columns of a table.

Used when a job is parsed and when its source is checked. Delta Lake refuses two names that are equal in lower case, and
readers such as Spark ignore case in column names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from actors.schema import CHUNK, EMBEDDING, EMBEDDING_MULTI, END, GRID_H, GRID_W, ID, KEPT_TEXT, RESERVED, START, TOKENS

_OWN = (ID, EMBEDDING, TOKENS)
_OF_CHUNKS = (CHUNK, START, END)
_OF_MANY = (EMBEDDING_MULTI, f"{EMBEDDING_MULTI}_n", GRID_H, GRID_W)


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


def kept_names(keep: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the name in the table of each kept column by its name in the source. A list keeps the names as they are."""
    return dict(keep) if isinstance(keep, Mapping) else dict(zip(keep, keep, strict=True))


def misnamed(
    keep: Mapping[str, str], *, chunked: bool = False, keep_text: bool = False, multi: bool = False
) -> str | None:
    """Return an error message for the first invalid name of a kept column, or None.

    Args:
        keep: Name in the table by name in the source, in order.
        chunked: Whether the table has chunks, and so more columns of its own.
        keep_text: Whether the table has the embedded text as a column of its own.
        multi: Whether the table has many vectors a row.
    """
    columns = (
        *_OWN,
        *(_OF_CHUNKS if chunked else ()),
        *((KEPT_TEXT,) if keep_text else ()),
        *(_OF_MANY if multi else ()),
    )
    for source, name in keep.items():
        other = f"under another name, as in source.keep: {{{source}: source_{source.lstrip('_').lower()}}}"
        fix = f"keep it {other}" if name == source else f"keep {source!r} {other}"
        rename = f"Rename it in the source, or {fix}" if name == source else f"{fix[0].upper()}{fix[1:]}"
        if name == KEPT_TEXT and keep_text:
            return f"keep names {name!r}, and table.keep_text stores the embedded text under that name. Leave it out, or {fix}"
        if not name:
            return f"keep gives {source!r} an empty name in the table. Leave it out, or {fix}"
        if name in RESERVED or name.startswith("_"):
            return f"keep names {name!r}, which is reserved for the table. {rename}"
        if own := next((own for own in columns if alike((own, name))), None):
            return (
                f"keep names {name!r}, and the table has a column {own!r} of its own. To Delta Lake, names that differ "
                f"only in case are the same. Leave it out of source.keep, or {fix}"
            )
        if "\0" in name:
            return f"keep names {name!r}, and Delta Lake allows no NUL character in a name. {rename}"
    if pair := alike(keep.values()):
        sources = [source for source, name in keep.items() if name in pair]
        if pair[0] == pair[1]:
            return (
                f"keep gives {sources[0]!r} and {sources[1]!r} the same name {pair[0]!r}, and a table has one column of a name. "
                f"Give one of them another name, or leave it out"
            )
        return (
            f"keep names {pair[0]!r} and {pair[1]!r}. To Delta Lake, names that differ only in case are the same. Rename "
            f"one of them in the source or in source.keep, or leave it out"
        )
    return None
