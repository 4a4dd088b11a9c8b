"""What a test knows of an S3 server, and the fixture that gives it a place of its own there."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import boto3
import botocore.config
import pytest
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "tests"
WAIT_S = 60

# Whatever the machine has of its own must not decide a test.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 server on this machine."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """What a process needs to work on it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def client(self):
        """A plain client, to arrange and to look with other eyes than the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(connect_timeout=2, read_timeout=60, retries={"total_max_attempts": 1}),
        )

    def keys(self, url: str) -> list[str]:
        """Every key below a URL."""
        return keys(self, url)

    def put_many(self, names: list[str]) -> str:
        """Put small objects of these names into a bucket of their own, and say where.

        Unsigned, into a bucket that anybody may write: signing ten thousand requests takes longer than all the rest.
        """
        self.client().create_bucket(Bucket="many", ACL="public-read-write")

        def put(some: list[str]) -> None:
            connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=WAIT_S)
            for name in some:
                connection.request("PUT", f"/many/keys/{name}", body=b"x")
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
            connection.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, [names[first::8] for first in range(8)]))
        return "s3://many/keys"

    def make_bucket(self) -> None:
        """Wait until the server answers, and make the bucket of the tests."""
        client, deadline = self.client(), time.monotonic() + WAIT_S
        while not self._has_bucket(client):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server at {self.endpoint} did not come up")
            time.sleep(0.1)

    def _has_bucket(self, client) -> bool:
        # Asked first, because a gateway just after a crash answers it at once and answers the creation of a bucket later.
        try:
            client.head_bucket(Bucket=BUCKET)
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                with contextlib.suppress(BotoCoreError, ClientError):
                    client.create_bucket(Bucket=BUCKET)
        except BotoCoreError:
            return False
        return False


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process work on a server."""
    for name in (*_FOREIGN, "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    forget_clients()


def forget_clients() -> None:
    """Let the next call make its client anew, from the environment as it is then."""
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def lake(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty folder on the server, with the environment to reach it."""
    use(server, monkeypatch)
    yield f"s3://{BUCKET}/{secrets.token_hex(4)}"
    forget_clients()


def keys(server: Server, url: str) -> list[str]:
    """Every key below a URL."""
    _, _, place = url.partition("://")
    bucket, _, prefix = place.partition("/")
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def subprocess_environment(server: Server, **more: str) -> dict[str, str]:
    """The environment of a command that works on a server."""
    own = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**own, **server.environment(), **more}
