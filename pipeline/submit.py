"""The same backfill, as a Ray job on a cluster.

Called by `jobs submit`. What is uploaded is a folder with the three packages and the job file, nothing else of the
checkout: no .git, no virtual environment, no data. The cluster's own environment brings the libraries.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

import actors
from actors import storage
from actors.errors import ConfigError
from pipeline.config import Job

PACKAGES = ("jobs", "pipeline", "actors")
POLL_S = 1.0
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")


def submit(job: Job, address: str, out: IO[str]) -> int:
    """Submit a backfill, follow its log, and wait for its end.

    Args:
        job: The job. Local paths in it are made absolute: they must mean the same place on the cluster's nodes.
        address: URL of the cluster's dashboard.
        out: Where the job's log goes.

    Returns:
        The exit code of the job.

    Raises:
        ConfigError: no dashboard answers at `address`.
    """
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="vectide-") as folder:
        stage(job, Path(folder))
        submission = client.submit_job(
            entrypoint="python -m jobs backfill job.yaml",
            runtime_env={"working_dir": folder, "env_vars": _environment()},
        )
    print(f"submitted {submission} to {address}", file=out, flush=True)
    return follow(client, submission, out)


def _client(address: str) -> JobSubmissionClient:
    if not re.match(r"https?://", address):
        raise ConfigError(f"--address {address!r} must be the URL of the cluster's dashboard, as in http://head:8265")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--address {address!r}: no Ray dashboard answers there ({error})") from error


def stage(job: Job, folder: Path) -> None:
    """Put what the job needs into a folder: the packages and the job file with absolute places."""
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


def _environment() -> dict[str, str]:
    """Settings that name places. Credentials are not passed on: they would stand in the dashboard's metadata."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def follow(client: JobSubmissionClient, submission: str, out: IO[str]) -> int:
    """Copy a job's log to `out` until it ends; its exit code."""
    shown = 0
    while True:
        status = client.get_job_status(submission)
        logs = client.get_job_logs(submission)
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
