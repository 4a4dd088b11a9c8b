"""One small Ray for all integration tests, and a tiny model that encodes in no time."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.unit.receipt import Receipt
from pipeline.execute.progress import Started
from pipeline.execute.ray_data import connect
from pipeline.job.config import Job, parse_job
from tests.checkpoints.bert import write_bert
from tests.stores.moto import moto
from tests.stores.server import Server, lake

__all__ = ["lake"]  # a fixture


class Silent:
    """A reporter that records every call."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.receipts: list[Receipt] = []
        self.start: Started | None = None
        self.most_busy = 0
        self.failed: list[tuple[int, str]] = []

    def step(self, text):
        self.steps.append(text)

    def started(self, started):
        self.start = started

    def finished_unit(self, receipt):
        self.receipts.append(receipt)

    def busy(self, encoders):
        self.most_busy = max(self.most_busy, encoders)

    def failed_unit(self, unit, error):
        self.failed.append((unit, str(error)))


class Stops(Exception):
    """Raised by a test in the middle of a run instead of a kill."""


class Stopping(Silent):
    """Stops a run after some units."""

    def __init__(self, after: int = 1) -> None:
        super().__init__()
        self.after = after

    def finished_unit(self, receipt):
        super().finished_unit(receipt)
        if len(self.receipts) == self.after:
            raise Stops


@pytest.fixture(scope="session")
def ray_session():
    """Ray on this machine, started once: a start takes seconds."""
    connect("local")
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A tiny random BERT."""
    return write_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A mock of S3, started once, with credentials that no other text contains by chance."""
    with moto(f"AKIA{secrets.token_hex(8).upper()}", f"keep/me+hidden/{secrets.token_hex(16)}") as started:
        yield started


@pytest.fixture
def reporter() -> Silent:
    return Silent()


def rows(count: int, *, start: int = 0, langs: int = 3) -> list[dict[str, object]]:
    """Rows with distinct texts."""
    return [
        {"id": f"r{number}", "title": f"title {number}", "text": f"text number {number}", "lang": f"l{number % langs}"}
        for number in range(start, start + count)
    ]


def write_one(path: Path, shard: list[dict[str, object]], *, row_group_size: int = 8) -> None:
    """One Parquet shard, put in place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in ("id", "title", "text", "lang")])
    temporary = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(shard, schema=schema), temporary, row_group_size=row_group_size)
    temporary.replace(path)


def write_corpus(folder: Path, shards: list[list[dict[str, object]]], *, row_group_size: int = 8) -> Path:
    """Parquet shards, one a list."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        pq.write_table(
            pa.Table.from_pylist(shard), folder / f"part-{number:04d}.parquet", row_group_size=row_group_size
        )
    return folder


def make_job(corpus: Path | str, table: Path | str, model: Path, **changes: object) -> Job:
    """A job over `corpus`; `changes` are `section__key`, or a whole `section`."""
    document: dict[str, Any] = {
        "source": {"uri": str(corpus), "id": "id", "text": ["title", "text"], "keep": ["lang"]},
        "table": {"uri": str(table)},
        "encoder": {"model": str(model), "dtype": "float32"},
        "run": {"address": "inline", "unit_rows": 16, "replicas": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            document.setdefault(section, {})[name] = value
        else:
            document[section] = value
    return parse_job(document)
