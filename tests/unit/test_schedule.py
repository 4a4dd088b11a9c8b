"""A job by the clock of one machine: lines and units that survive odd names, applied once, and a watch that goes on."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from actors.errors import ConfigError, VectideError
from jobs.cli import app
from pipeline import watch as watching
from pipeline.schedule import apply
from pipeline.schedule.cron import Cron
from pipeline.schedule.machine import Command, crontab_line, systemd_units, words_of
from pipeline.watch import Round, Stop, run_round, seconds_of, watch

NIGHTLY = Cron.parse("30 4 1 * mon")
ODD = Path('/srv/50% "of" it\'s $HOME \\ here/job.yaml')


def odd() -> Command:
    words = words_of(("/opt/vectide",), "refresh", ODD, ["encoder.task=a b"])
    return Command("vectide-odd-1", ODD, ODD.parent, words, about="vectide refresh of s3://lake/50%")


def test_a_crontab_line_says_what_is_to_run_whatever_the_names():
    line = crontab_line(odd(), NIGHTLY)
    assert line.startswith("30 4 1 * 1 cd ")
    assert "%" not in line.replace(r"\%", "")
    shell = line.removeprefix("30 4 1 * 1 ").replace(r"\%", "%")  # what cron hands to sh
    found = shlex.split(shell.replace(" >>", " >> ").partition(" # ")[0])
    folder, job = str(ODD.parent), str(ODD)
    assert found == [
        *["cd", folder, "&&", "flock", "--nonblock", job, "/opt/vectide", "refresh", job, "--set", "encoder.task=a b"],
        *[">>", f"{folder}/vectide-odd-1.log", "2>&1"],
    ]


def unquoted(text: str) -> list[str]:
    """systemd's way to read a command line, for words in double quotes."""
    plain = text.replace("%%", "%").replace("$$", "$")
    return shlex.split(plain)


def test_systemd_units_say_the_same():
    units = systemd_units(odd(), NIGHTLY)
    service, timer = units["vectide-odd-1.service"], units["vectide-odd-1.timer"]
    (line,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]
    assert unquoted(line.removeprefix("ExecStart=")) == list(odd().words)
    assert f"WorkingDirectory={str(ODD.parent).replace('%', '%%')}\n" in service
    assert "Type=oneshot" in service
    assert timer.count("OnCalendar=") == 2
    assert "Persistent=true" in timer


def test_a_name_with_a_line_break_is_refused():
    job = Path("/srv/a\n* * * * * rm -rf b/job.yaml")
    words = words_of(("/opt/vectide",), "refresh", job, [])
    command = Command("n", job, job.parent, words, about="x")
    for make in (crontab_line, systemd_units):
        with pytest.raises(ConfigError, match="line break"):
            make(command, NIGHTLY)


CRONTAB = """#!/bin/sh
case "$1" in
  -l) [ -e "$STORE/table" ] && cat "$STORE/table" || { echo "no crontab for me" >&2; exit 1; } ;;
  -) cat > "$STORE/table" ;;
esac
"""
SYSTEMCTL = '#!/bin/sh\necho "$*" >> "$STORE/calls"\n[ ! -e "$STORE/broken" ] || { echo "Failed to connect to bus" >&2; exit 1; }\n'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a crontab and a systemd of its own."""
    for name, text in (("crontab", CRONTAB), ("systemctl", SYSTEMCTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STORE", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "wiki.yaml"
    document = {"source": {"uri": "s3://a/b"}, "table": {"uri": "s3://lake/wiki"}, "encoder": {"model": "a/b"}}
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_crontab_holds_a_schedule_once_and_what_else_it_had(machine, job_file):
    (machine / "table").write_text("MAILTO=me\n0 1 * * * backup\n")
    for cron in ("0 3 * * *", "0 4 * * *"):
        done = CliRunner().invoke(
            app, ["schedule", str(job_file), "--cron", cron, "--target", "crontab", "--apply"], catch_exceptions=False
        )
        assert "is in the crontab" in done.stdout
    lines = (machine / "table").read_text().splitlines()
    assert lines[:2] == ["MAILTO=me", "0 1 * * * backup"]
    assert [line[:10] for line in lines[2:]] == ["0 4 * * * "]


def test_units_are_written_and_the_timer_is_started(machine, job_file):
    done = CliRunner().invoke(
        app,
        ["schedule", str(job_file), "--cron", "0 3 * * *", "--target", "systemd", "--apply"],
        catch_exceptions=False,
    )
    assert "enable-linger" in done.stdout
    (timer,) = (machine / "config" / "systemd" / "user").glob("*.timer")
    assert (machine / "calls").read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable --now {timer.name}",
    ]
    (machine / "broken").touch()
    with pytest.raises(VectideError, match="ended with 1: Failed to connect to bus"):
        apply.apply_systemd({"a.timer": ""})


def test_a_tool_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (
        lambda: apply.apply_kubernetes("a: b"),
        lambda: apply.apply_crontab("line", "name"),
        lambda: apply.apply_systemd({"a.timer": ""}),
    ):
        with pytest.raises(ConfigError, match="--apply needs (kubectl|crontab|systemctl), which is not here"):
            call()


def test_a_rayjob_is_nothing_to_a_crontab(job_file):
    with pytest.raises(ConfigError, match="leave it out"):
        CliRunner().invoke(
            app,
            ["schedule", str(job_file), "--cron", "0 3 * * *", "--target", "crontab", "--rayjob", "x"],
            catch_exceptions=False,
        )


# ------------------------------------------------------------------------------------------------------------- watching


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("7d", 604800)])
def test_an_interval(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "0s", "-1h", "1 week", "h", "1h30m"])
def test_what_is_no_interval(text):
    with pytest.raises(ConfigError, match="as in 90s, 15m, 1h or 7d"):
        seconds_of(text)


class World:
    """A clock, rounds that take their time, and a person who stops after the last one."""

    def __init__(self, rounds: list[tuple[int, float]]) -> None:
        self.rounds = rounds
        self.now = 0.0
        self.rests: list[float] = []
        self.lines: list[str] = []
        self.stopped = False

    def one_round(self) -> Round:
        code, took_s = self.rounds.pop(0)
        self.now += took_s
        return Round(code, f"word {code}")

    def is_set(self) -> bool:
        return self.stopped

    def wait(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds
        self.stopped = not self.rounds

    def run(self, every_s: float, *, jitter: float = 0.0) -> int:
        return watch(
            self.one_round,
            every_s,
            self.lines.append,
            stop=self,  # type: ignore[arg-type]  # the two methods of an event that are used
            now=lambda: self.now,
            jitter=lambda: jitter,
        )


def test_rounds_start_an_interval_apart_and_say_one_line_each():
    world = World([(0, 100.0), (0, 4000.0), (0, 10.0)])
    assert world.run(3600) == 0
    assert world.rests == [3500, 0, 3590]
    assert world.lines[0] == "1970-01-01T00:01:40Z round 1 done in 100 s; next in 3500 s: word 0"
    assert len(world.lines) == 3


def test_a_failure_is_tried_again_soon_then_later_and_forgotten_by_a_success():
    world = World([(1, 1.0)] * 9 + [(0, 0.0), (-9, 0.0)])
    assert world.run(3600) == 0
    assert world.rests == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 30]
    assert "round 11 failed (killed by SIGKILL)" in world.lines[10]


def test_a_wrong_job_file_ends_the_watch_at_once_and_not_later():
    assert World([(2, 1.0)]).run(3600) == 2
    later = World([(0, 1.0), (2, 1.0), (0, 1.0)])
    assert later.run(3600) == 0
    assert len(later.lines) == 3


def test_jitter_spreads_the_rests():
    world = World([(0, 0.0)])
    world.run(1000, jitter=0.5)
    assert world.rests == [1050]


def test_a_round_is_a_process_with_a_last_word():
    stop = Stop()
    assert run_round(("sh", "-c", "echo one; echo two; echo err >&2"), stop) == Round(0, "two")
    assert run_round(("sh", "-c", "echo out; echo 'error: no' >&2; exit 1"), stop) == Round(1, "error: no")
    assert run_round(("sh", "-c", "kill -9 $$"), stop) == Round(-9, "")


def test_a_signal_ends_the_round_and_the_watch(tmp_path):
    """The handler itself, called as the interpreter would: SIGINT goes to the round, a second one kills."""
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    script = f"trap 'echo \"error: stopped\" >&2; exit 130' INT; echo > {ready}; while true; do read x < {ready}; done"
    stop = Stop()
    lines: list[str] = []

    def interrupt() -> None:
        ready.read_text()
        stop(2, None)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = watch(lambda: run_round(("sh", "-c", script), stop), 3600, lines.append, stop=stop.asked)
    thread.join()
    assert code == 0
    assert len(lines) == 1
    assert "failed (exit code 130)" in lines[0]
    assert lines[0].endswith("stopped: error: stopped")


def test_handlers_are_put_back():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with watching.Stop().on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) is stop
    assert signal.getsignal(signal.SIGTERM) is before


def test_units_are_what_systemd_takes(tmp_path, monkeypatch):
    """By its own word, on a machine that has it: what it does not like, it says with the name of the unit."""
    folder = tmp_path / '50% "of" it\'s $HOME \\ here'
    folder.mkdir()
    words = words_of(("/bin/sh",), "refresh", folder / "job.yaml", ["encoder.task=a b"])
    units = systemd_units(Command("vectide-odd-1", folder / "job.yaml", folder, words, about="50%"), NIGHTLY)
    for name, text in units.items():
        (tmp_path / name).write_text(text)
        assert [line for line in text.splitlines() if line and "=" not in line and not line.startswith("[")] == []
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    script = f"! command -v systemd-analyze >/dev/null || systemd-analyze verify --user {tmp_path}/*.timer"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert "vectide-odd-1" not in done.stderr
