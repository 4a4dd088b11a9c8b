"""What every store must do, whoever made it: the backfill from bucket to bucket, and the store calls below it.

Run on moto by tests/integration/test_s3.py, on Ceph by tests/s3/test_ceph.py, on Azurite by
tests/azure and on fake-gcs-server by tests/gcs.
"""

from __future__ import annotations

import gzip
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from actors import storage
from actors.encoders import load_encoder
from actors.errors import ConfigError, TableConflict
from pipeline.ledger.create_probe import probe_create
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.refresh import refresh
from pipeline.search.search import Searcher
from pipeline.table import delta_table
from pipeline.table.diff import diff
from pipeline.table.export import changes
from pipeline.table.status import status
from pipeline.table.vacuum import vacuum
from pipeline.table.versions import rollback, versions
from tests.integration.conftest import Stopping, Stops, make_job, rows
from tests.stores.server import forget_clients

# What people put into names. Each must come back as it was, in a key, in a partition value and in a path of Delta's log.
AWKWARD = ("a b", "100%", "%20", "é ü", "日本", "a+b", "a=b", "a&b#c", "it's", "a:b", "x::y", "(1)", "q?x", "[z]")


def parquet(table: list[dict[str, object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), out, row_group_size=8)
    return out.getvalue()


def put_corpus(lake: str, *shards: list[dict[str, object]]) -> str:
    for number, shard in enumerate(shards):
        storage.put(f"{lake}/corpus/part-{number:04d}.parquet", parquet(shard))
    return f"{lake}/corpus/*.parquet"


def options(url: str) -> dict[str, str]:
    found = delta_table.storage_options(url)
    assert found is not None
    return found


def stored(table: str) -> dict[Any, dict[str, Any]]:
    """The rows of the current version by id, which must not contain an id twice."""
    found = DeltaTable(table, storage_options=options(table)).to_pyarrow_table().to_pylist()
    by_id = {row["id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


class StoreSuite:
    """Needs the fixtures `server`, `lake`, `tiny_model` and `reporter`; of a server, `keys` and `put_many`."""

    MANY_KEYS = 1100

    def test_a_corpus_in_a_bucket_becomes_a_table_in_a_bucket(self, lake, tiny_model, reporter):
        source = rows(60)
        for number, row in enumerate(source):
            row["lang"] = (*AWKWARD, None)[number % (len(AWKWARD) + 1)]
        table = f"{lake}/tables/wiki"
        job = make_job(
            put_corpus(lake, source[:40], source[40:]),
            table,
            tiny_model,
            table__partition_by=["lang"],
            table__precision="float32",
        )
        outcome = backfill(job, reporter)
        assert (outcome.rows_read, outcome.rows, outcome.quarantined, outcome.version) == (60, 60, 0, 1)
        found = stored(table)
        assert {name: row["lang"] for name, row in found.items()} == {row["id"]: row["lang"] for row in source}
        texts = [f"{row['title']}\n\n{row['text']}" for row in source]
        vectors = load_encoder(str(tiny_model), dtype="float32").encode(texts)
        for row, vector in zip(source, vectors, strict=True):
            np.testing.assert_allclose(found[row["id"]]["embedding"], vector, atol=1e-5)
        # Another reader, with its own idea of how a path in the log is written.
        own = ("AWS_", "azure_", "google_", "allow_http")
        keys_only = {key: value for key, value in options(table).items() if key.startswith(own)}
        frame = pl.scan_delta(table, storage_options=keys_only)
        assert frame.select("id").collect().height == 60
        for value in AWKWARD:
            there = frame.filter(pl.col("lang") == value).select("id").collect()["id"].to_list()
            assert sorted(there) == sorted(str(row["id"]) for row in source if row["lang"] == value)

        again = backfill(job, reporter)
        assert (again.published, again.version) == (False, 1)
        assert len(reporter.receipts) == outcome.units

        (hits,) = Searcher(table).search([texts[7]], k=3)
        assert hits[0].id == "r7"
        report = status(table)
        assert (report.version, report.rows, len(report.runs)) == (1, 60, 1)
        assert report.runs[0].units_done == report.runs[0].units == outcome.units

    def test_plain_and_compressed_json_lines_are_read(self, lake, tiny_model, reporter):
        lines = [json.dumps(row).encode() for row in rows(40)]
        storage.put(f"{lake}/corpus/a b.jsonl", b"\n".join(lines[:20]) + b"\nnot json\n")
        storage.put(f"{lake}/corpus/100%.jsonl.gz", gzip.compress(b"\n".join(lines[20:])))
        job = make_job(f"{lake}/corpus", f"{lake}/table", tiny_model, source__format="jsonl", run__max_quarantined=0.1)
        outcome = backfill(job, reporter)
        assert (outcome.rows, outcome.quarantined) == (40, 1)
        assert stored(f"{lake}/table").keys() == {f"r{number}" for number in range(40)}
        assert status(f"{lake}/table").runs[0].quarantined == 1

    def test_a_folder_of_texts_with_awkward_names(self, lake, tiny_model, reporter):
        for name in AWKWARD:
            storage.put(f"{lake}/corpus/{name}/{name}.txt", f"the text of {name}".encode())
        job = make_job(
            f"{lake}/corpus",
            f"{lake}/table",
            tiny_model,
            source__format="text",
            source__id="path",
            source__text=["text"],
            source__keep=["text"],
        )
        assert backfill(job, reporter).rows == len(AWKWARD)
        found = stored(f"{lake}/table")
        assert {row["text"] for row in found.values()} == {f"the text of {name}" for name in AWKWARD}

    def test_a_stopped_run_resumes_and_encodes_nothing_twice(self, lake, tiny_model, reporter):
        job = make_job(put_corpus(lake, rows(96)), f"{lake}/table", tiny_model)
        stopping = Stopping(after=2)
        with pytest.raises(Stops):
            backfill(job, stopping)
        assert status(f"{lake}/table").version is None
        outcome = backfill(job, reporter)
        assert (outcome.rows, outcome.published) == (96, True)
        assert reporter.start is not None
        assert reporter.start.units_done == 2
        assert len(reporter.receipts) == outcome.units - 2
        assert len(stored(f"{lake}/table")) == 96

    def test_one_of_many_exclusive_creates_succeeds(self, lake):
        for number in range(4):
            url = f"{lake}/races/{number}"
            with ThreadPoolExecutor(32) as pool:
                won = list(pool.map(lambda racer, url=url: storage.create(url, b"%d" % racer), range(32)))
            assert sum(won) == 1
            assert storage.read(url) == b"%d" % won.index(True)
            assert storage.create(url, b"%d" % won.index(True))  # a retry inside a client meets its own success
            assert not storage.create(url, b"late")

    def test_a_table_in_a_bucket_is_maintained(self, lake, tiny_model, reporter):
        """Every command on a table, over partitions with awkward names; time stands still nowhere, so ages are the store's."""
        source = [{**row, "lang": AWKWARD[number % 3]} for number, row in enumerate(rows(24))]
        uri = put_corpus(lake, source[:12], source[12:])
        table = f"{lake}/table"
        job = make_job(uri, table, tiny_model, table__partition_by=["lang"])
        backfill(job, reporter)
        before = stored(table)
        other = job.model_copy(update={"encoder": job.encoder.model_copy(update={"max_tokens": 4})})
        assert refresh(other, reporter).version == 2
        found = diff(table, 1, 2)
        assert (found.added, found.changed, found.removed) == (0, 24, 0)
        assert rollback(table, 1).version == 3
        assert stored(table) == before
        done = compact(table, reporter)
        assert (done.files_after, done.rows) == (3, 24)
        assert stored(table) == before
        assert changes(table, 2, f"{lake}/out").upserts == 24
        dry = vacuum(table, 0, dry_run=True)
        assert stored(table) == before
        time.sleep(1.1)  # a store's clock may count whole seconds
        gone = vacuum(table, 0)
        assert gone.files >= dry.files
        assert gone.files > 0
        assert stored(table) == before
        assert [version.operation for version in versions(table)][:4] == [
            "compact",
            "rollback",
            "generation",
            "backfill",
        ]
        with pytest.raises(TableConflict, match="a vacuum took them"):
            rollback(table, 2)

    def test_the_probe_passes_and_leaves_nothing(self, lake, server):
        probe_create(f"{lake}/probes")
        assert server.keys(lake) == []

    @pytest.mark.parametrize("name", AWKWARD)
    def test_awkward_object_names_are_read_and_written(self, lake, server, name):
        url = f"{lake}/{name}/{name}"
        assert storage.create(url, b"first")
        storage.put(url, b"second")
        assert storage.read(url, 1, 4) == b"eco"
        assert storage.stat(url).path == url
        assert [shard.path for shard in storage.walk(lake)] == [url]
        assert storage.folders(lake) == [name]
        assert [f"{lake.rpartition('/')[0]}/{key}" for key in server.keys(lake)] == [url]
        with storage.open_read(url) as file:
            assert file.read() == b"second"
        storage.delete(url)
        assert not storage.exists(url)

    @pytest.mark.usefixtures("lake")
    def test_more_keys_than_one_page_of_a_listing(self, server):
        many = server.put_many([f"{number // 100:04d}/{number:06d}.json" for number in range(self.MANY_KEYS)])
        found = storage.glob(many).shards
        assert [shard.path.rsplit("/", 1)[1] for shard in found] == [f"{n:06d}.json" for n in range(self.MANY_KEYS)]
        assert len({shard.path for shard in storage.walk(many)}) == self.MANY_KEYS
        assert len(storage.glob(f"{many}/*/*.json").shards) == self.MANY_KEYS
        assert len(storage.folders(many)) == -(-self.MANY_KEYS // 100)

    def test_a_missing_object_and_an_empty_folder_are_no_errors(self, lake):
        for call in (storage.read, storage.stat, storage.open_read, storage.open_arrow):
            with pytest.raises(FileNotFoundError):
                call(f"{lake}/nothing")
        assert not storage.exists(f"{lake}/nothing")
        assert storage.glob(f"{lake}/nothing/*").shards == ()
        assert list(storage.walk(f"{lake}/nothing")) == []
        assert storage.folders(f"{lake}/nothing") == []
        storage.delete(f"{lake}/nothing")
        assert delta_table.open_table(f"{lake}/nothing") is None
        with pytest.raises(ConfigError, match="there is no table and no run at"):
            status(f"{lake}/nothing")

    def test_every_command_names_a_missing_bucket(self, lake, tiny_model, reporter):
        nowhere = f"{lake.partition('://')[0]}://no-such-bucket-here/x"
        calls = (
            storage.read,
            storage.stat,
            storage.glob,
            storage.folders,
            lambda url: list(storage.walk(url)),
            lambda url: storage.put(url, b"x"),
            lambda url: storage.create(url, b"x"),
            delta_table.open_table,
            status,
            Searcher,
        )
        for call in calls:
            with pytest.raises(
                ConfigError, match="there is no (bucket|container) 'no-such-bucket-here' at http://127.0.0.1"
            ):
                call(nowhere)
        corpus = put_corpus(lake, rows(5))
        for source, table in ((nowhere, f"{lake}/table"), (corpus, nowhere)):
            with pytest.raises(ConfigError, match="there is no (bucket|container) 'no-such-bucket-here'"):
                backfill(make_job(source, table, tiny_model), reporter)


class S3Suite(StoreSuite):
    """And what only S3 has."""

    def test_a_folder_marker_is_no_document(self, lake, server):
        bucket, _, prefix = lake.removeprefix("s3://").partition("/")
        for key in (f"{prefix}/corpus/", f"{prefix}/corpus/sub/", f"{prefix}/corpus/sub/a.txt"):
            server.client().put_object(Bucket=bucket, Key=key, Body=b"text" if key.endswith("t") else b"")
        assert [shard.path for shard in storage.glob(f"{lake}/corpus").shards] == [f"{lake}/corpus/sub/a.txt"]

    def test_keys_are_read_or_left_out_by_the_rules_of_a_disk(self, lake, server):
        bucket, _, prefix = lake.removeprefix("s3://").partition("/")
        keys = ("one.csv", "p.csv/a", "p.csv/", "p.csv_$folder$", "_x.csv", "p.csv//b", "a[1].csv", "_SUCCESS")
        for key in keys:
            server.client().put_object(
                Bucket=bucket, Key=f"{prefix}/_v/{key}", Body=b"" if key.endswith(("/", "$")) else b"x"
            )
        names = ["a[1].csv", "one.csv", "p.csv//b", "p.csv/a"]
        for pattern in ("*.csv*", "**", ""):
            found = storage.glob(f"{lake}/_v/{pattern}".rstrip("/"))
            assert [shard.path.removeprefix(f"{lake}/_v/") for shard in found.shards] == names
            assert [(left.reason, left.count) for left in found.left_out] == [("underscore_name", 1)]
        assert [shard.path for shard in storage.glob(f"{lake}/_v/a[1].csv").shards] == [f"{lake}/_v/a[1].csv"]

    def test_credentials_of_a_profile_serve_both_clients(self, lake, server, monkeypatch, tmp_path):
        storage.put(f"{lake}/x", b"x")
        profile = tmp_path / "credentials"
        profile.write_text(
            f"[lake]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
        )
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        monkeypatch.setenv("AWS_PROFILE", "lake")
        forget_clients()
        assert storage.read(f"{lake}/x") == b"x"
        table = f"{lake}/table"
        DeltaTable.create(table, schema=pa.schema([("a", pa.int64())]), storage_options=options(table))
        opened = delta_table.open_table(table)
        assert opened is not None
        assert opened.version() == 0
