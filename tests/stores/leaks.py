"""Looks for secrets in everything that a run leaves: what it printed, its table and ledger, and the files of its Ray.

Shared by the tests of each store. The run is a command with a Ray of its own, so this is also where workers find their
credentials by themselves.
"""

from __future__ import annotations

import base64
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from actors import storage
from pipeline.execute import choose
from pipeline.execute.inline import InlineExecutor
from pipeline.execute.stages.spec import to_block
from pipeline.run.backfill import backfill
from tests.integration.conftest import Silent, make_job, rows
from tests.stores.suite import put_corpus, stored

ROOT = Path(__file__).parents[2]


def spellings(secret: str) -> Iterator[bytes]:
    """A secret as it is, and as it would be inside a URL, in base64, and in UTF-16."""
    yield secret.encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield base64.b64encode(secret.encode()).rstrip(b"=")
    yield secret.encode("utf-16-le")


def found(data: bytes, *secrets: str) -> bool:
    return any(spelling in data for secret in secrets for spelling in spellings(secret))


def backfill_leaves_none(
    lake: str, tiny_model: Path, tmp_path: Path, environment: Mapping[str, str], names: list[str], *secrets: str
) -> None:
    """Run a backfill below `lake` on Ray, and look.

    Args:
        lake: URL of an empty folder, which this process can reach too.
        tiny_model: The model.
        tmp_path: Where the job file goes.
        environment: All of the command's.
        names: Part of a credential that a table must not contain, though a log may: the name of a key.
        secrets: What must be nowhere.
    """
    table = f"{lake}/table"
    bad: dict[str, object] = {"id": None, "title": "no id", "text": "x", "lang": "l0"}
    job = make_job(
        put_corpus(lake, rows(40), [*rows(8, start=40), bad]),
        table,
        tiny_model,
        table__partition_by=["lang"],
        run__address="local",
        run__max_quarantined=0.5,
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    # Where its Ray keeps logs and sockets; short, for the sockets.
    folder = Path(tempfile.mkdtemp(prefix="vt-ray-"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "backfill", str(path)],
            cwd=ROOT,
            env={**environment, "RAY_TMPDIR": str(folder)},
            capture_output=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert not found(done.stdout + done.stderr, *secrets)
        logs = [log for log in folder.rglob("*") if log.is_file() and not log.is_symlink()]
        assert len(logs) > 5
        for log in logs:
            assert not found(log.read_bytes(), *secrets), log
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert len(stored(table)) == 48

    written = [shard.path for shard in storage.walk(table)]
    kinds = ("/_delta_log/", "/run.json", "/plan.parquet", "/receipts/", "/quarantine/", "/data/")
    assert all(any(kind in url for url in written) for kind in kinds), written
    for url in written:
        data = storage.read(url)
        assert not found(data, *names, *secrets), url
        if url.endswith(".parquet"):  # what is packed inside it too
            file = pq.ParquetFile(io.BytesIO(data))
            inside = repr((file.metadata.metadata, file.read().to_pylist())).encode()
            assert not found(inside, *names, *secrets), url


def travelling(lake: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that would go to workers and come back from them in a backfill below `lake`, pickled."""
    seen: list[bytes] = []

    class Watched(InlineExecutor):
        def run(self, units, spec):
            units = list(units)
            seen.append(pickle.dumps(spec))
            seen.extend(pickle.dumps(unit) for unit in units)
            seen.extend(pickle.dumps(to_block(unit)) for unit in units)
            for outcome in super().run(units, spec):
                seen.append(pickle.dumps(outcome))
                yield outcome

    with monkeypatch.context() as patched:
        patched.setattr(choose, "InlineExecutor", Watched)
        backfill(make_job(put_corpus(lake, rows(40)), f"{lake}/table", tiny_model), Silent())
    assert len(seen) > 6
    return seen
