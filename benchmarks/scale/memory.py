"""Peak memory of a backfill in one process by the number of short rows: `python -m benchmarks memory`.

Each size runs in a process of its own, so that its peak is its own. The whole tool is real: files, plan, units, receipts, the
check for duplicate ids, the commit. Only where sizes are large the model may be left out (`NoModel`), since it would take
this machine hours; its own memory does not depend on the number of rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers

from actors.encoders.running import Stats
from actors.vectors import Encoded, dense
from benchmarks.race import machine
from benchmarks.race.peers import ROOT
from benchmarks.race.session import peak_bytes
from benchmarks.scale.small import Stopwatch
from pipeline.execute import inline
from pipeline.execute.stages.encode import EncodeStage
from pipeline.job.config import parse_job
from pipeline.run.backfill import backfill
from tests.checkpoints.bert import write_bert

SHARDS = 10
GROUP_ROWS = 100_000
NO_MODEL_DIM = 64
Facts = dict[str, Any]


class NoModel:
    """An encoder whose vectors are looked up by the place of a row, float32 [n, dim] of unit length."""

    dim = NO_MODEL_DIM

    def __init__(self) -> None:
        self.stats = Stats()
        known = np.random.default_rng(0).normal(size=(997, self.dim))
        self._known = (known / np.linalg.norm(known, axis=1, keepdims=True)).astype(np.float32)

    def encode_rows(self, rows: pa.Table, chunking: None = None) -> Encoded:
        """Vectors of rows of token ids."""
        del chunking
        return Encoded((dense(np.take(self._known, np.arange(len(rows)) % len(self._known), axis=0)),))


class NoModelStage(EncodeStage):
    """The encode stage without a model."""

    @cached_property
    def encoder(self) -> Any:
        """See `NoModel`."""
        return NoModel()


def one_token_a_word() -> tokenizers.Tokenizer:
    """A fast tokenizer, with the same shape of its results as any."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_corpus(folder: Path, rows: int) -> None:
    """Parquet files of `rows` short texts, all different."""
    folder.mkdir(parents=True)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    for shard in range(SHARDS):
        first, last = shard * rows // SHARDS, (shard + 1) * rows // SHARDS
        with pq.ParquetWriter(folder / f"part-{shard:05d}.parquet", schema) as file:
            for start in range(first, last, GROUP_ROWS):
                numbers = pa.array(range(start, min(start + GROUP_ROWS, last)), pa.int64()).cast(pa.string())
                ids = pc.binary_join_element_wise("row", numbers, " ")
                texts = pc.binary_join_element_wise("a short row", numbers, " ")
                file.write_table(pa.table([ids, texts], schema=schema))


def run_one(folder: Path, model: str) -> Facts:
    """Run a backfill of `folder/corpus` in this process and return its time and memory."""
    if model == "none":
        setattr(inline, "EncodeStage", NoModelStage)  # noqa: B010  (a plain assignment is what mypy refuses)
        model = str(write_bert(folder / "model", hidden=NO_MODEL_DIM, layers=1))  # from here the plan has its width
        one_token_a_word().save(str(folder / "model" / "tokenizer.json"))
    document = {
        "source": {"uri": str(folder / "corpus"), "id": "id", "text": "text"},
        "table": {"uri": str(folder / "table")},
        "encoder": {"model": model},
        "run": {"address": "inline"},
    }
    watch = Stopwatch()
    peaks = {"imports": peak_bytes(os.getpid()) >> 20}
    outcome = backfill(parse_job(document), PeakAfterUnits(watch, peaks))
    peaks["whole"] = peak_bytes(os.getpid()) >> 20
    return {
        "rows": outcome.rows,
        "units": outcome.units,
        "seconds": round(watch.ended[-1] - watch.ended[0], 1),
        "stage_s": {name: round(spent, 1) for name, spent in outcome.seconds.items()},
        "peak_mib": peaks,
    }


class PeakAfterUnits(Stopwatch):
    """A reporter that also notes the peak so far when the units have ended."""

    def __init__(self, watch: Stopwatch, peaks: dict[str, int]) -> None:
        super().__init__()
        self.ended = watch.ended
        self._peaks = peaks

    def step(self, text: str) -> None:
        super().step(text)
        if text.startswith("checking"):
            self._peaks["units"] = peak_bytes(os.getpid()) >> 20


def measure(folder: Path, *, rows: Sequence[int], model: str, print_progress: Callable[[str], None]) -> list[Facts]:
    """One backfill of each size.

    Args:
        folder: A folder of its own; removed.
        rows: The sizes.
        model: A checkpoint's folder, or "none".
    """
    found = []
    for count in rows:
        shutil.rmtree(folder, ignore_errors=True)
        print_progress(f"{count:,} rows: writing the corpus")
        write_corpus(folder / "corpus", count)
        print_progress(f"{count:,} rows: backfill")
        command = [sys.executable, "-m", "benchmarks.scale.memory", str(folder), model]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not answers:
            raise SystemExit(f"{count} rows: {(done.stderr.strip() or done.stdout.strip())[-2000:]}")
        facts = json.loads(answers[-1].removeprefix("RESULT "))
        if facts["rows"] != count:
            raise SystemExit(f"{facts['rows']} of {count} rows came out")
        print_progress(f"{count:,} rows: {facts}")
        found.append(facts)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def markdown(found: list[Facts], *, model: str, command: str, date: str) -> str:
    """The page."""
    first = found[0]["peak_mib"]["whole"]
    lines = [
        "# Peak memory of one process by the number of rows",
        "",
        machine.written(command, date),
        "",
        f"- Hardware: {machine.hardware()}; load averages {machine.load()}",
        f"- Versions: {machine.versions('deltalake', 'pyarrow', 'torch', 'tokenizers')}",
        f"- Model: {'none; vectors of 64 numbers from a table' if model == 'none' else Path(model).name}",
        "",
        (
            "`run.address: inline`, short texts (`a short row 123`), ids checked for duplicates, each size in a process of its "
            "own. Peaks are resident memory."
        ),
        "",
        "| rows | units | rows/s | peak until units end | peak of all | x |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for facts in found:
        peaks = facts["peak_mib"]
        rate = facts["rows"] / facts["seconds"] if facts["seconds"] else 0.0
        lines.append(
            f"| {facts['rows']:,} | {facts['units']:,} | {rate:,.0f} | {peaks['units']:,} MiB | {peaks['whole']:,} MiB | "
            f"{peaks['whole'] / first:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print("RESULT " + json.dumps(run_one(Path(sys.argv[1]), sys.argv[2])))
