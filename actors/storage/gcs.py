"""Settings of Google Cloud Storage for its two clients: gcsfs, which is fsspec's driver, and the one inside `deltalake`.

Used by storage and by the table. Both find the same application default credentials: a file that
GOOGLE_APPLICATION_CREDENTIALS names, the login of `gcloud`, or the machine's service account. The trade-off: `deltalake`
reads files of service accounts and of users, and not those of workload identity federation.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from actors.storage import s3

PROTOCOLS: tuple[str, ...] = ("gs", "gcs")
PACKAGE = "gcsfs"
BUCKET = "bucket"
PLACE = "STORAGE_EMULATOR_HOST"
CREDENTIALS = "Set GOOGLE_APPLICATION_CREDENTIALS, or run where a service account gives them"
_KEY = ("client_email", "private_key", "private_key_id")  # parts of a service account's key
TRIES = 3  # on top of the driver's own six, which take half a minute together


def endpoint() -> str | None:
    """Where the store answers, if the environment names another place than Google's."""
    place = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if place in ("", "default"):
        return None
    return place if "://" in place else f"http://{place}"


def driver_options() -> dict[str, Any]:
    """What fsspec's driver is made with. Credentials are not among it: it finds them itself."""
    from aiohttp import ClientTimeout

    _before_import()
    timeout = ClientTimeout(sock_connect=10, sock_read=s3.ANSWER_S)
    return {"session_kwargs": {"timeout": timeout}, **({"token": "anon"} if endpoint() else {})}


def _before_import() -> None:
    # Read when the driver is imported. With it, each bucket is first asked over gRPC whether it is of a kind that wants
    # another protocol: a right that not everybody has, a minute where nothing answers, and another kind of create.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def adapt(fs: Any) -> None:  # noqa: ARG001  (each store has a function of this name)
    """Let the driver be quiet: it logs a traceback of each error that it raises, and we say what it means."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)


def has_bucket(fs: Any, bucket: str) -> bool:
    """Whether there is a bucket of this name; the driver does not say so when it misses an object in it.

    By a listing, which everybody who works on a table may ask for; the bucket itself is for its administrators.
    """
    try:
        fs.call("GET", "b/{}/o", bucket, maxResults=1)
    except FileNotFoundError:
        return False
    return True


def forget_clients() -> None:
    """Let fsspec's driver find its credentials anew at its next call."""
    _before_import()
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()


def table_options(url: str) -> dict[str, str]:  # noqa: ARG001  (each store has a function of this name)
    """What `deltalake` is told. It finds the credentials themselves where gcsfs does."""
    options = s3.retry_options()
    if place := endpoint():
        # Nobody's key: the one way to tell it where else to go, and not to ask Google for a token first.
        nobody = {"gcs_base_url": place, "disable_oauth": True, **dict.fromkeys(_KEY, "")}
        options["google_service_account_key"] = json.dumps(nobody)
        if place.startswith("http://"):
            options["allow_http"] = "true"
    elif file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        options["google_application_credentials"] = file
    return options
