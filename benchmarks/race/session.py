"""A worker process of the race: start it, send requests, pause it while others run, read its memory.

All workers are loaded at once and take turns. One that waits is stopped by a signal, with all its children: threads
that spin or poll would otherwise slow the one that runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.race.peers import ROOT, WORKERS, Peer, python_of


class WorkerDied(RuntimeError):
    """A worker ended instead of answering; the message is the end of what it printed."""


class Session:
    """One worker.

    Args:
        peer: Which.
        settings: See `workers.serve.Settings`.
        log: Where its standard error goes.
    """

    def __init__(self, peer: Peer, settings: dict[str, Any], log: Path) -> None:
        self.peer = peer
        self._log = log
        threads = str(settings["threads"])
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python_of(peer.environment)), "-m", f"{WORKERS}.{peer.worker}", json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={
                    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), threads),
                    "HF_HUB_OFFLINE": "1",
                    "TRANSFORMERS_OFFLINE": "1",
                    "TOKENIZERS_PARALLELISM": "true",
                    "CUDA_VISIBLE_DEVICES": "",
                    "DO_NOT_TRACK": "1",
                },
            )
        self.facts = self._answer()
        self._signal(signal.SIGSTOP)

    def encode(self, texts: Path, vectors: Path | None = None) -> dict[str, Any]:
        """Encode the texts of a file and return the worker's answer."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"texts": str(texts), "vectors": str(vectors) if vectors else None}) + "\n"
        )
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def peak_bytes(self) -> int:
        """Return the sum of the peak resident memory of its processes."""
        return sum(peak_bytes(pid) for pid in group(self._process.pid))

    def close(self) -> None:
        """End it and its children."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            raise WorkerDied(lines[-1] if lines else f"exit code {self._process.returncode}")
        return dict(json.loads(line))


def group(leader: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may contain any character; the group is the third field behind it.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while it was looked at
        if int(fields[2]) == leader:
            found.append(int(folder.name))
    return found


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, or 0 without such a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
