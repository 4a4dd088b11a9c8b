"""Manifests for one machine: a line of a crontab, or a pair of systemd units.

Used by `jobs schedule`. Both name the program and the job file by their full paths, because a clock has another working
folder and another PATH than a person. They bring no credentials: those come from the machine's role or from where the
user's own programs find them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import ConfigError
from pipeline.schedule.cron import Cron


@dataclass(frozen=True, slots=True)
class Command:
    """What is to run.

    Attributes:
        name: Of the schedule.
        job: The job file.
        folder: Where to run it, which is what relative places in it are relative to.
        words: The command line, program first.
        about: A line for people.
    """

    name: str
    job: Path
    folder: Path
    words: tuple[str, ...]
    about: str


def crontab_line(command: Command, cron: Cron) -> str:
    """A line for a crontab. The job file itself is the lock: while one run holds it, the next is left out."""
    folder, log = str(command.folder), str(command.job.with_name(f"{command.name}.log"))
    run = shlex.join(("flock", "--nonblock", str(command.job), *command.words))
    line = f"cd {shlex.quote(folder)} && {run} >>{shlex.quote(log)} 2>&1 # {command.name}"
    _one_line(line)
    # To a crontab, a percent sign is the end of the command.
    return f"{cron.text} {line}".replace("%", r"\%")


def systemd_units(command: Command, cron: Cron) -> dict[str, str]:
    """A service and its timer, by file name. A service that still runs is never started a second time; with
    `Persistent=`, what was missed while the machine was off is made up for."""
    words = " ".join(_systemd_quote(word) for word in command.words)
    service = f"""[Unit]
Description={_systemd_text(command.about)}

[Service]
Type=oneshot
WorkingDirectory={_systemd_text(str(command.folder))}
ExecStart={words}
"""
    when = "\n".join(f"OnCalendar={line}" for line in cron.on_calendar())
    timer = f"""[Unit]
Description={_systemd_text(command.about)}

[Timer]
{when}
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {f"{command.name}.service": service, f"{command.name}.timer": timer}


def _systemd_text(value: str) -> str:
    _one_line(value)
    return value.replace("%", "%%")


def _systemd_quote(word: str) -> str:
    text = _systemd_text(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"'


def _one_line(value: str) -> None:
    if "\n" in value or "\r" in value:
        raise ConfigError(f"{value!r} has a line break, which a crontab or a unit file cannot hold; rename it")


def words_of(program: Sequence[str], command: str, job: Path, settings: Sequence[str]) -> tuple[str, ...]:
    """A command line."""
    return (*program, command, str(job), *(word for setting in settings for word in ("--set", setting)))
