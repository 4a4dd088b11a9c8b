"""The same run, as a Ray job on a cluster.

Called by `jobs submit`. What is uploaded is a folder with the three packages and the job file, nothing else of the
checkout: no .git, no virtual environment, no data. The cluster's own environment brings the libraries. A job is named by
what it would do, so that a second submit finds the first one while it runs, and follows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import actors
from actors import storage
from actors.errors import ConfigError, InvariantBroken, VectideError
from pipeline.job.config import Job

PACKAGES = ("jobs", "pipeline", "actors")
POLL_S = 1.0
_SILENT_POLLS = 60  # how long a dashboard may be away before we stop following
_TRIES = 5
_PASSED_ON = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "STORAGE_EMULATOR_HOST",
)


def submit(job: Job, address: str, out: IO[str], *, command: str = "backfill", detach: bool = False) -> int:
    """Submit a job, or find it where it runs already; follow its log, and wait for its end.

    Args:
        job: The job. Local paths in it are made absolute: they must mean the same place on the cluster's nodes.
        address: URL of the cluster's dashboard.
        out: Where the job's log goes.
        command: `backfill` or `refresh`.
        detach: Leave as soon as it is submitted.

    Returns:
        The exit code of the job; 0 when detached.

    Raises:
        ConfigError: no dashboard answers at `address`, or it wants a token that is not here.
        VectideError: the cluster refused the job, or was out of sight for too long.
    """
    client = _client(address)
    try:
        submission, is_new = _submit(client, job, command)
    except (RuntimeError, OSError) as error:
        raise VectideError(f"{address} did not take the job: {error}") from error
    said = f"submitted {submission} to {address}" if is_new else f"{submission} runs already at {address}"
    print(said, file=out, flush=True)
    if detach:
        print(f"the same command without --detach follows it; ray job stop {submission} ends it", file=out, flush=True)
        return 0
    return follow(client, submission, out)


def _client(address: str) -> JobSubmissionClient:
    if not re.match(r"https?://", address):
        raise ConfigError(f"--address {address!r} must be the URL of the cluster's dashboard, as in http://head:8265")
    token = _token()
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            # Without RAY_AUTH_MODE=token Ray's client keeps a token that it has to itself, though a cluster that
            # finds one asks for it.
            if token is None or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
                raise
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError:
        found = "the one that was found here is not it" if token else "none was found here"
        raise ConfigError(
            f"--address {address!r} asks for the cluster's token, and {found}. Put it into RAY_AUTH_TOKEN, into a file "
            f"named by RAY_AUTH_TOKEN_PATH, or into ~/.ray/auth_token; on the head, `ray get-auth-token` prints it"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"--address {address!r}: no Ray dashboard answers there ({error})") from error


def _token() -> str | None:
    """The cluster's token, from where Ray looks for it, in Ray's order. It goes into a header and nowhere else.

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names a file that cannot be read; Ray itself would abort the process.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        token = (Path(named) if named else Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
    except OSError as error:
        if named:
            raise ConfigError(
                f"RAY_AUTH_TOKEN_PATH {named!r} cannot be read: {error.strerror}; name the file"
            ) from None
        return None
    return token or None


def _submit(client: JobSubmissionClient, job: Job, command: str) -> tuple[str, bool]:
    """The job's id, and whether it was submitted just now."""
    with tempfile.TemporaryDirectory(prefix="vectide-") as folder:
        name = job_name(stage(job, Path(folder)), command)
        for left in reversed(range(_TRIES)):
            number, running = _last(client, name)
            if running:
                return f"{name}-{number}", False
            submission = f"{name}-{number + 1}"
            try:
                client.submit_job(
                    entrypoint=f"python -m jobs {command} job.yaml",
                    submission_id=submission,
                    runtime_env={"working_dir": folder, "env_vars": _environment()},
                )
            except RuntimeError:
                # Somebody else was faster, or a cluster that has just started is not ready yet: look again.
                if not left:
                    raise
                time.sleep(POLL_S)
            else:
                return submission, True
    raise InvariantBroken("submit ended without an answer")


def job_name(document: dict[str, Any], command: str) -> str:
    """What a job is called on a cluster: the same for the same job and command, whatever the source holds today, for the
    run that is under way is the one that a second call wants."""
    made_of = json.dumps([command, document], sort_keys=True).encode()
    return f"vectide-{command}-{hashlib.sha256(made_of).hexdigest()[:12]}"


def _last(client: JobSubmissionClient, name: str) -> tuple[int, bool]:
    """The highest number that a job of this name has had, 0 for none, and whether that one has not ended."""
    numbered = {}
    for details in client.list_jobs():
        if match := re.fullmatch(rf"{re.escape(name)}-(\d+)", details.submission_id or ""):
            numbered[int(match.group(1))] = JobStatus(details.status)
    if not numbered:
        return 0, False
    number = max(numbered)
    return number, not numbered[number].is_terminal()


def stage(job: Job, folder: Path) -> dict[str, Any]:
    """Put what the job needs into a folder: the packages, and the job file with absolute places, which is returned."""
    root = Path(actors.__file__).parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    document = job.model_dump(mode="json", exclude_none=True)
    for section in ("source", "table"):
        document[section]["uri"] = storage.absolute(document[section]["uri"])
    if Path(job.encoder.model).is_dir():
        document["encoder"]["model"] = str(Path(job.encoder.model).absolute())
    document["run"]["address"] = "auto"
    (folder / "job.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    found: dict[str, Any] = document
    return found


def _environment() -> dict[str, str]:
    """Settings that name places. Credentials are not passed on: they would stand in the dashboard's metadata."""
    found = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {name: value for name, value in found.items() if not urlsplit(value).password}


def follow(client: JobSubmissionClient, submission: str, out: IO[str]) -> int:
    """Copy a job's log to `out` until it ends; its exit code.

    Raises:
        VectideError: the dashboard was out of sight for too long.
    """
    shown = silent = 0
    while True:
        try:
            status = client.get_job_status(submission)
            logs = client.get_job_logs(submission)
            silent = 0
        except (RuntimeError, OSError) as error:
            silent += 1
            if silent >= _SILENT_POLLS:
                raise VectideError(
                    f"{submission} is out of sight ({error}). It goes on there; the same command follows it again"
                ) from error
            time.sleep(POLL_S)
            continue
        if len(logs) > shown:
            out.write(logs[shown:])
            out.flush()
            shown = len(logs)
        if status.is_terminal():
            break
        time.sleep(POLL_S)
    info = client.get_job_info(submission)
    print(f"{submission}: {status.value.lower()}", file=out, flush=True)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if status is JobStatus.SUCCEEDED else 1
