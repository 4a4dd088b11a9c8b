"""Settings of Google Cloud Storage for its two clients: gcsfs, which is fsspec's driver, and the one inside `deltalake`.

Used by storage and by the table. Both find the same application default credentials: a file that
GOOGLE_APPLICATION_CREDENTIALS names, the login of `gcloud`, or the machine's service account. The trade-off: `deltalake`
reads files of service accounts and of users, but not those of workload identity federation.
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
    """Return the endpoint of the store if the environment names another one than Google's."""
    place = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if place in ("", "default"):
        return None
    return place if "://" in place else f"http://{place}"


def driver_options() -> dict[str, Any]:
    """Return the options of fsspec's driver, without credentials, which it finds itself."""
    from aiohttp import ClientTimeout

    _before_import()
    timeout = ClientTimeout(sock_connect=10, sock_read=s3.ANSWER_S)
    return {"session_kwargs": {"timeout": timeout}, **({"token": "anon"} if endpoint() else {})}


def _before_import() -> None:
    # Read when the driver is imported. If on, the driver first requests the kind of each bucket over gRPC. That needs a
    # permission that many users lack, takes a minute if the endpoint does not respond, and changes the create.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def adapt(fs: Any) -> None:  # noqa: ARG001  (each store has a function of this name)
    """Turn off the driver's log: it has a traceback of each raised error, which this package reports."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)


def has_bucket(fs: Any, bucket: str) -> bool:
    """Return whether there is a bucket of this name: the driver reports a missing bucket as a missing object.

    Uses a listing, which all users of a table may do; only administrators may read the bucket's own data.
    """
    try:
        fs.call("GET", "b/{}/o", bucket, maxResults=1)
    except FileNotFoundError:
        return False
    return True


def forget_clients() -> None:
    """Make fsspec's driver find its credentials again at its next call."""
    _before_import()
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()


def table_options(url: str) -> dict[str, str]:  # noqa: ARG001  (each store has a function of this name)
    """Return the options for `deltalake`. It finds the credentials itself, in the same places as gcsfs."""
    options = s3.retry_options()
    if place := endpoint():
        # An empty key is the only way to set another endpoint without a token request to Google.
        empty_key = {"gcs_base_url": place, "disable_oauth": True, **dict.fromkeys(_KEY, "")}
        options["google_service_account_key"] = json.dumps(empty_key)
        if place.startswith("http://"):
            options["allow_http"] = "true"
    elif file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        options["google_application_credentials"] = file
    return options
