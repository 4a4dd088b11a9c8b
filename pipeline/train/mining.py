"""A finished run of `vectide mine`: what it was made of, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, DataError
from pipeline.report.load import MINING, mined_prefix


@dataclass(frozen=True)
class Mining:
    """A finished mining.

    Attributes:
        folder: URL of its files.
        key: Key of the job, for messages.
        table: URL of the table that was searched.
        version: Its version.
        id: Column of the ids of the pairs; None: file and position.
        passage_id: Column of the pairs with the ids of their passages; None: passages were found by their text.
        name: Part of the names of its files.
        rows: Rows of its files together.
    """

    folder: str
    key: str
    table: str
    version: int
    id: str | None
    passage_id: str | None
    name: str
    rows: int

    @classmethod
    def of(cls, uri: str, key: str) -> Mining:
        """Return the mining in a folder.

        Raises:
            ConfigError: the folder has no finished one, or one of joined passages.
        """
        folder = storage.absolute(uri)
        try:
            content = json.loads(storage.read(storage.join(folder, MINING)))
            done = content["outcome"]
            settings: dict[str, Any] = done["settings"]
            place = (done["table"], done["version"], settings["id"], settings["passage_id"])
            name, rows = str(content["name"]), int(done["rows"])
            passages = tuple(settings["passages"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            raise ConfigError(
                f"{key} {uri!r} has no {MINING} of a finished mining; name the folder that `vectide mine --out` wrote, or run "
                f"the same command again"
            ) from None
        if len(passages) > 1 and settings["passage_id"] is None:
            raise ConfigError(
                f"{key} {uri!r} was mined with --passage {','.join(passages)}, which are joined to one text, and a passage that is "
                f"trained with is one column; write the joined text into a column, and mine with that"
            )
        return cls(folder, key, *place, name, rows)

    def parts(self) -> Iterator[pa.Table]:
        """Yield the ids of its pairs, their positives and their negatives, a file at a time.

        Raises:
            DataError: a file is damaged, or one is missing.
        """
        own, read = f"/{mined_prefix(self.name)}", 0
        fix = "run the same `vectide mine` again"
        for url in sorted(shard.path for shard in storage.walk(self.folder) if own in shard.path):
            try:
                with storage.open_arrow(url) as file:
                    rows = pq.ParquetFile(file).read(columns=["pair_id", "positive_id", "negative_ids"])
            except pa.ArrowInvalid as error:
                raise DataError(f"{self.key}: {url!r} is damaged ({error}); delete it, and {fix}") from None
            read += rows.num_rows
            yield rows
        if read != self.rows:
            raise DataError(
                f"{self.key} {self.folder!r} has {read:,} pairs with negatives, and {self.rows:,} were written: files are missing or "
                f"changed; {fix} with another --out"
            )
