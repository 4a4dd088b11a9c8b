"""The command line: options, exit codes, output, and one message for an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import app, main
from pipeline.execute.progress import Outcome
from tests.integration.conftest import make_job, rows, write_corpus

ROOT = Path(__file__).parents[2]

# Every command with its options. Scripts of users depend on them: list each change in CHANGELOG.md.
COMMANDS = {
    "plan": {"--set", "--source", "--table", "--model", "--price-per-hour", "--tokens-per-second", "--json"},
    "backfill": {"--set", "--source", "--table", "--model", "--retry-quarantined"},
    "refresh": {
        "--set",
        "--source",
        "--table",
        "--model",
        "--no-publish",
        "--foreign-commits",
        "--retry-quarantined",
        "--min-agreement",
        "--queries",
        "--judgements",
        "--late",
    },
    "versions": {"--json"},
    "rollback": {"--to"},
    "diff": {"--json"},
    "changes": {"--since", "--out", "--json"},
    "compact": {"--target", "--address"},
    "vacuum": {"--keep", "--unfinished", "--dry-run", "--json"},
    "search": {
        "-k",
        "--where",
        "--late",
        "--candidates",
        "--version",
        "--model",
        "--adapter",
        "--image",
        "--pages-out",
        "--questions",
        "--out",
        "--address",
        "--cache-size",
        "--no-cache",
        "--json",
    },
    "mine": {
        "--pairs",
        "--out",
        "--query",
        "--passage",
        "--passage-id",
        "--id",
        "--negatives",
        "--ranks",
        "--max-share",
        "--absolute-margin",
        "--min-score",
        "--max-score",
        "--sampling",
        "--seed",
        "--cross-encoder",
        "--cross-margin",
        "--max-missing",
        "--version",
        "--model",
        "--cache-size",
        "--json",
    },
    "train": {"--set", "--json"},
    "soup": {"--out", "--weights", "--method", "--model", "--json"},
    "negation": {
        "--out",
        "--anchor",
        "--entailment",
        "--by",
        "--wordnet",
        "--endpoint",
        "--endpoint-model",
        "--json",
    },
    "evaluate": {
        "--queries",
        "--judgements",
        "--beir",
        "--corpus",
        "--code",
        "--chunking",
        "--split",
        "--sts",
        "--negation",
        "--alignment",
        "--parallel",
        "--needle",
        "--tasks",
        "--dry-run",
        "--prefetch",
        "--tokens-per-second",
        "--price-per-hour",
        "--set",
        "--version",
        "--against",
        "--dims",
        "--precision",
        "--model",
        "--address",
        "--cache-size",
        "--out",
        "--json",
    },
    "curate": {"--set", "--view", "--json"},
    "status": {"--json"},
    "quarantine": {"--run", "--reason", "--limit", "--json"},
    "report": {"--out", "--run"},
    "submit": {"--address", "--command", "--detach", "--set"},
    "schedule": {"--target", "--cron", "--on-calendar", "--command", "--rayjob", "--set"},
    "watch": {"--every", "--command", "--set"},
    "doctor": {"--set", "--json"},
}


def vectide(*arguments):
    """Run a command in its own process."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def vectide_in_process(monkeypatch, capsys):
    """Return a function that runs a command in this process, which is faster; it returns the output and the exit code."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["vectide", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as system_exit:
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(system_exit.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory, tiny_model):
    """Return a job file, its table, and the result of its backfill."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_corpus(folder / "corpus", [rows(20)])
    job = make_job(corpus, folder / "table", tiny_model)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    return path, folder / "table", vectide("backfill", path)


def test_commands_and_options_do_not_change():
    group: Any = typer.main.get_command(app)
    commands = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        for name, command in group.commands.items()
    }
    assert commands == COMMANDS


def test_a_backfill_prints_its_outcome_and_exits_with_0(backfilled):
    _, table, done = backfilled
    assert done.returncode == 0, done.stderr
    assert f"published version 1 of {table}: 20 rows from 20 source rows (0 quarantined, 20 encoded)" in done.stdout
    stages = "read .*, tokenize .*, encode .*, write .*"
    assert re.search(rf"KiB in 2 files; all workers together: {stages}; padding 0.0%\n", done.stdout)
    assert "2/2 units, 20 rows" in done.stderr


def test_a_second_backfill_has_nothing_to_do(backfilled):
    path, table, _ = backfilled
    done = vectide("backfill", path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"nothing left to do: {table} already holds this run")
    assert "starting Ray" not in done.stderr


def test_search_and_status_print_json(vectide_in_process, backfilled):
    _, table, _ = backfilled
    done = vectide_in_process("search", table, "title 3\n\ntext number 3", "-k", 2, "--where", "lang = 'l0'", "--json")
    hits = json.loads(done.stdout)
    assert [hits[0]["id"], len(hits), hits[0]["columns"]["lang"]] == ["r3", 2, "l0"]
    state = json.loads(vectide_in_process("status", table, "--json").stdout)
    assert (state["version"], state["rows"], state["runs"][0]["units_done"]) == (1, 20, 2)
    assert "version 1, 20 rows" in vectide_in_process("status", table).stdout
    printed = vectide_in_process("search", table, "title 3")
    assert "r3" in printed.stdout
    assert "the table has no texts to show: set table.keep_text: true in the job file" in printed.stderr


def test_brackets_are_printed_as_they_are_and_lines_are_not_wrapped(
    vectide_in_process, backfilled, tmp_path, monkeypatch
):
    table = tmp_path / "[v1] x[/y]"
    shutil.copytree(backfilled[1], table)
    monkeypatch.setenv("COLUMNS", "40")
    assert f"{table}: version 1, 20 rows, 2 files, " in vectide_in_process("status", table).stdout
    assert re.search(r"^  weights_sha256: [0-9a-f]{64}$", vectide_in_process("status", table).stdout, re.MULTILINE)
    assert vectide_in_process("quarantine", table).stdout == f"{table}, version 1: 0 rows quarantined\n"


def test_a_plan_writes_nothing(vectide_in_process, backfilled, tmp_path):
    path, _, _ = backfilled
    table = tmp_path / "elsewhere"
    done = vectide_in_process(
        "plan", path, "--table", table, "--price-per-hour", 3, "--tokens-per-second", 1000, "--json"
    )
    estimate = json.loads(done.stdout)
    assert (estimate["shards"], estimate["rows"], estimate["rows_exact"], estimate["units"]) == (1, 20, True, 2)
    assert estimate["cost"] == pytest.approx(estimate["seconds"] / 1200)
    assert not table.exists()
    measured = vectide_in_process("plan", path, "--table", table)
    assert "measured on this machine" in measured.stdout


def test_a_plan_of_a_published_run_has_no_units_left(vectide_in_process, backfilled):
    path, table, _ = backfilled
    estimate = json.loads(vectide_in_process("plan", path, "--tokens-per-second", 1000, "--json").stdout)
    assert (estimate["units"], estimate["units_done"], estimate["seconds"]) == (2, 2, 0)
    assert estimate["run"] == json.loads(vectide_in_process("status", table, "--json").stdout)["runs"][0]["run"]


@pytest.mark.ray
def test_the_doctor_runs_all_checks_and_leaves_no_files(vectide_in_process, backfilled, tmp_path):
    path, _, _ = backfilled
    done = vectide("doctor", path, "--set", f"table.uri={tmp_path / 'a' / 'b'}", "--set", "run.address=local", "--json")
    levels = {finding["what"]: finding["level"] for finding in json.loads(done.stdout)}
    assert done.returncode == 0
    assert levels.keys() >= {
        "python",
        "libraries",
        "processor",
        "kernels",
        "memory",
        "gpus",
        "model",
        "source",
        "storage",
        "ray",
    }
    assert levels["storage"] == levels["source"] == levels["ray"] == "ok"
    assert list(tmp_path.iterdir()) == []
    failed = vectide_in_process("doctor", path, "--set", "encoder.model=/nowhere", "--set", "source.uri=/nowhere/*")
    assert failed.returncode == 1
    assert "matches no file" in failed.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["backfill", "nowhere.yaml"], 2, "cannot read the job file 'nowhere.yaml'"),
        (["backfill", "--source", "a"], 2, "table: is required"),
        (["backfill", "{job}", "--set", "encoder.dmi=3"], 2, "did you mean 'dim'"),
        (["backfill", "{job}", "--set", "source.uri=/nowhere/*.parquet"], 2, "matches no file"),
        (["backfill", "{job}", "--set", "encoder.model=/nowhere"], 2, "/nowhere"),
        (
            ["backfill", "{job}", "--set", "encoder.max_tokens=9"],
            1,
            "Vectors of two models or settings are never mixed",
        ),
        (["search", "/nowhere", "x"], 2, "there is no table at '/nowhere'"),
        (["search", "{table}", "x", "--where", "a; drop table b"], 2, "a; drop table b"),
        (["search", "{table}", "x", "--version", "99"], 2, "has no version 99"),
        (["diff", "{table}", "1", "9"], 2, "has no version 9"),
        (["rollback", "{table}", "--to", "9"], 2, "has no version 9"),
        (["status", "/nowhere"], 2, "there is no table and no run"),
        (["submit", "{job}", "--address", "here"], 2, "must be the URL"),
        (["search", "{table}", "x", "-k", "0"], 2, "-k"),
        (["search", "{table}", " \t"], 2, "is empty or only white space"),
        (["doctor", "--set", "encoder.dmi=3"], 2, "did you mean 'dim'"),
        (["backfil"], 2, "backfil"),
    ],
)
def test_a_user_error_ends_in_one_message(vectide_in_process, backfilled, arguments, code, message):
    path, table, _ = backfilled
    done = vectide_in_process(*[argument.format(job=path, table=table) for argument in arguments])
    assert message in done.stderr
    assert done.returncode == code


def test_the_doctor_does_not_wait_for_an_absent_cluster(backfilled):
    with socket.create_server(("127.0.0.1", 0)) as server:
        unused = f"127.0.0.1:{server.getsockname()[1]}"
    # In its own process: a Ray that another test started in this one would answer.
    done = vectide("doctor", backfilled[0], "--set", f"run.address={unused}")
    assert f"nothing answers at {unused}" in done.stdout + done.stderr
    assert done.returncode


def test_versions_are_not_cut_in_a_pipe(vectide_in_process, backfilled, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, table, _ = backfilled
    printed = vectide_in_process("versions", table).stdout
    assert {"version", "operation", "backfill", "files"} <= set(printed.split())
    assert "…" not in printed
    model = json.loads(vectide_in_process("status", table, "--json").stdout)["lineage"]["model"]
    assert model.startswith("/")
    for command in ("versions", "status"):
        assert f"model of version 1: {model}\n" in vectide_in_process(command, table).stdout


def test_a_user_error_ends_the_process_with_its_exit_code(backfilled):
    path, _, _ = backfilled
    done = vectide("backfill", path, "--set", "encoder.dmi=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_ctrl_c_prints_how_to_resume_and_exits_with_130(vectide_in_process, backfilled, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.backfill.backfill", stopped)
    done = vectide_in_process("backfill", backfilled[0])
    assert (done.returncode, done.stderr) == (130, "error: stopped; run the same command again to resume\n")


def test_options_are_not_parsed_as_yaml(vectide_in_process, backfilled, monkeypatch):
    jobs: list[Any] = []

    def refresh(job: Any, _: Any) -> Outcome:
        jobs.append(job)
        return Outcome("", "", 1, published=False)

    monkeypatch.setattr("pipeline.run.refresh.refresh", refresh)
    options = ["--queries", "a #1.parquet", "--judgements", "b: c", "--min-agreement", "0.5", "--no-publish"]
    assert vectide_in_process("refresh", backfilled[0], *options).returncode == 0
    gate_settings = jobs[0].generation
    values = (gate_settings.queries, gate_settings.judgements, gate_settings.min_agreement, gate_settings.publish)
    assert values == ("a #1.parquet", "b: c", 0.5, False)


def test_a_model_without_weights_is_refused(vectide_in_process, backfilled, tmp_path):
    path, _, _ = backfilled
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    done = vectide_in_process("backfill", path, "--model", tmp_path)
    assert done.returncode == 2
    assert "safetensors" in done.stderr


def test_a_table_is_maintained_from_the_command_line(vectide_in_process, tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    table = tmp_path / "table"
    assert vectide_in_process("backfill", path).returncode == 0
    staged = vectide_in_process("refresh", path, "--set", "encoder.max_tokens=5", "--no-publish")
    assert "built and not published: 20 rows" in staged.stdout
    refused = vectide_in_process("refresh", path, "--set", "encoder.max_tokens=5", "--min-agreement", "1")
    assert (refused.returncode, "less than generation.min_agreement = 1" in refused.stderr) == (1, True)
    assert "published version 2" in vectide_in_process("refresh", path, "--set", "encoder.max_tokens=5").stdout
    assert "0 rows added, 20 changed, 0 removed" in vectide_in_process("diff", table, 1, 2).stdout
    done = vectide_in_process("changes", table, "--since", 1, "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["upserts"] == 20
    assert "restored the 20 rows of version 1" in vectide_in_process("rollback", table, "--to", 1).stdout
    assert "merged 2 files into 1" in vectide_in_process("compact", table).stdout
    assert "would remove" in vectide_in_process("vacuum", table, "--keep", "0", "--dry-run").stdout
    assert "removed 4 files" in vectide_in_process("vacuum", table, "--keep", "0").stdout
    listed = json.loads(vectide_in_process("versions", table, "--json").stdout)
    assert [version["operation"] for version in listed[:4]] == ["compact", "rollback", "generation", "backfill"]
    wrong = vectide_in_process("vacuum", table, "--keep", "soon")
    assert (wrong.returncode, "--keep 'soon' must be a number above 0" in wrong.stderr) == (2, True)
    too_late = vectide_in_process("rollback", table, "--to", 2)
    assert (too_late.returncode, "a vacuum took them" in too_late.stderr) == (1, True)


def test_a_refresh_tells_what_its_counts_are_of(vectide_in_process, tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    assert "stay as they are" not in vectide_in_process("backfill", path).stdout
    write_corpus(tmp_path / "more", [rows(1, start=20)])
    (tmp_path / "more" / "part-0000.parquet").rename(corpus / "part-0001.parquet")
    printed = vectide_in_process("refresh", path).stdout
    assert "1 row from 1 source row (0 quarantined, 1 encoded), " in printed
    assert "these counts are of the files that changed; files with 20 more rows stay as they are\n" in printed
