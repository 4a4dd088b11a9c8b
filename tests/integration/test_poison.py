"""Rows that kill their process, hang or raise are quarantined, and all other rows are embedded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from actors.encoders.spec import describe
from actors.text.tokenizer import Tokenizer
from pipeline.ledger.ledger import Ledger, run_names
from tests.integration.conftest import make_job, rows, write_corpus

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def token(model, letter):
    """Return the id of a token that no text of `rows` has."""
    return Tokenizer(describe(str(model))).tokenize([letter]).ids[0].as_py()[1]


def run_poisoned(job_file, **poison):
    command = [sys.executable, "-m", "tests.integration.poison_driver", str(job_file)]
    env = {**os.environ, "POISON": json.dumps(poison)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=540, check=False)


def outcome_of(done):
    """Return the outcome that the driver printed; Ray may print after it."""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


def write_job(tmp_path, corpus, model, **changes):
    job = make_job(corpus, tmp_path / "table", model, **{"run__address": "local", **changes})
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    return path


def quarantine(table):
    (run,) = run_names(str(table))
    ledger = Ledger(str(table), run)
    return {row["id"]: row for row in ledger.quarantine(ledger.receipts().values()).to_pylist()}


def ids_of(table):
    return sorted(DeltaTable(str(table)).to_pyarrow_table(columns=["id"])["id"].to_pylist())


def test_rows_that_kill_hang_or_raise_are_quarantined_and_no_others(tmp_path, tiny_model):
    source = rows(48)
    for row, letter in ((5, "q"), (22, "v"), (30, "j")):
        source[row]["text"] = letter
    corpus = write_corpus(tmp_path / "corpus", [source])
    done = run_poisoned(
        write_job(
            tmp_path, corpus, tiny_model, run__max_quarantined=0.1, run__row_timeout_s=4, chunking={"mode": "late"}
        ),
        kills=[token(tiny_model, "q")],
        hangs=[token(tiny_model, "v")],
        raises=[token(tiny_model, "j")],
    )
    assert done.returncode == 0, done.stderr
    outcome = outcome_of(done)
    assert (outcome["rows"], outcome["quarantined"]) == (45, 3)
    # The killing row: two deaths of the whole unit, two of the row itself. The hanging row: its own deaths, because the
    # row that raises has narrowed its unit already and hangs are reported. An attempt may die before it records its range.
    assert 5 <= outcome["deaths"] <= 12
    quarantined = quarantine(tmp_path / "table")
    assert {key: row["reason"] for key, row in quarantined.items()} == {
        "r5": "killed_process",
        "r22": "timed_out",
        "r30": "encode_failed",
    }
    assert "this text cannot be encoded" in quarantined["r30"]["error"]
    assert "run.row_timeout_s" in quarantined["r22"]["error"]
    assert ids_of(tmp_path / "table") == sorted(f"r{n}" for n in range(48) if n not in (5, 22, 30))
