"""Description of a run, as `run.json` has it: what it is to publish, and how many units and rows its plan has.

Written once by `Ledger.freeze`, and read by everything that looks at a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.errors import TableConflict

FORMAT = 1  # of the names in a ledger; a ledger without it is from before the first release


@dataclass(frozen=True, slots=True)
class RunDescription:
    """Description of a run.

    Attributes:
        operation: backfill, refresh, generation, compact or merge.
        run: Name of the run; set by `Ledger.freeze`.
        plan: Folder of the plan in use, relative to the run's folder; set by `Ledger.freeze`.
        content: What the run publishes (`fingerprint.content_name`); empty if it reads no source.
        fingerprint: Hash of the embedding spec.
        kept: Number of rows of other tools that are kept.
        duplicates: Number of rows that are quarantined for their id without being encoded (`pipeline.reuse.repeated_ids`).
        reuse: Number of tables of the index of known texts.
        rows_kept: Number of rows in table files that a refresh leaves as they are.
        texts_to_encode: Number of texts of a refresh that have no stored vector.
        size_bytes: Size of the files that are rewritten, if the run only rewrites files.
    """

    operation: str
    units: int
    rows: int
    rows_exact: bool = True
    run: str = ""
    plan: str = ""
    content: str = ""
    fingerprint: str = ""
    lineage: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    shards: int = 0
    kept: int = 0
    duplicates: int = 0
    reuse: int = 0
    rows_kept: int = 0
    texts_to_encode: int = 0
    size_bytes: int = 0

    def to_json(self) -> str:
        """Return the description as JSON."""
        return json.dumps({**asdict(self), "format": FORMAT}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes, *, url: str) -> RunDescription:
        """Return the description that `to_json` wrote, of the ledger at `url`.

        Raises:
            TableConflict: a development version of vectide wrote the ledger, with other names.
        """
        document = json.loads(text)
        if document.pop("format", None) != FORMAT:
            raise TableConflict(
                f"{url!r} is the ledger of a version of vectide from before the first release, which has other "
                f"names. Name another table.uri and backfill it anew"
            )
        return cls(**document)
