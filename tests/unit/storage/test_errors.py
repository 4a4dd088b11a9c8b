"""Errors of stores as messages with a fix and without secrets."""

from __future__ import annotations

import errno
from enum import Enum

import pytest
from aiohttp import ClientPayloadError
from aiohttp.http_exceptions import ContentLengthError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error

from actors import storage
from actors.errors import ConfigError, StorageError, TransientError
from actors.storage import errors
from pipeline.job.config import parse_job


def from_s3(code: str, status: int, message: str = "") -> Exception:
    """What the driver raises for an answer of an S3 store."""
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(answer, "PutObject"))
    return error


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("SlowDown", 503),
        ("InternalError", 500),
        ("ServiceUnavailable", 503),
        ("ConditionalRequestConflict", 409),
        ("OperationAborted", 409),
        ("RequestTimeout", 400),
        ("TooManyRequests", 429),
    ],
)
def test_a_busy_store_is_transient(code, status):
    assert errors.is_transient(from_s3(code, status))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("NoSuchBucket", 404),
        ("PreconditionFailed", 412),
        ("ExpiredToken", 400),
        ("InvalidArgument", 400),
        ("NotImplemented", 501),
    ],
)
def test_a_refusal_is_not_transient(code, status):
    assert not errors.is_transient(from_s3(code, status))


def test_a_truncated_response_is_transient():
    """The driver's library hides a 400 of its own in it, which is not the store's."""
    error = ClientPayloadError("Response payload is not completed")
    error.__cause__ = ContentLengthError("Not enough data to satisfy content length header")
    assert errors.status_of(error) == 400
    assert errors.is_transient(error)


def test_a_response_without_a_reason_is_detected():
    for status in (400, 401, 403):
        assert errors.is_wordless(from_s3(str(status), status))
        assert not errors.is_wordless(from_s3("ExpiredToken", status))
    assert not errors.is_wordless(from_s3("404", 404))
    assert errors.is_expired(from_s3("ExpiredToken", 400))
    assert not errors.is_expired(from_s3("AccessDenied", 403))


def test_a_refused_create_is_detected_in_both_forms():
    response = {"Error": {"Code": "PreconditionFailed", "Condition": "If-None-Match"}}
    assert errors.is_refused_create(translate_boto_error(ClientError(response, "PutObject")))
    assert errors.is_refused_create(from_s3("PreconditionFailed", 412))
    assert not errors.is_refused_create(from_s3("ConditionalRequestConflict", 409))
    assert not errors.is_refused_create(OSError(errno.EINVAL, "something else that is invalid"))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (from_s3("SignatureDoesNotMatch", 403), StorageError, "access denied (SignatureDoesNotMatch). Check the cred"),
        (from_s3("403", 403), StorageError, "access denied. Check the credentials in the environment and the rights"),
        (from_s3("ExpiredToken", 400), StorageError, "the credentials have expired (ExpiredToken). Renew them and run"),
        (from_s3("NoSuchBucket", 404), ConfigError, "there is no bucket 'lake' at http://127.0.0.1:9. Create it, or"),
        (from_s3("SlowDown", 503), StorageError, "cannot read 's3://lake/x' after 8 tries: OSError"),
        (NoCredentialsError(), StorageError, "no credentials were found. Set AWS_ACCESS_KEY_ID"),
        (
            EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
            StorageError,
            "nothing answers at http://127.0.0.1:9. Check the network and AWS_ENDPOINT_URL",
        ),
    ],
)
def test_each_error_names_the_fix(monkeypatch, error, kind, message):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    converted = errors.to_vectide_error("s3://lake/x", "read", error, 8)
    assert isinstance(converted, kind)
    assert message in str(converted)
    assert "\n" not in str(converted)


def test_own_errors_pass_except_transient_ones():
    ours = ConfigError("as it was")
    assert errors.to_vectide_error("s3://lake/x", "read", ours, 1) is ours
    converted = errors.to_vectide_error("s3://lake/x", "create", TransientError("was refused, yet nothing is there"), 8)
    assert isinstance(converted, StorageError)
    assert "after 8 tries: TransientError: was refused, yet nothing is there" in str(converted)


def test_a_message_of_another_library_is_one_short_line_without_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0c2VjcmV0")
    answer = (
        "\x1b[31mfailed\x1b[0m\n  with wJalrXUtnFEMI/K7MDENG,\n c2VjcmV0c2VjcmV0 at http://me:hush@proxy:1 " + "x" * 999
    )
    line = errors.redact(answer)
    assert line.startswith("failed with ***, *** at http://***@proxy:1 xxx")
    assert len(line) < 420


SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@lake/corpus",
        f"s3://AKIA:{SECRET}/K7/x@lake/corpus",
        f"s3a://AKIA:{SECRET}@lake",
        f"gs://key:{SECRET}@lake/x",
        f"https://me:{SECRET}@host/file.parquet",
        f"ftp://me:{SECRET}@host:21/x",
        f"https://lake.s3.amazonaws.com/x.parquet?X-Amz-Signature={SECRET}",
        f"https://account.blob.core.windows.net/c/x?sv=2024&sig={SECRET}",
    ],
)
def test_a_url_with_credentials_in_it_is_refused_without_repeating_them(url, monkeypatch):
    for call in (storage.absolute, storage.read, lambda url: storage.put(url, b"")):
        with pytest.raises(ConfigError, match="has credentials in it.*AWS_SECRET_ACCESS_KEY") as caught:
            call(url)
        assert SECRET not in str(caught.value)
    monkeypatch.setenv("CORPUS", url)
    for written in (url, "${CORPUS}"):
        job = {"source": {"uri": written}, "table": {"uri": "/table"}, "encoder": {"model": "m"}}
        with pytest.raises(ConfigError, match="source.uri: .*has credentials in it") as caught:
            parse_job(job)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://lake/mail@example.com/a:b@c",
        "s3://arn:aws:s3:us-east-1:1234:accesspoint/lake/a@b",
        "abfs://container@account.dfs.core.windows.net/x",
        "hdfs://host:8020/a@b",
        "/home/me/a:b@c",
        "s3://lake/what?sign=1",
    ],
)
def test_a_url_with_similar_characters_is_not_refused(url):
    assert errors.check_url(url) == url


@pytest.mark.parametrize("url", ["s3://", "s3:///", "gs://", "file://"])
def test_a_url_of_no_place_is_refused(url):
    with pytest.raises(ConfigError, match="names no place; add one after it"):
        errors.check_url(url)


class HttpResponseError(Exception):
    """As Azure's library raises it: the status, and the store's word as a member of an enumeration or as text."""

    def __init__(self, status_code, error_code):
        super().__init__(f"ErrorCode:{error_code}")
        self.status_code = status_code
        self.error_code = error_code


class Word(Enum):
    MISSING = "ContainerNotFound"


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code):
        super().__init__(f"message, {code}")
        self.code = code


class ServiceRequestError(Exception):
    """Of Azure's library, where nothing answers."""


class ClientAuthenticationError(Exception):
    """Of Azure's library; without a status where no store was asked."""


@pytest.fixture
def no_place(monkeypatch):
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_place")
@pytest.mark.parametrize(
    ("url", "error", "kind", "message"),
    [
        ("az://lake/x", HttpResponseError(403, "AuthenticationFailed"), StorageError, "access denied (Authenticat"),
        (
            "az://lake/x",
            HttpResponseError(404, Word.MISSING),
            ConfigError,
            "there is no container 'lake'. Create it, or",
        ),
        (
            "az://lake/x",
            ServiceRequestError("no such host"),
            StorageError,
            "the network and AZURE_STORAGE_ACCOUNT_NAME",
        ),
        ("az://lake/x", ClientAuthenticationError("tried"), StorageError, "found. Set AZURE_STORAGE_ACCOUNT_NAME with"),
        ("gs://lake/x", OSError("Forbidden: https://x\nno"), StorageError, "access denied. Check the credentials in"),
        ("gs://lake/x", HttpError(401), StorageError, "access denied. Check the credentials in the environment"),
        ("ftp://lake/x", NoCredentialsError(), StorageError, "found. Give them in the environment"),
    ],
)
def test_errors_of_azure_and_google_name_the_fix(url, error, kind, message):
    converted = errors.to_vectide_error(url, "read", error, 1)
    assert isinstance(converted, kind)
    assert message in str(converted)
    assert "AWS" not in str(converted)


def test_busy_responses_of_azure_and_google_are_transient():
    assert errors.is_transient(HttpResponseError(503, "ServerBusy"))
    assert errors.is_transient(HttpError(503))
    assert errors.is_transient(ServiceRequestError("no such host"))
    assert not errors.is_transient(HttpResponseError(403, "AuthorizationFailure"))
    assert not errors.is_transient(ClientAuthenticationError("tried"))


def test_a_refused_create_of_google_is_detected():
    assert errors.is_refused_create(FileExistsError("https://storage.googleapis.com/x"))  # gcsfs, for a 412
    assert errors.is_refused_create(HttpError(412))
    assert not errors.is_refused_create(HttpError(409))


def test_a_part_of_a_connection_string_is_a_secret_by_itself(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=lake;AccountKey=c2VjcmV0c2VjcmV0==;Other=x")
    assert errors.redact("signed with c2VjcmV0c2VjcmV0== for lake") == "signed with *** for lake"


def test_a_url_that_names_an_account_is_refused():
    with pytest.raises(ConfigError, match="write abfss://CONTAINER/PATH and set AZURE_STORAGE_ACCOUNT_NAME"):
        storage.read("abfss://lake@account.dfs.core.windows.net/table")
