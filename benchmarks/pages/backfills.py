"""Backfills in processes of their own: seconds by stage, and the peak memory of all their processes.

Memory is sampled from outside of the backfill's process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from actors.encoders.families.jina_v4_vision import Tower
from benchmarks.race.peers import ROOT
from benchmarks.race.session import group, peak_bytes
from benchmarks.scale.memory import NoModelStage
from benchmarks.scale.small import Stopwatch
from pipeline.execute import inline
from pipeline.execute.stages.encode import EncodeStage
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill

TASK = "retrieval.passage"
SAMPLE_S = 0.1
Facts = dict[str, Any]


class _Stage(EncodeStage):
    """An encode stage that can be asked for its encoder after the run."""

    made: list[EncodeStage] = []  # noqa: RUF012  (filled on purpose)

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.made.append(self)


def run_one(folder: Path, corpus: str, model: str, *, whole: bool) -> Facts:
    """Backfill in this process, and return rows and seconds by stage.

    Args:
        folder: Folder of the table.
        corpus: Folder of the source.
        model: Checkpoint.
        whole: Encode, and divide its seconds into the tower and the rest; otherwise the vectors come from `NoModel`.
    """
    looks_s: list[float] = []
    look = Tower.__call__

    def timed(tower: Tower, pictures: Any) -> Any:
        started = time.perf_counter()
        found = look(tower, pictures)
        looks_s.append(time.perf_counter() - started)
        return found

    setattr(Tower, "__call__", timed)  # noqa: B010  (a plain assignment is what mypy refuses)
    setattr(inline, "EncodeStage", _Stage if whole else NoModelStage)  # noqa: B010
    document = {
        "source": {"uri": corpus},
        "table": {"uri": str(folder / "table")},
        "encoder": {"model": model, "task": TASK},
        "run": {"address": "inline"},
    }
    outcome = backfill(parse_job(document), Stopwatch())
    spent = dict(outcome.seconds)
    if whole:
        # Micro-batches run side by side on all cores, and both numbers are sums over their threads.
        share, encode_s = sum(looks_s) / _Stage.made[0].encoder.stats.seconds, spent["encode"]
        spent |= {"vision": share * encode_s, "language": (1 - share) * encode_s}
    return {"rows": outcome.rows, "quarantined": outcome.quarantined, "units": outcome.units, "stage_s": spent}


def _pss_bytes(pid: int) -> int:
    """Return the memory of a process, with its share of what it shares; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def _decodes(pid: int) -> bool:
    try:
        return b"actors.images.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def measured(folder: Path, corpus: Path, model: Path, *, whole: bool) -> Facts:
    """Backfill in a process of its own; return its facts with the peaks of memory, sampled."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.pages.backfills",
        str(folder),
        str(corpus),
        str(model),
        str(int(whole)),
    ]
    peak = child = 0
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True)
        try:
            while process.poll() is None:
                pids = group(process.pid)
                peak = max(peak, sum(map(_pss_bytes, pids)))
                child = max([child, *(peak_bytes(pid) for pid in pids if _decodes(pid))])
                time.sleep(SAMPLE_S)
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"the backfill of {corpus} failed: {(folder / 'err').read_text()[-2000:]}")
    answer = (folder / "out").read_text().rpartition("RESULT ")[2]
    return {**json.loads(answer), "peak_mib": peak >> 20, "child_mib": child >> 20}


if __name__ == "__main__":
    print("RESULT " + json.dumps(run_one(Path(sys.argv[1]), sys.argv[2], sys.argv[3], whole=sys.argv[4] == "1")))
