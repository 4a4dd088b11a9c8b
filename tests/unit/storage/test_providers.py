"""Options of the clients of Azure and Google, without their drivers installed."""

from __future__ import annotations

import json
import os

import pytest

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.storage import azure, errors, gcs, providers
from pipeline.table import delta_table


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Remove all variables of stores from the environment."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST"))]:
        monkeypatch.delenv(name)


def given(url):
    found = delta_table.storage_options(url)
    assert found is not None
    return {name: value for name, value in found.items() if name.startswith(("azure_", "google_", "allow_"))}


def test_a_url_finds_its_store():
    assert providers.of("az://lake/x") is providers.of("abfss://lake/x")
    assert providers.of("gcs://lake/x") is providers.of("gs://lake/x")
    assert providers.of("s3a://lake/x") is providers.of("s3://lake/x")
    assert providers.of("/data/s3") is providers.of("gs") is providers.of("memory://x") is None
    assert delta_table.storage_options("/data/table") is None


def test_gcs_and_gs_urls_are_spelled_alike():
    assert storage.absolute("gcs://lake/gcs://x/") == storage.absolute("gs://lake/gcs://x") == "gs://lake/gcs://x"
    assert storage.absolute("az://lake/x") == "az://lake/x"


def test_a_missing_driver_is_named():
    for url, package in (("az://lake/x", "adlfs"), ("gs://lake/x", "gcsfs")):
        error = errors.no_driver(url, ImportError("fsspec's own words"))
        assert type(error) is ConfigError
        assert f"not installed: pip install {package}" in str(error)


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({"ACCOUNT_NAME": "lake", "ACCOUNT_KEY": "a2V5"}, {"account_name": "lake", "account_key": "a2V5"}),
        ({"ACCOUNT_NAME": "lake", "SAS_TOKEN": "?sig=x"}, {"account_name": "lake", "sas_token": "sig=x"}),
        (
            {"ACCOUNT_NAME": "lake", "CLIENT_ID": "i", "CLIENT_SECRET": "s", "TENANT_ID": "t"},
            {"account_name": "lake", "client_id": "i", "client_secret": "s", "tenant_id": "t"},
        ),
        (
            {
                "CONNECTION_STRING": "AccountName=lake;AccountKey=a2V5==;EndpointSuffix=core.windows.net",
                "SAS_TOKEN": "x",
            },
            {"account_name": "lake", "account_key": "a2V5=="},
        ),
        (
            {"CONNECTION_STRING": "BlobEndpoint=https://lake.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x"},
            {
                "account_name": "lake",
                "sas_token": "sv=1&sig=x",
                "endpoint": "https://lake.blob.core.windows.net",
            },
        ),
    ],
)
def test_the_table_gets_the_credentials_of_azures_driver(monkeypatch, environment, options):
    for name, value in environment.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    assert given("az://lake/x") == {f"azure_storage_{name}": value for name, value in options.items()}
    assert set(azure.driver_options()) == {"connection_timeout", "read_timeout"}  # no credentials


def test_an_account_that_anybody_may_read(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lake")
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    assert given("az://lake/x") == {"azure_storage_account_name": "lake", "azure_skip_signature": "true"}


def test_another_cloud_and_an_emulator_are_found(monkeypatch):
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", "AccountName=lake;AccountKey=a2V5;EndpointSuffix=core.example.cn"
    )
    assert given("az://lake/x")["azure_storage_endpoint"] == "https://lake.blob.core.example.cn"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=l;AccountKey=a2V5;BlobEndpoint=http://[::1]:1/l")
    assert given("az://lake/x")["azure_storage_endpoint"] == "http://[::1]:1/l"
    assert given("az://lake/x")["allow_http"] == "true"


def test_a_missing_account_is_an_error():
    for call in (delta_table.storage_options, storage.read):
        with pytest.raises(
            ConfigError, match="no account of Azure is named in the environment. Set AZURE_STORAGE_ACCO"
        ):
            call("az://lake/x")


def test_a_name_in_azure_is_a_name_and_no_url():
    for name in ("a#b", "a?b", "[a]", "x::y", "a@b"):
        assert azure._path_of(f"abfs://lake/{name}/{name}") == f"lake/{name}/{name}"
        assert azure._path_of(f"lake/{name}") == f"lake/{name}"
    assert azure._path_of(["az://lake/a", "lake/b"]) == ["lake/a", "lake/b"]


def test_the_table_gets_the_credentials_of_googles_driver(monkeypatch):
    assert given("gs://lake/x") == {}  # both look into the same places
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/keys/lake.json")
    assert given("gs://lake/x") == {"google_application_credentials": "/keys/lake.json"}
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    options = given("gs://lake/x")
    assert json.loads(options["google_service_account_key"])["gcs_base_url"] == "http://127.0.0.1:1"
    assert options["allow_http"] == "true"
    assert gcs.driver_options()["token"] == "anon"


class Buckets:
    """A store's module, which counts how often it is asked for a bucket."""

    def __init__(self, *there):
        self.there = there
        self.asked = []

    def has_bucket(self, fs, bucket):
        self.asked.append(bucket)
        if bucket == "secret":
            raise StorageError("not everybody may ask")
        return bucket in self.there


def test_a_bucket_is_checked_until_it_exists(monkeypatch):
    store = Buckets("lake")
    monkeypatch.setattr(providers, "of", lambda _: store)
    monkeypatch.setattr(providers, "_SEEN", set())
    assert providers.lacks_bucket(None, "gs://nowhere/x")
    assert providers.lacks_bucket(None, "gs://nowhere/x")
    assert not providers.lacks_bucket(None, "gs://secret/x")
    assert not providers.lacks_bucket(None, "gs://lake/x")
    assert not providers.lacks_bucket(None, "gs://lake/y")
    assert store.asked == ["nowhere", "nowhere", "secret", "lake"]
