"""`vectide curate` from the command line: killed while it reads, run again, and every pair is there once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.curate.jobs import rows_of, write_pairs

ROOT = Path(__file__).parents[2]
ROWS, UNIT_ROWS = 3000, 50
_DONE = "[!.]*.parquet"


@pytest.mark.slow
def test_a_killed_curation_is_finished_by_the_same_command(tmp_path):
    write_pairs(
        tmp_path / "pairs" / "0.parquet", [(f"{row:04d}", f"question {row % 1000}", "an answer") for row in range(ROWS)]
    )
    job = {
        "pairs": {"uri": "pairs/*.parquet", "id": "id"},
        "steps": ["dedup", "overlap"],
        "table": {"uri": "table"},
        "run": {"address": "inline", "unit_rows": UNIT_ROWS},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "jobs", "curate", "job.yaml", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    units = tmp_path / "table" / "_vectide" / "curation" / "rows"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        while not any(units.glob(_DONE)):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    read = len(list(units.glob(_DONE)))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < read < ROWS // UNIT_ROWS
    assert (result["rows"], result["kept"], result["units_read"]) == (ROWS, 1000, ROWS // UNIT_ROWS - read)
    rows = rows_of(tmp_path)
    assert len(rows) == ROWS
    assert {row["duplicate_of"] for row in rows.values() if not row["kept"]} == {f"{row:04d}" for row in range(1000)}
