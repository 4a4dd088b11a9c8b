"""Schedules of one machine: crontab lines and systemd units with any names, and `vectide watch`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from actors.errors import ConfigError
from actors.quantities import parse_duration
from jobs.cli import app
from pipeline.cluster import watch as watching
from pipeline.cluster.schedule import render
from pipeline.cluster.watch import Round, Stop, run_round, watch

NIGHTLY = "30 4 1 * mon"
EVENT = "Mon..Fri *-*-* 03:00:00 Europe/Berlin"
ODD = Path('/srv/50% "of" it\'s $HOME \\% \\\\% @name here\\')


def odd(folder: Path = ODD, program: str = "/opt/vectide", setting: str = "encoder.task=a b") -> render.ScheduledRun:
    job = folder / "job.yaml"
    argv = (program, "refresh", str(job), "--set", setting)
    return render.ScheduledRun("vectide-odd-1", "refresh", "s3://lake/50%\\", job, folder, argv)


def command_of(line: str, unescaped: str) -> str:
    """Return the text that a cron daemon passes to sh.

    All daemons remove a backslash before `%`; FreeBSD's removes it before another backslash too.
    """
    text, rest = "", iter(line.split(maxsplit=5)[5])
    for letter in rest:
        assert letter != "%", "the end of the command"
        after = next(rest, "") if letter == "\\" else ""
        text += after if after and after in unescaped else letter + after
    return text


@pytest.mark.parametrize("unescaped", ["%", "%\\"])
@given(name=st.text("%\\'\"$ @#é", max_size=9))
def test_a_crontab_line_runs_the_command_whatever_the_names(unescaped, name):
    for run in (odd(), odd(Path("/srv") / f"a{name}", setting=f"encoder.task={name}")):
        line = render.crontab(run, NIGHTLY)
        assert line.startswith("30 4 1 * mon cd ")
        assert line.count("\n") == 1
        words = shlex.split(command_of(line, unescaped).replace(" >>", " >> "), comments=True)
        folder, job = str(run.folder), str(run.job)
        log = [">>", f"{folder}/vectide-odd-1.log", "2>&1"]
        assert words == ["cd", folder, "&&", "flock", "--nonblock", job, *run.argv, *log]


def unquoted(text: str) -> list[str]:
    """Split a command line as systemd does, for words in double quotes."""
    return shlex.split(text.replace("%%", "%").replace("$$", "$"))


def test_systemd_units_run_the_command_whatever_the_names():
    lines = render.systemd(odd(), EVENT).splitlines()
    (words,) = [line for line in lines if line.startswith("ExecStart=")]
    assert unquoted(words.removeprefix("ExecStart=")) == list(odd().argv)
    assert f"WorkingDirectory={str(ODD).replace('%', '%%')}/" in lines
    assert {"Type=oneshot", f"OnCalendar={EVENT}", "Persistent=true"} < set(lines)
    assert not [line for line in lines if line.endswith(("\\", " "))]  # the next line would belong to it


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
def test_systemd_accepts_the_units(tmp_path, monkeypatch):
    """`systemd-analyze verify` reports each problem with the name of the unit."""
    folder = tmp_path / ODD.name
    folder.mkdir()
    program = tmp_path / "50% of $HOME"  # systemd takes no quotes or backslashes in the name of a program
    program.symlink_to("/bin/sh")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    service, timer = render.systemd(odd(folder, str(program)), EVENT).split("\n\n# ")
    for event, fine in ((EVENT, True), ("Mon..Foo", False)):
        (tmp_path / "vectide-odd-1.service").write_text(service)
        (tmp_path / "vectide-odd-1.timer").write_text("# " + timer.replace(EVENT, event))
        command = ["systemd-analyze", "verify", "--user", str(tmp_path / "vectide-odd-1.timer")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ("vectide-odd-1" not in done.stderr) == fine, done.stderr


@pytest.mark.parametrize("name", ["a\n* * * * * rm -rf b", "a\rb", "a\x1bb", "a\udcffb"])
def test_a_name_with_a_control_character_is_refused(name):
    for run in (odd(Path("/srv") / name), odd(setting=name)):
        for call in (lambda run=run: render.crontab(run, NIGHTLY), lambda run=run: render.systemd(run, EVENT)):
            with pytest.raises(ConfigError, match="line break"):
                call()


@pytest.mark.parametrize(
    "text", ["", "@daily", "0 3 * *", "0 0 3 * * *", "0 3 * * *; rm", '0 3 * * "', "#0 3 * * *", "0 3 * * %"]
)
def test_an_invalid_cron_expression_is_refused(text):
    with pytest.raises(ConfigError, match="must have five fields"):
        render.cron(text)


@pytest.mark.parametrize("text", ["", "0 3 * * *", "daily %n", "daily\\", "daily;", "[Service]", "daily=x"])
def test_an_invalid_calendar_event_is_refused(text):
    with pytest.raises(ConfigError, match="must be a systemd calendar event"):
        render.on_calendar(text)


def test_a_line_break_in_a_time_becomes_a_space():
    assert render.cron(" 0\t3 *\n* * ") == "0 3 * * *"
    assert render.on_calendar("Mon\n*-*-*  03:00") == "Mon *-*-* 03:00"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "systemd", "--cron", "0 3 * * *"], "systemd takes --on-calendar '.*', and no --cron"),
        (["--target", "systemd"], "takes --on-calendar"),
        (["--target", "crontab", "--on-calendar", "daily"], "crontab takes --cron '.*', and no --on-calendar"),
        (["--target", "kubernetes", "--cron", "0 3 * * *", "--on-calendar", "daily"], "and no --on-calendar"),
        (["--target", "crontab", "--cron", "0 3 * * *", "--rayjob", "x"], "leave it out"),
    ],
)
def test_an_option_of_another_target_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["schedule", "job.yaml", *options], catch_exceptions=False)


# ------------------------------------------------------------------------------------------------------------- watching


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("7d", 604800)])
def test_a_duration_is_parsed(text, seconds):
    assert parse_duration(text, option="--every") == seconds


@pytest.mark.parametrize("text", ["", "1", "0s", "-1h", "1 week", "h", "1h30m"])
def test_an_invalid_duration_is_refused(text):
    with pytest.raises(ConfigError, match="as in 90s, 15m, 1h or 7d"):
        parse_duration(text, option="--every")


class Simulation:
    """Simulated clock and rounds. The watch is stopped after the last round."""

    def __init__(self, rounds: list[tuple[int, float]]) -> None:
        self.rounds = rounds
        self.now = 0.0
        self.waits_s: list[float] = []
        self.lines: list[str] = []
        self.stopped = False

    def one_round(self) -> Round:
        code, took_s = self.rounds.pop(0)
        self.now += took_s
        return Round(code, f"word {code}")

    def is_set(self) -> bool:
        return self.stopped

    def wait(self, seconds: float) -> None:
        self.waits_s.append(seconds)
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


def test_rounds_start_an_interval_apart_and_print_one_line_each():
    simulation = Simulation([(0, 100.0), (0, 4000.0), (0, 10.0)])
    assert simulation.run(3600) == 0
    assert simulation.waits_s == [3500, 0, 3590]
    assert simulation.lines[0] == "1970-01-01T00:01:40Z round 1 done in 100 s; next in 3500 s: word 0"
    assert len(simulation.lines) == 3


def test_the_wait_doubles_with_each_failure_until_a_success():
    simulation = Simulation([(1, 1.0)] * 9 + [(0, 0.0), (-9, 0.0)])
    assert simulation.run(3600) == 0
    assert simulation.waits_s == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 30]
    assert "round 11 failed (killed by SIGKILL)" in simulation.lines[10]


def test_a_wrong_job_file_ends_the_watch_in_the_first_round_only():
    assert Simulation([(2, 1.0)]).run(3600) == 2
    later = Simulation([(0, 1.0), (2, 1.0), (0, 1.0)])
    assert later.run(3600) == 0
    assert len(later.lines) == 3


def test_jitter_lengthens_the_waits():
    simulation = Simulation([(0, 0.0)])
    simulation.run(1000, jitter=0.5)
    assert simulation.waits_s == [1050]


def test_a_round_is_a_process_with_a_last_line():
    stop = Stop()
    assert run_round(("sh", "-c", "echo one; echo two; echo err >&2"), stop) == Round(0, "two")
    assert run_round(("sh", "-c", "echo out; echo 'error: no' >&2; exit 1"), stop) == Round(1, "error: no")
    assert run_round(("sh", "-c", "kill -9 $$"), stop) == Round(-9, "")


def test_a_signal_ends_the_round_and_the_watch(tmp_path):
    """Call the handler directly: the first signal is passed to the round as SIGINT.

    The round does not wait: a shell that is told to stop just before it begins to wait stops only after that.
    """
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    script = f"trap 'echo \"error: stopped\" >&2; exit 130' INT; echo > {ready}; while :; do :; done"
    stop = Stop()
    lines: list[str] = []

    def interrupt() -> None:
        ready.read_text()
        stop(2, None)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = watch(lambda: run_round(("sh", "-c", script), stop), 3600, lines.append, stop=stop.requested)
    thread.join()
    assert code == 0
    assert len(lines) == 1
    assert "failed (exit code 130)" in lines[0]
    assert lines[0].endswith("stopped: error: stopped")


def test_signal_handlers_are_restored():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with watching.Stop().on_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) is stop
    assert signal.getsignal(signal.SIGTERM) is before
