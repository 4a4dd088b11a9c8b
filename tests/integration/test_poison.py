"""Rows that kill their process or raise: found, set aside, and everything else is embedded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from deltalake import DeltaTable

from actors.encoders.spec import describe
from actors.tokenizer import Tokenizer
from pipeline.ledger import Ledger, run_names
from tests.integration.conftest import make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]


def token_ids(model, texts):
    return Tokenizer(describe(str(model))).tokenize(texts).ids.to_pylist()


def run_poisoned(job_file, **environment):
    command = [sys.executable, "-m", "tests.integration.poison_driver", str(job_file)]
    env = {**os.environ, "POISON_KILLS": "[]", "POISON_RAISES": "[]", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def write_job(tmp_path, corpus, model, **changes):
    job = make_job(corpus, tmp_path / "table", model, **changes)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    return path


def quarantine(table):
    (run,) = run_names(str(table))
    ledger = Ledger(str(table), run)
    return {row["id"]: row for row in ledger.quarantine(ledger.receipts().values()).to_pylist()}


def test_a_row_that_kills_and_a_row_that_raises_are_found_and_nothing_else_is_lost(tmp_path, tiny_model):
    source = rows(48)
    source[5]["text"] = "killer"
    source[30]["text"] = "raiser"
    corpus = write_corpus(tmp_path / "corpus", [source])
    job = write_job(tmp_path, corpus, tiny_model, run__max_quarantined=0.1, run__address="local")
    done = run_poisoned(
        job,
        POISON_KILLS=json.dumps(token_ids(tiny_model, ["title 5\n\nkiller"])),
        POISON_RAISES=json.dumps(token_ids(tiny_model, ["title 30\n\nraiser"])),
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["rows"], outcome["quarantined"]) == (46, 2)
    # Two of the whole unit, one of the part with the row, two of the row itself; an attempt may die before it says so.
    assert 5 <= outcome["deaths"] <= 12
    bad = quarantine(tmp_path / "table")
    assert {key: row["reason"] for key, row in bad.items()} == {"r5": "killed_process", "r30": "encode_failed"}
    assert "this text cannot be encoded" in bad["r30"]["error"]
    ids = DeltaTable(str(tmp_path / "table")).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{n}" for n in range(48) if n not in (5, 30))


def test_a_unit_that_kills_its_reader_is_given_up_in_one_sentence(tmp_path, tiny_model):
    source = rows(32)
    source[20]["text"] = "the reader dies"
    corpus = write_corpus(tmp_path / "corpus", [source])
    done = run_poisoned(write_job(tmp_path, corpus, tiny_model, run__address="local"), POISON_READER="1")
    assert done.returncode == 1
    assert "unit 1 of 2 failed: unit 1 has ended its process 4 times in the read stage" in done.stderr
    (run,) = run_names(str(tmp_path / "table"))
    assert Ledger(str(tmp_path / "table"), run).done() == {0}
