"""Tables that an earlier version of vectide wrote. Tests check that today's version reads and continues them.

The corpus is in a file system in memory, so its paths are the same on every machine. The tables are beside this file:

| folder | how it was written |
|---|---|
| `documents` | one vector per document, float32; several batches |
| `chunks` | late chunking, bfloat16 |
| `partitioned` | partitioned by language, float16; written by a backfill and a refresh |
| `stopped` | a backfill that was stopped after its first unit |

`python -m tests.golden.make` writes them. Do not write them again when the code changes: they are there to be old.
"""

from __future__ import annotations

from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import orjson
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.job.config import Job, parse_job

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
_JOBS: dict[str, dict[str, Any]] = {
    "documents": {"table": {"precision": "float32"}},
    "chunks": {"table": {"precision": "bfloat16"}, "chunking": {"mode": "late", "max_tokens": 16}},
    "partitioned": {"table": {"precision": "float16", "partition_by": ["lang"]}},
    "stopped": {"table": {"precision": "float32"}},
}
NAMES = tuple(_JOBS)


class _Files(MemoryFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """Files in memory with an ETag that depends on their content alone."""

    protocol = "golden"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("golden://"))
        return stripped

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """Return name, size, type and tag."""
        found: dict[str, Any] = super().info(path)
        return found if found["type"] == "directory" else {**found, "ETag": md5(self.cat_file(path)).hexdigest()}

    def ls(self, path: str, detail: bool = True, **_: object) -> list[Any]:
        """Return the infos of a folder."""
        names: list[str] = super().ls(path, detail=False)
        return [self.info(name) for name in names] if detail else names


fsspec.register_implementation("golden", _Files)


def row(number: int, *, text: str | None = None) -> dict[str, str]:
    """Return a row of the corpus, with another text if one is given."""
    text = text or f"text number {number}. " + "It goes on for a while. " * (number % 3)
    return {"id": f"r{number}", "text": text, "lang": f"l{number % 2}"}


def write_corpus(*shards: list[dict[str, str]]) -> None:
    """Write the corpus, one list per shard, in place of the former one."""
    files = fsspec.filesystem("golden")
    if files.exists("/golden"):
        files.rm("/golden", recursive=True)
    for number, rows in enumerate(shards):
        files.pipe(f"/golden/part-{number}.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))


def job_of(name: str, table: Path | str) -> Job:
    """Return the job that wrote the table `name`, for a copy of it in another place."""
    changes = _JOBS[name]
    return parse_job(
        {
            "source": {"uri": "golden://golden/*.jsonl", "id": "id", "keep": ["lang"]},
            "table": {"uri": str(table), **changes["table"]},
            "encoder": {"model": str(MODEL), "dtype": "float32"},
            "chunking": changes.get("chunking", {}),
            "run": {"address": "inline", "unit_rows": 4, "replicas": 1},
        }
    )
