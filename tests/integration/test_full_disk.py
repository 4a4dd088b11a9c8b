"""A local disk that gets full in the middle of a run: one sentence, nothing published, and the same command resumes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.integration.conftest import make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]
# A disk of its own where the machine lets a user have one; elsewhere a limit on files, which refuses the same write.
SMALL_DISK = 'mount -t tmpfs -o size=1m none "$1" && {run}; echo "exit $?"; mount -o remount,size=64m "$1" && {run}'
SMALL_FILES = '(ulimit -f 300; {run}); echo "exit $?"; {run}'
RUN = '"$2" -m jobs backfill "$3"'


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


def test_a_full_disk_ends_in_one_sentence_and_the_same_command_resumes(tmp_path, tiny_model):
    chance = random.Random(0)
    source = rows(40)
    for number, row in enumerate(source):
        row["lang"] = chance.randbytes(60_000 if number >= 16 else 1_000).hex()
    corpus = write_corpus(tmp_path / "corpus", [source])
    disk = tmp_path / "disk"
    disk.mkdir()
    job = make_job(corpus, disk / "table", tiny_model, run__unit_rows=8)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    unshare, script = (["unshare", "-Urm"], SMALL_DISK) if may_mount() else ([], SMALL_FILES)
    command = [
        *unshare,
        "sh",
        "-c",
        script.format(run=RUN),
        "sh",
        str(disk),
        sys.executable,
        str(tmp_path / "job.yaml"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=240, check=False
    )
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    full = "the disk is full. Free some space" if unshare else "files that large are not allowed here"
    assert f"cannot write '{disk}/table/data/" in error
    assert full in error
    assert "The other units are kept; nothing was published" in error
    first, _, second = done.stdout.partition("exit 1\n")
    assert "published" not in first
    assert "published version 1" in second
    assert "40 rows from 40 source rows (0 quarantined, " in second
