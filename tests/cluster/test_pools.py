"""GPU nodes that join late, fail during the run and are replaced, and the metrics of that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from actors.errors import ClusterStalled
from pipeline.execute.metrics import METRICS
from tests.integration.conftest import make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]
UNITS = 24


@pytest.fixture(scope="module")
def driven(tmp_path_factory, tiny_model):
    """One run on a cluster with a T4 from the start, an H100 that joins and is removed, and another H100.

    It may have three encoders of half a GPU each, and there is never space for more than two.
    """
    folder = tmp_path_factory.mktemp("pool")
    source = rows(16 * UNITS)
    source[7]["text"] = source[7]["title"] = ""
    source[9]["id"] = None
    run = {"unit_rows": 16, "replicas": {"min": 0, "max": 3}, "gpus_per_replica": 0.5}
    run |= {"labels": {"vectide.test/gpu": "in(H100, A100)"}, "max_quarantined": 0.1}
    corpus = write_corpus(folder / "corpus", [source], row_group_size=16)
    job = make_job(corpus, folder / "table", tiny_model, run=run)
    (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "tests.cluster.pool_driver", str(folder / "job.yaml"), str(folder / "table")]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"POOL_NOTES": str(folder / "notes"), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    # With Ray's defaults a failed node and a metric would be seen after ten seconds or more. An export may take half of
    # its interval, and is lost if it takes longer: the interval must not be too short for a busy machine.
    env |= {"RAY_health_check_period_ms": "500"}
    env |= {"RAY_health_check_failure_threshold": "6", "RAY_metrics_report_interval_ms": "4000"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "notes.result").read_text())
    assert result["outcome"] is not None, result["error"]
    return {**result, "table": str(folder / "table")}


def test_a_run_waits_for_gpu_nodes_and_survives_their_loss(driven):
    assert driven["before"] == 0  # a GPU with another label was free all the time
    outcome = driven["outcome"]
    assert outcome["rows_read"] == 16 * UNITS
    assert outcome["rows"] + outcome["quarantined"] == 16 * UNITS
    ids = DeltaTable(driven["table"]).to_pyarrow_table(columns=["id"]).column("id").to_pylist()
    assert len(set(ids)) == len(ids) == outcome["rows"]
    nodes = list(dict.fromkeys(note["node"] for note in driven["notes"]))
    assert len(nodes) == 2  # the removed node and its replacement


def test_two_encoders_of_half_a_gpu_share_a_gpu(driven):
    first, second = dict.fromkeys(note["node"] for note in driven["notes"])
    pids = {node: {note["pid"] for note in driven["notes"] if note["node"] == node} for node in (first, second)}
    assert len(pids[first]) == 2
    # The third encoder may start before one that is restarted with its units; it then ends when it has no more units.
    assert len(pids[second]) in (2, 3)


def series(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and value of each exported line, by the name that Ray writes."""
    lines: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            matched = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
            assert matched is not None, line
            name, labels, value = matched.groups()
            lines.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return lines


def test_the_exported_metrics_equal_the_outcome(driven):
    outcome, exported_series = driven["outcome"], series(driven["metrics"])
    expected = {
        "vectide_rows_read_total": outcome["rows_read"],
        "vectide_documents_total": outcome["documents"],
        "vectide_rows_written_total": outcome["rows"],
        "vectide_tokens_total": outcome["tokens"],
        "vectide_encoded_texts_total": outcome["encoded"],
    }
    for name, value in expected.items():
        ((labels, exported),) = exported_series[f"ray_{name}"]
        assert exported == value, name
        assert (labels["table"], labels["run"]) == (driven["table"], outcome["run"])
    quarantined = {labels["reason"]: value for labels, value in exported_series["ray_vectide_quarantined_rows_total"]}
    assert sum(quarantined.values()) == outcome["quarantined"] > 0
    ((state, units),) = [(labels["state"], value) for labels, value in exported_series["ray_vectide_units_total"]]
    assert (state, units) == ("done", UNITS)
    stages = {labels["stage"]: value for labels, value in exported_series["ray_vectide_stage_seconds_total"]}
    assert stages.keys() == {"read", "tokenize", "encode", "write"}
    assert sum(value for _, value in exported_series["ray_vectide_micro_batches_total"]) > 0
    deaths = sum(value for _, value in exported_series.get("ray_vectide_process_deaths_total", []))
    assert deaths == outcome["deaths"]


def test_every_exported_metric_is_declared(driven):
    names = {re.sub(r"_(bucket|count|sum)$", "", name.removeprefix("ray_")) for name in series(driven["metrics"])}
    assert names <= METRICS.keys()


def test_a_run_without_gpu_nodes_stops_with_one_error_and_resumes(tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(48)])
    run = {"address": "local", "unit_rows": 8, "replicas": {"min": 0, "max": 2}, "gpus_per_replica": 1}
    job = tmp_path / "job.yaml"

    def backfill(env: dict[str, str], **changes: object) -> subprocess.CompletedProcess[str]:
        document = make_job(corpus, tmp_path / "table", tiny_model, run={**run, **changes})
        job.write_text(yaml.safe_dump(document.model_dump(mode="json", exclude_none=True)))
        command = [sys.executable, "-m", "jobs", "backfill", str(job)]
        env |= {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)

    stalled = backfill({"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "6"})
    assert stalled.returncode == ClusterStalled.exit_code
    (error,) = [line for line in stalled.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(
        "error: no progress for 6 seconds: encoders need 1 GPUs each, and the cluster did not have them"
    )
    assert error.endswith("run the same command again: it resumes the run")
    assert "Traceback" not in stalled.stderr
    assert not DeltaTable.is_deltatable(str(tmp_path / "table"))
    done = backfill({}, replicas=1, gpus_per_replica=0)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "table").glob("_vectide/runs/*"))) == 1
    ids = DeltaTable(str(tmp_path / "table")).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(48))
