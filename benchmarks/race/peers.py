"""The engines of the race, their environments, and the installation of an environment.

Exact versions of each stand in `environments/*.txt`, so that a race can be run again. Ours runs in the environment of
this process. What cannot run on a machine is left out with the reason, which the table then gives.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(__file__).parent / "environments"
HOME = ROOT / ".venvs" / "race"
WORKERS = "benchmarks.race.workers"
BASE = "sentence-transformers float32"


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to make embeddings.

    Attributes:
        label: How the table calls it.
        environment: Name of its requirements file; None is the environment of this process.
        worker: Its script below `workers`.
        compute: "float32", "bfloat16" or "int8".
        each_core: A process for each core instead of one with all threads.
        note: How it is used, in a few words.
    """

    label: str
    environment: str | None
    worker: str
    compute: str = "float32"
    each_core: bool = False
    note: str = ""


LIMIT = {kind: Peer(f"limit {kind}", None, "limit", kind) for kind in ("float32", "bfloat16", "int8")}
PEERS = (
    Peer("vectide float32", None, "vectide", note="one process"),
    Peer("vectide float32, a process a core", None, "vectide", each_core=True, note="one encoder for each"),
    Peer("vectide bfloat16", None, "vectide", "bfloat16", note="one process"),
    Peer(
        "vectide bfloat16, a process a core", None, "vectide", "bfloat16", each_core=True, note="one encoder for each"
    ),
    Peer("vectide int8", None, "vectide", "int8", note="one process, not calibrated"),
    Peer("vectide int8, a process a core", None, "vectide", "int8", each_core=True, note="one encoder for each"),
    Peer(BASE, "sentence_transformers", "st", note="its defaults: batches of 32 by characters"),
    Peer("sentence-transformers bfloat16", "sentence_transformers", "st", "bfloat16", note="its other defaults"),
    Peer("ONNX Runtime float32", "onnxruntime", "onnx", note="our export, sorted by tokens, batches by tokens"),
    Peer("ONNX Runtime int8", "onnxruntime", "onnx", "int8", note="dynamic, otherwise the same"),
    Peer("OpenVINO float32", "openvino", "openvino", note="our export, sorted by tokens, batches by tokens"),
    Peer("OpenVINO bfloat16", "openvino", "openvino", "bfloat16", note="the same"),
    Peer("OpenVINO int8", "openvino", "openvino", "int8", note="nncf, calibrated on other texts of the corpus"),
    Peer("fastembed float32", "fastembed", "fastembed", note="our export, its defaults: batches of 256 unsorted"),
    Peer("infinity float32", "infinity", "infinity", note="its torch engine without the server"),
)


def runnable(has_bfloat16: bool) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers for this processor, and the reason for each of the others."""
    wide = [peer for peer in PEERS if has_bfloat16 or peer.compute != "bfloat16"]
    without = {peer.label: "this processor has no bfloat16 arithmetic" for peer in PEERS if peer not in wide}
    return wide, without


def python_of(environment: str | None) -> Path:
    """The interpreter of an environment."""
    return Path(sys.executable) if environment is None else HOME / environment / "bin" / "python"


def install(environment: str, print_progress: Callable[[str], None]) -> str | None:
    """Install an environment from its file unless it exists. Return the reason if that fails."""
    requirements = ENVIRONMENTS / f"{environment}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = HOME / environment / ".made-of"
    if stamp.exists() and stamp.read_text() == digest:
        return None
    print_progress(f"installing {environment}")
    HOME.mkdir(parents=True, exist_ok=True)
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(HOME / environment)],
        [str(python_of(environment)), "-m", "pip", "install", "--quiet", "-r", str(requirements)],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            return f"cannot be installed: {lines[-1]}"
    stamp.write_text(digest)
    return None


def export(
    model: Path, out: Path, *, calibration: Path, max_tokens: int, print_progress: Callable[[str], None]
) -> list[str]:
    """Export the model for the peers unless that is done. Return one line for each failure."""
    out.mkdir(parents=True, exist_ok=True)
    steps = {
        "onnx.done": ("onnxruntime", ["export", str(model), str(out)]),
        "openvino.done": ("openvino", ["quantize", str(model), str(out), str(calibration), str(max_tokens)]),
    }
    wrong = []
    for stamp, (environment, (script, *arguments)) in steps.items():
        if (out / stamp).exists():
            continue
        print_progress(f"exporting for {environment}")
        command = [str(python_of(environment)), "-m", f"{WORKERS}.{script}", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            wrong.append(f"{script}: {done.stderr.strip().splitlines()[-1]}")
    return wrong
