"""The number of dense candidates that late interaction scores, and the refusals of searches that a table cannot answer."""

from __future__ import annotations

from typing import Literal

from actors.arguments import need_whole
from actors.errors import ConfigError
from pipeline.scan.table_scan import TableScan

Candidates = int | Literal["all"] | None

_CANDIDATES = 200  # by default, and at least ten for each hit


def count_candidates(scan: TableScan, url: str, k: int, *, late: bool, candidates: Candidates) -> int | None:
    """Return how many dense candidates late interaction scores; None without it, and for all rows.

    Raises:
        ConfigError: the table lacks the vectors, or `candidates` is invalid.
    """
    dense_column, multi = scan.dense, scan.multi
    if not late:
        if candidates is not None:
            raise ConfigError("candidates are for late interaction; add --late (late=True), or leave them out")
        if dense_column is None:
            raise ConfigError(
                f"{url!r} has many vectors a row and no dense ones; search it with --late (late=True), which "
                f"compares all rows"
            )
        return None
    if multi is None:
        raise ConfigError(
            f"{url!r} has one vector a row, and --late needs many; leave it out, or set "
            f"encoder.outputs: [dense, multi] in the job file, for a model with many vectors, and run vectide refresh"
        )
    if candidates is None:
        return None if dense_column is None else max(_CANDIDATES, 10 * k)
    if candidates == "all":
        return None
    if isinstance(candidates, str):
        raise ConfigError(f"candidates is {candidates!r}; it must be a whole number of 1 or more, or 'all'")
    number = need_whole(candidates, "candidates", least=1)
    if dense_column is None:
        raise ConfigError(
            f"{url!r} has no dense vectors to find {number:,} candidates by; leave --candidates out, which "
            f"compares all rows"
        )
    if number < k:
        raise ConfigError(f"{number:,} candidates cannot give {k:,} hits; ask for at least as many with --candidates")
    return number
