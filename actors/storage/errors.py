"""Classifies errors of stores (transient, a user's mistake, or final) and translates them to this package's errors.

Used by storage and by the table for everything that an fsspec driver or `deltalake` raises. Messages from here never
contain a secret, whatever the response of the store. The trade-off: drivers share no error hierarchy, so this module
looks for HTTP statuses and error codes in each place where a driver keeps them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from actors.errors import AccessDenied, ConfigError, StorageError, TransientError, VectideError
from actors.storage import azure, providers

# errno and HTTP status of a store that is busy or unreachable. No other error is retried.
_BUSY_ERRNO = {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EIO}
_BUSY_STATUS = {408, 409, 429, 500, 502, 503, 504}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
_MISSING_BUCKET = {"NoSuchBucket", "InvalidBucketName", "ContainerNotFound"}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ClientAuthenticationError",  # of Azure's library without a request; a response of the store would have a status
    "DefaultCredentialsError",
    "RefreshError",
}
_CUT_OFF = {"ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError"}
_UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ServiceRequestError"}
_CONNECTION_FAILED = _UNREACHABLE | {
    "ConnectionError",
    "HTTPClientError",
    "ClientError",
    "ServerTimeoutError",
    "ServiceResponseError",
    "TransportError",
}

# Environment variables whose values are removed from every message.
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCOUNT_KEY|SAS|CREDENTIALS|CONNECTION_STRING", re.IGNORECASE)
_PART = re.compile(r"(?:AccountKey|SharedAccessSignature)=([^;]+)", re.IGNORECASE)
_SHORTEST_SECRET = 8
_USERINFO = re.compile(r"(?<=://)[^/@\s]*:[^@\s]*@")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_MESSAGE = 400

# A bucket's name contains neither `:` nor `@`, so a match there is a password, even with a slash in it.
_PASSWORD_IN_BUCKET = re.compile(r"(?:s3a?|gs|gcs)://(?!arn:)[^/@]*:[^@]*@")
_PASSWORD_IN_HOST = re.compile(r"[a-z0-9+.-]+://[^/@]*:[^/@]*@", re.IGNORECASE)
_SIGNED = re.compile(r"[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig)=", re.IGNORECASE)


def check_url(url: str) -> str:
    """Return `url` if it contains no credentials: every ledger, log and plan would repeat them.

    Raises:
        ConfigError: It contains some; the message does not repeat them.
    """
    protocol, separator, rest = url.partition("://")
    if separator and not rest.strip("/"):
        raise ConfigError(f"{url!r} names no place; add one after it, as in {protocol}://bucket/folder")
    if _PASSWORD_IN_BUCKET.match(url) or _PASSWORD_IN_HOST.match(url) or ("://" in url and _SIGNED.search(url)):
        raise ConfigError(
            f"a {protocol}:// URL has credentials in it, which every ledger and log would repeat. Take them out and "
            f"give them in the environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), in a profile or by a "
            f"role"
        )
    return url


def check_account(url: str) -> None:
    """Raise ConfigError for a URL with an account: both clients read the account from the environment."""
    protocol = url.partition("://")[0]
    if protocol in azure.PROTOCOLS and "@" in providers.bucket_of(url):
        raise ConfigError(
            f"{url!r} names an account, which here comes from the environment, for every client: write "
            f"{protocol}://CONTAINER/PATH and set AZURE_STORAGE_ACCOUNT_NAME"
        )


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error or its causes, or None."""
    for cause in _chain(error):
        for name in ("status", "code", "status_code"):
            value = getattr(cause, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
        value = _response(cause).get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(value, int):
            return value
    return None


def code_of(error: BaseException) -> str:
    """Return the store's own code of an error, such as `NoSuchBucket`; empty if it has none."""
    for cause in _chain(error):
        code = str(_response(cause).get("Error", {}).get("Code", "") or _azure_code(cause))
        if code and not code.isdigit():
            return code
    return ""


def _azure_code(error: BaseException) -> str:
    """Return the code of an error of Azure's library, which is an enumeration member if the library knows it."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _response(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def is_refused_create(error: BaseException) -> bool:
    """Return whether a store refused an exclusive create because the object exists.

    Drivers raise FileExistsError, or EINVAL caused by a 412 if the response of the store lacks a detail.
    """
    return isinstance(error, FileExistsError) or status_of(error) == 412


def is_missing_bucket(error: BaseException) -> bool:
    """Return whether the whole bucket is missing, and not only the object."""
    return code_of(error) in _MISSING_BUCKET


def is_expired(error: BaseException) -> bool:
    """Return whether a store refused credentials because they have expired."""
    return code_of(error) in _EXPIRED


def is_wordless(error: BaseException) -> bool:
    """Return whether a store refused without a reason: the response to a HEAD request has no body for one."""
    return status_of(error) in (400, 401, 403) and not code_of(error)


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed."""
    if isinstance(error, (TransientError, TimeoutError, ConnectionError)):
        return True
    if isinstance(error, VectideError):
        return False
    if _names(error) & _CUT_OFF:  # before the status: the driver's library sets a status 400 of its own
        return True
    status = status_of(error)
    if status is not None:
        return status in _BUSY_STATUS
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _BUSY_ERRNO
    names = _names(error)
    return bool(names & _CONNECTION_FAILED) and not names & _NO_CREDENTIALS


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for seen in _chain(error) for cls in type(seen).__mro__}


def redact(text: object) -> str:
    """Return a message of a library as one short line, without colours and without secrets of the environment."""
    line = " ".join(_COLOUR.sub("", str(text)).split())
    for name, value in os.environ.items():
        if _SECRET.search(name):
            for secret in (value, *_PART.findall(value)):  # parts of a connection string are secrets too
                if len(secret) >= _SHORTEST_SECRET:
                    line = line.replace(secret, "***")
    line = _USERINFO.sub("***@", line)
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ..."


def _place(url: str) -> str:
    store = providers.of(url)
    place = store.endpoint() if store else None
    return f" at {redact(place)}" if place else ""


def missing_bucket(url: str, what: str) -> ConfigError:
    """Return the error for a missing bucket."""
    store = providers.of(url)
    kind, variable = (store.BUCKET, f" and {store.PLACE}") if store else ("bucket", "")
    return ConfigError(
        f"cannot {what} {url!r}: there is no {kind} {providers.bucket_of(url)!r}{_place(url)}. Create it, or check its "
        f"name{variable}"
    )


def no_driver(url: str, error: ImportError) -> ConfigError:
    """Return the error for a driver that is not installed."""
    if store := providers.of(url):
        return ConfigError(
            f"{url!r} needs a driver that is not installed: pip install {store.PACKAGE}, on every machine that works on it"
        )
    return ConfigError(f"{url!r} needs a driver that is not installed: {error}")


def to_vectide_error(url: str, what: str, error: Exception, attempts: int) -> VectideError:
    """Return the error with the failed action, the reason and the fix.

    Args:
        url: URL of the action.
        what: A verb, such as "read".
        error: Error of the driver.
        attempts: Number of attempts.
    """
    if isinstance(error, VectideError) and not isinstance(error, TransientError):
        return error
    code, number = code_of(error), error.errno if isinstance(error, OSError) else None
    store = providers.of(url)
    if is_missing_bucket(error):
        return missing_bucket(url, what)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"cannot {what} {url!r}: the disk is full. Free some space and run the same command again")
    if number == errno.EFBIG:
        return StorageError(
            f"cannot {what} {url!r}: files that large are not allowed here. Raise the limit (ulimit -f, or the file "
            f"system's own), or lower run.unit_rows"
        )
    if is_expired(error):
        return StorageError(
            f"cannot {what} {url!r}: the credentials have expired ({code}). Renew them and run the same command "
            f"again: finished work is kept"
        )
    refused = isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM, errno.EROFS)
    refused = refused or (
        isinstance(error, OSError) and str(error).startswith("Forbidden: ")
    )  # the only detail from gcsfs
    if refused or status_of(error) in (401, 403):
        reason = f" ({code})" if code else ""
        return AccessDenied(
            f"cannot {what} {url!r}: access denied{reason}. Check the credentials in the environment and the rights of "
            f"this user, then run the same command again"
        )
    names = _names(error)
    if names & _NO_CREDENTIALS:
        fix = store.CREDENTIALS if store else "Give them in the environment"
        return AccessDenied(f"cannot {what} {url!r}: no credentials were found. {fix}")
    tries = f" after {attempts} tries" if attempts > 1 else ""
    if names & _UNREACHABLE:
        variable = f" and {store.PLACE}" if store else ""
        return StorageError(
            f"cannot {what} {url!r}{tries}: nothing answers{_place(url)}. Check the network{variable}, then run the same "
            f"command again: finished work is kept"
        )
    return StorageError(f"cannot {what} {url!r}{tries}: {type(error).__name__}: {redact(error)}")
