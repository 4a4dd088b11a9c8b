"""Workers of every stage are killed, a unit fits neither memory nor disk, and units kill or hang their process."""

from __future__ import annotations

from pipeline.ledger.ledger import Ledger, run_names
from tests.integration.conftest import rows, write_corpus
from tests.integration.test_poison import ids_of, outcome_of, run_poisoned, write_job


def test_killed_workers_of_any_stage_neither_lose_nor_duplicate_rows(tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(96)])
    (tmp_path / "dead").mkdir()
    units = {"read": [0, 3, 7], "encode": [1, 4, 7], "write": [2, 5, 8]}
    done = run_poisoned(
        write_job(tmp_path, corpus, tiny_model, run__unit_rows=8), units=units, folder=str(tmp_path / "dead")
    )
    assert done.returncode == 0, done.stderr
    outcome = outcome_of(done)
    assert (outcome["rows"], outcome["quarantined"]) == (96, 0)
    killed = {f"{stage}-{unit}" for stage, numbers in units.items() for unit in numbers}
    assert {path.name for path in (tmp_path / "dead").iterdir()} == killed
    assert outcome["deaths"] == len(killed)
    assert ids_of(tmp_path / "table") == sorted(f"r{number}" for number in range(96))


def test_a_unit_that_fits_neither_memory_nor_disk_stops_with_one_error(tmp_path, tiny_model):
    source = rows(8)
    for row in source:
        row["lang"] = "x" * (12 << 20)  # the unit is 96 MiB
    job = write_job(tmp_path, write_corpus(tmp_path / "corpus", [source]), tiny_model)
    # With this threshold Ray considers any disk full.
    options = {"object_store_memory": 80_000_000, "_system_config": {"local_fs_capacity_threshold": 0.0001}}
    full = run_poisoned(job, ray=options)
    assert full.returncode == 1
    (error,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "the local disk of a node is full: Ray writes there what does not fit into its object store" in error
    assert "then run the same command again: finished work is kept" in error


def test_a_unit_that_kills_its_reader_stops_with_one_error(tmp_path, tiny_model):
    source = rows(32)
    source[20]["text"] = "the reader dies"
    corpus = write_corpus(tmp_path / "corpus", [source])
    done = run_poisoned(write_job(tmp_path, corpus, tiny_model), reader="reader dies")
    assert done.returncode == 1
    assert "unit 1 of 2 failed: unit 1 has ended its process 4 times in the read stage" in done.stderr
    (run,) = run_names(str(tmp_path / "table"))
    assert Ledger(str(tmp_path / "table"), run).done() == {0}


def test_units_that_hang_while_reading_or_writing_stop_and_run_later(tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(64)])
    job = write_job(tmp_path, corpus, tiny_model, run__row_timeout_s=4)
    stuck = run_poisoned(job, stuck={"read": [1], "write": [2]})
    assert stuck.returncode == 1
    for unit, stage in ((1, "read"), (2, "write")):
        message = f"unit {unit} has ended its process 2 times in the {stage} stage because there was no progress"
        assert f"unit {unit}: {message} for longer than run.row_timeout_s" in stuck.stderr
    (run,) = run_names(str(tmp_path / "table"))
    assert Ledger(str(tmp_path / "table"), run).done() == {0, 3}
    again = run_poisoned(job)
    assert again.returncode == 0, again.stderr
    assert outcome_of(again)["deaths"] == 0
    assert ids_of(tmp_path / "table") == sorted(f"r{number}" for number in range(64))
