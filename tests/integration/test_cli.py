"""The command line as a person meets it: exit codes, output, and one message where something is wrong."""

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

# Every command with its options. A change here is a change for every script that calls us: say so in CHANGELOG.md.
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
    },
    "versions": {"--json"},
    "rollback": {"--to"},
    "diff": {"--json"},
    "changes": {"--since", "--out", "--json"},
    "compact": {"--target", "--address"},
    "vacuum": {"--keep", "--unfinished", "--dry-run", "--json"},
    "search": {"-k", "--where", "--version", "--model", "--json"},
    "status": {"--json"},
    "quarantine": {"--run", "--reason", "--limit", "--json"},
    "submit": {"--address", "--command", "--detach", "--set"},
    "schedule": {"--target", "--cron", "--on-calendar", "--command", "--rayjob", "--set"},
    "watch": {"--every", "--command", "--set"},
    "doctor": {"--set", "--json"},
}


def vectide(*arguments):
    """A command as a process of its own."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def here(monkeypatch, capsys):
    """A command inside this process, which starts in no time: what it printed, and how it would have ended."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["vectide", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    """A job file and the outcome of its backfill."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_corpus(folder / "corpus", [rows(20)])
    job = make_job(corpus, folder / "table", tiny_model)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    return path, folder / "table", vectide("backfill", path)


def test_the_commands_and_their_options_are_these():
    group: Any = typer.main.get_command(app)
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        for name, command in group.commands.items()
    }
    assert found == COMMANDS


def test_a_backfill_ends_with_one_sentence_and_zero(made):
    _, table, done = made
    assert done.returncode == 0, done.stderr
    assert f"published version 1 of {table}: 20 rows from 20 source rows (0 set aside)" in done.stdout
    stages = "read .*, tokenize .*, encode .*, write .*"
    assert re.search(rf"KiB in 2 files; all workers together: {stages}; padding 0.0%\n", done.stdout)
    assert "2/2 units, 20 rows" in done.stderr


def test_the_second_time_there_is_nothing_to_do(made):
    path, table, _ = made
    done = vectide("backfill", path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"nothing left to do: {table} already holds this run")
    assert "starting Ray" not in done.stderr


def test_search_and_status_speak_json(here, made):
    _, table, _ = made
    found = here("search", table, "title 3\n\ntext number 3", "-k", 2, "--where", "lang = 'l0'", "--json")
    hits = json.loads(found.stdout)
    assert [hits[0]["id"], len(hits), hits[0]["columns"]["lang"]] == ["r3", 2, "l0"]
    state = json.loads(here("status", table, "--json").stdout)
    assert (state["version"], state["rows"], state["runs"][0]["units_done"]) == (1, 20, 2)
    assert "version 1, 20 rows" in here("status", table).stdout
    assert "r3" in here("search", table, "title 3").stdout


def test_a_name_with_brackets_is_a_name_and_no_line_is_broken_in_two(here, made, tmp_path, monkeypatch):
    table = tmp_path / "[v1] x[/y]"
    shutil.copytree(made[1], table)
    monkeypatch.setenv("COLUMNS", "40")
    assert f"{table}: version 1, 20 rows, 2 files, " in here("status", table).stdout
    assert re.search(r"^  weights_sha256: [0-9a-f]{64}$", here("status", table).stdout, re.MULTILINE)
    assert here("quarantine", table).stdout == f"{table}, version 1: 0 rows set aside\n"


def test_a_plan_writes_nothing(here, made, tmp_path):
    path, _, _ = made
    table = tmp_path / "elsewhere"
    done = here("plan", path, "--table", table, "--price-per-hour", 3, "--tokens-per-second", 1000, "--json")
    found = json.loads(done.stdout)
    assert (found["shards"], found["rows"], found["rows_exact"], found["units"]) == (1, 20, True, 2)
    assert found["cost"] == pytest.approx(found["seconds"] / 1200)
    assert not table.exists()
    measured = here("plan", path, "--table", table)
    assert "measured on this machine" in measured.stdout


def test_a_plan_of_what_is_published_has_nothing_left(here, made):
    path, table, _ = made
    found = json.loads(here("plan", path, "--tokens-per-second", 1000, "--json").stdout)
    assert (found["units"], found["units_done"], found["seconds"]) == (2, 2, 0)
    assert found["run"] == json.loads(here("status", table, "--json").stdout)["runs"][0]["run"]


@pytest.mark.ray
def test_the_doctor_looks_at_everything_and_leaves_nothing(here, made, tmp_path):
    path, _, _ = made
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
    sick = here("doctor", path, "--set", "encoder.model=/nowhere", "--set", "source.uri=/nowhere/*")
    assert sick.returncode == 1
    assert "matches no file" in sick.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["backfill", "nowhere.yaml"], 2, "cannot read the job file 'nowhere.yaml'"),
        (["backfill", "--source", "a"], 2, "table: is needed"),
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
def test_a_mistake_ends_in_one_message(here, made, arguments, code, message):
    path, table, _ = made
    done = here(*[argument.format(job=path, table=table) for argument in arguments])
    assert message in done.stderr
    assert done.returncode == code


def test_a_cluster_that_is_not_there_is_not_waited_for(here, made):
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    done = here("doctor", made[0], "--set", f"run.address={nobody}")
    assert f"nothing answers at {nobody}" in done.stdout + done.stderr
    assert done.returncode


def test_versions_are_whole_where_a_program_reads_them(here, made, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, table, _ = made
    shown = here("versions", table).stdout
    assert {"version", "operation", "backfill", "files"} <= set(shown.split())
    assert "…" not in shown


def test_a_mistake_ends_the_process_with_its_code(made):
    path, _, _ = made
    done = vectide("backfill", path, "--set", "encoder.dmi=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_a_command_that_is_stopped_by_hand_says_so(here, made, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.backfill.backfill", stopped)
    done = here("backfill", made[0])
    assert (done.returncode, done.stderr) == (130, "error: stopped; the same command goes on from here\n")


def test_an_option_is_a_text_and_no_yaml(here, made, monkeypatch):
    jobs: list[Any] = []

    def refresh(job: Any, _: Any) -> Outcome:
        jobs.append(job)
        return Outcome("", "", 1, published=False)

    monkeypatch.setattr("pipeline.run.refresh.refresh", refresh)
    gate = ["--queries", "a #1.parquet", "--judgements", "b: c", "--min-agreement", "0.5", "--no-publish"]
    assert here("refresh", made[0], *gate).returncode == 0
    asked = jobs[0].generation
    assert (asked.queries, asked.judgements, asked.min_agreement, asked.publish) == ("a #1.parquet", "b: c", 0.5, False)


def test_a_model_without_weights_is_refused(here, made, tmp_path):
    path, _, _ = made
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    done = here("backfill", path, "--model", tmp_path)
    assert done.returncode == 2
    assert "safetensors" in done.stderr


def test_a_table_is_looked_after_from_the_command_line(here, tmp_path, tiny_model):
    corpus = write_corpus(tmp_path / "corpus", [rows(20)])
    job = make_job(corpus, tmp_path / "table", tiny_model)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    table = tmp_path / "table"
    assert here("backfill", path).returncode == 0
    staged = here("refresh", path, "--set", "encoder.max_tokens=5", "--no-publish")
    assert "built and not published: 20 rows" in staged.stdout
    closed = here("refresh", path, "--set", "encoder.max_tokens=5", "--min-agreement", "1")
    assert (closed.returncode, "less than generation.min_agreement = 1" in closed.stderr) == (1, True)
    assert "published version 2" in here("refresh", path, "--set", "encoder.max_tokens=5").stdout
    assert "0 rows added, 20 changed, 0 removed" in here("diff", table, 1, 2).stdout
    done = here("changes", table, "--since", 1, "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["upserts"] == 20
    assert "the 20 rows of version 1 again" in here("rollback", table, "--to", 1).stdout
    assert "2 files are 1 now" in here("compact", table).stdout
    assert "would remove" in here("vacuum", table, "--keep", "0", "--dry-run").stdout
    assert "removed 4 files" in here("vacuum", table, "--keep", "0").stdout
    found = json.loads(here("versions", table, "--json").stdout)
    assert [version["operation"] for version in found[:4]] == ["compact", "rollback", "generation", "backfill"]
    wrong = here("vacuum", table, "--keep", "soon")
    assert (wrong.returncode, "--keep 'soon' must be a number above 0" in wrong.stderr) == (2, True)
    late = here("rollback", table, "--to", 2)
    assert (late.returncode, "a vacuum took them" in late.stderr) == (1, True)
