"""A source inside the folder of a lake table is refused, and one that only looks like it is not."""

from __future__ import annotations

import secrets

import pytest

from actors import storage
from actors.errors import ConfigError
from actors.source.lakes import refuse_lakes
from actors.source.spec import corpus_root

LOG = "t/_delta_log/00000000000000000003.json"


@pytest.fixture(params=["disk", "memory"])
def lake(request, tmp_path):
    """URL of an empty folder."""
    return str(tmp_path) if request.param == "disk" else f"memory://lakes/{secrets.token_hex(4)}"


def refuse(lake: str, names: list[str], source: str, own: str = "out") -> None:
    for name in names:
        storage.put(f"{lake}/{name}", b"x")
    uri = f"{lake}/{source}"
    shards = [shard for shard in storage.glob(uri).shards if shard.path.endswith(".parquet")]
    assert shards
    refuse_lakes(uri, corpus_root(uri, shards), shards, own=f"{lake}/{own}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "source", "message"),
    [
        (
            [LOG, "t/a.parquet"],
            "t/*.parquet",
            r"the Delta Lake table '.*/t', .*polars\.scan_delta\('.*/t'\)\.sink_parquet",
        ),
        ([LOG, "t/a.parquet"], "t", "Delta Lake"),
        ([LOG, "t/a.parquet"], "t/a.parquet", "Delta Lake"),
        (["t/_delta_log/_last_checkpoint", "t/a.parquet"], "t", "Delta Lake"),
        ([LOG, "t/k=1/m=2/a.parquet"], "t/k=1/m=2/*.parquet", "Delta Lake table '.*/t'"),
        ([LOG, "t/k=1/a.parquet"], "*/k=*/*.parquet", "Delta Lake table '.*/t'"),
        (["k=1/_delta_log/00000000000000000003.json", "k=1/a.parquet"], "k=*/*.parquet", "Delta Lake table '.*/k=1'"),
        (["k=1/_delta_log/00000000000000000003.json", "k=1/m=2/a.parquet"], "k=1/m=2/*", "Delta Lake table '.*/k=1'"),
        ([LOG, "t/a.parquet", "u/a.parquet"], "**/*.parquet", "Delta Lake table '.*/t'"),
        (["t/metadata/00001-x.metadata.json", "t/data/a.parquet"], "t/data/*.parquet", r"Iceberg table .*scan_iceberg"),
        (["t/metadata/v1.gz.metadata.json", "t/data/k=1/a.parquet"], "t/data/k=1/*", "Iceberg table '.*/t'"),
        (["t/metadata/version-hint.text", "t/data/a.parquet"], "t/data", "Iceberg"),
        (["t/_versions/1.manifest", "t/data/a.parquet"], "t/data", r"Lance table .*lance\.dataset"),
        (["t/.hoodie/hoodie.properties", "t/2024/01/02/a.parquet"], "t/2024/01/02", "Hudi table '.*/t'"),
    ],
)
def test_the_inside_of_a_table_is_refused_with_the_way_to_export_it(lake, names, source, message):
    with pytest.raises(ConfigError, match=message):
        refuse(lake, names, source)


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["t/metadata/readme.txt", "t/a.parquet"], "t/*.parquet"),
        (["t/metadata/a.parquet"], "t/metadata/*.parquet"),
        (["t/_versions/notes.txt", "t/_delta_log/notes.txt", "t/a.parquet"], "t"),
        ([LOG, "u/a.parquet"], "u/*.parquet"),
        ([LOG, "tt/a.parquet"], "tt"),
    ],
)
def test_a_folder_that_is_no_table_is_read(lake, names, source):
    refuse(lake, names, source)


def test_the_log_of_the_jobs_own_table_may_lie_beside_its_source(lake):
    refuse(lake, [LOG, "t/a.parquet"], "t/*.parquet", own="t")


def test_a_corpus_of_many_folders_is_listed_once_more(monkeypatch):
    lake = f"memory://lakes/{secrets.token_hex(4)}"
    asked: list[str] = []
    real = storage.names

    def noted(folder, name):
        asked.append(folder)
        return real(folder, name)

    monkeypatch.setattr(storage, "names", noted)
    names = [f"t{number}/data/a.parquet" for number in range(40)]
    refuse(lake, names, "**/*.parquet")
    assert len(asked) < 40
    for source in ("", "**/*.parquet", "*/data/*.parquet"):
        with pytest.raises(ConfigError, match="Iceberg table '.*/t39'"):
            refuse(lake, ["t39/metadata/v1.metadata.json"], source)
