"""Hands a manifest to the program that takes it: kubectl, crontab or systemctl.

Used by `jobs schedule`. Applying the same schedule twice leaves one of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.errors import ConfigError, VectideError


def apply_kubernetes(manifest: str) -> str:
    """Give manifests to the cluster that kubectl points at; what it says."""
    return _run(("kubectl", "apply", "-f", "-"), stdin=manifest).strip()


def apply_crontab(line: str, name: str) -> str:
    """Put a line into this user's crontab, in place of the line of the same name."""
    listed = _call(("crontab", "-l"))  # ends with 1 where there is none yet
    kept = [old for old in listed.stdout.splitlines() if not old.endswith(f"# {name}")] if not listed.returncode else []
    _run(("crontab", "-"), stdin="\n".join([*kept, line]) + "\n")
    return f"{name} is in the crontab of this user"


def apply_systemd(units: Mapping[str, str]) -> str:
    """Write the units into this user's folder and start the timer."""
    _find("systemctl")
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    folder = Path(home) / "systemd" / "user"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units.items():
        (folder / name).write_text(text, encoding="utf-8")
    timer = next(name for name in units if name.endswith(".timer"))
    _run(("systemctl", "--user", "daemon-reload"))
    _run(("systemctl", "--user", "enable", "--now", timer))
    return (
        f"{timer} is on; `systemctl --user list-timers` shows when it is due. So that it runs while you are logged out: "
        f"loginctl enable-linger"
    )


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ConfigError(
            f"--apply needs {program}, which is not here. Without --apply the manifest is printed: take it to where "
            f"{program} is"
        )
    return found


def _call(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    program, *rest = command
    return subprocess.run(  # noqa: S603  (our own words, no shell)
        [_find(program), *rest], input=stdin, capture_output=True, text=True, check=False
    )


def _run(command: Sequence[str], stdin: str = "") -> str:
    done = _call(command, stdin)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise VectideError(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout
