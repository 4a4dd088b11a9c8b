"""A finished run of `vectide mine`: what it was made of, and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from actors import storage
from actors.errors import ConfigError
from pipeline.report.load import MINING


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
    """

    folder: str
    key: str
    table: str
    version: int
    id: str | None
    passage_id: str | None

    @classmethod
    def of(cls, uri: str, key: str) -> Mining:
        """Return the mining in a folder.

        Raises:
            ConfigError: the folder has no finished one, or one of joined passages.
        """
        folder = storage.absolute(uri)
        try:
            done = json.loads(storage.read(storage.join(folder, MINING)))["outcome"]
            settings: dict[str, Any] = done["settings"]
            place = (done["table"], done["version"], settings["id"], settings["passage_id"])
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
        return cls(folder, key, *place)

    def files(self) -> list[str]:
        """Return the URLs of its Parquet files, in order."""
        names = (shard.path for shard in storage.walk(self.folder))
        return sorted(name for name in names if name.endswith(".parquet"))
