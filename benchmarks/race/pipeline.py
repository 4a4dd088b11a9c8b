"""The pipeline race: Parquet in, Parquet out, each way in a process of its own, in turn. Writes a table.

Called by `python -m benchmarks pipeline`. Time begins with the process, so imports and Ray's start count; the parts of
the start are separate, and the steady rate is that after a third of the rows.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from benchmarks.race import machine
from benchmarks.race.figures import paired_ratio, rounds
from benchmarks.race.mixes import LONGEST_CHARACTERS, read_texts
from benchmarks.race.peers import ROOT, install, python_of
from benchmarks.race.ways.results import FIRST_UNIT, STARTED
from pipeline.plan.throughput import has_bfloat16

SHARDS = 8
LIMIT_S = 600
# The rate that each backfill could reach.
ENGINE = {f"vectide backfill{dtype}": f"vectide's engine alone{dtype}" for dtype in ("", ", float32", ", int8")}
BASE = "Ray Data, an actor class around sentence-transformers"
OURS = "vectide backfill"


@dataclass(frozen=True, slots=True)
class Way:
    """One way from Parquet to Parquet: its script, the environment that it needs (None: this process's), and its
    further arguments."""

    label: str
    script: str
    environment: str | None = None
    arguments: tuple[str, ...] = ()


WAYS = (
    Way("vectide backfill", "vectide"),
    Way("vectide backfill, float32", "vectide", arguments=("float32",)),
    Way("vectide backfill, int8", "vectide", arguments=("int8",)),
    Way("vectide's engine alone", "engine"),
    Way("vectide's engine alone, float32", "engine", arguments=("float32",)),
    Way("vectide's engine alone, int8", "engine", arguments=("int8",)),
    Way(BASE, "ray_data"),
    Way("a loop around sentence-transformers", "loop"),
    Way("Daft, embed_text", "daft", "daft"),
)


# A lower bound for the first receipt: a graph of the same shape that does no work.
EMPTY_GRAPH = Way("an empty graph", "empty_graph")


@dataclass(slots=True)
class Passed:
    """All passes of one way. Seconds since its process was started; `first_s` until the first rows were out."""

    total_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    steady_rows_per_s: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """Results of the race."""

    rows: int
    tokens: int
    passed: dict[str, Passed]
    left_out: dict[str, str]
    loads: tuple[str, str] = ("", "")
    load_model_s: list[float] = field(default_factory=list)
    ray_alone_s: list[float] = field(default_factory=list)


def race(
    *,
    corpora: Path,
    model: Path,
    work: Path,
    max_tokens: int,
    rows: int,
    repeats: int,
    print_progress: Callable[[str], None],
) -> Result:
    """Run the race over the first `rows` texts of a folder."""
    shutil.rmtree(work, ignore_errors=True)
    corpus = work / "corpus"
    texts = [text[:LONGEST_CHARACTERS] for text in read_texts(corpora)[:rows]]
    random.Random(0).shuffle(texts)  # any part of them is like the whole, so rates of parts can be compared
    _write(corpus, texts)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    result = Result(len(texts), tokens, {}, {})
    before = machine.load()
    ways = {}
    for way in WAYS:
        if way.environment is not None and (reason := install(way.environment, print_progress)) is not None:
            result.left_out[way.label] = reason
        else:
            ways[way.label] = way
    for number, order in enumerate(rounds(list(ways), repeats)):
        result.load_model_s.append(_load_model(model))
        result.ray_alone_s.append(first(run(EMPTY_GRAPH, corpus, work / "out", model, max_tokens)["out"]))
        for label in order:
            if label in result.left_out:
                continue
            print_progress(f"round {number + 1} of {repeats}: {label}")
            try:
                facts = run(ways[label], corpus, work / "out", model, max_tokens)
            except RuntimeError as error:
                result.left_out[label] = str(error)
                print_progress(f"{label}: {error}")
                continue
            if facts["rows"] != len(texts):
                raise SystemExit(f"{label}: {facts['rows']} of {len(texts)} rows came out")
            passed = result.passed.setdefault(label, Passed())
            passed.total_s.append(facts["end"])
            passed.first_s.append(first(facts["out"]))
            passed.parts.append(facts["parts"])
            passed.steady_rows_per_s.append(steady(facts["out"]))
    result.loads = (before, machine.load())
    shutil.rmtree(work, ignore_errors=True)
    return result


def _write(corpus: Path, texts: list[str]) -> None:
    corpus.mkdir(parents=True)
    for number in range(SHARDS):
        low, high = len(texts) * number // SHARDS, len(texts) * (number + 1) // SHARDS
        table = pa.table({"id": [f"row-{row}" for row in range(low, high)], "text": texts[low:high]})
        pq.write_table(table, corpus / f"part-{number:02d}.parquet")


def steady(came: list[list[float]]) -> float:
    """Return rows a second after the first third; nan where the rest was written at once.

    By then a start is over, with all that comes late in it. What is in flight at that moment counts for nothing where one encoder
    takes units one after the other, and in favour of ways that have several.
    """
    sums = list(itertools.accumulate(rows for _, rows in came))
    third = next(place for place, done in enumerate(sums) if done >= sums[-1] / 3)
    begun, last = came[third][0], came[-1][0]
    return (sums[-1] - sums[third]) / (last - begun) if last > begun else float("nan")


def first(came: list[list[float]]) -> float:
    """Return the time at which the first rows were written."""
    return came[0][0]


def run(way: Way, corpus: Path, out: Path, model: Path, max_tokens: int) -> dict[str, Any]:
    """One pass of one way.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [str(python_of(way.environment)), "-m", f"benchmarks.race.ways.{way.script}"]
    try:
        done = subprocess.run(
            [*command, str(corpus), str(out), str(model), str(max_tokens), *way.arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                STARTED: str(time.monotonic()),
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "DO_NOT_TRACK": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {LIMIT_S} s") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not answers:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"failed: {lines[-1].strip()[:300] if lines else 'without a word'}")
    return dict(json.loads(answers[-1].removeprefix("RESULT ")))


def _load_model(model: Path) -> float:
    """Measure the seconds in which a new process imports torch and loads the model: a lower bound for the first unit."""
    code = "import sys; from actors.encoders import load_encoder; load_encoder(sys.argv[1], device='cpu')"
    started = time.perf_counter()
    subprocess.run([str(python_of(None)), "-c", code, str(model)], cwd=ROOT, check=True)
    return time.perf_counter() - started


def markdown(result: Result, *, command: str, date: str) -> str:
    """The page."""
    base = result.passed.get(BASE)
    wide = "bfloat16" if has_bfloat16() else "float32"
    lines = [
        "# The pipeline race, on a CPU",
        "",
        machine.written(command, date),
        "",
        f"- Hardware: {machine.hardware()}",
        f"- Load averages before and after: {result.loads[0]}; {result.loads[1]}",
        f"- Versions: {machine.versions('ray', 'torch', 'sentence-transformers', 'pyarrow', 'deltalake')}",
        f"- {result.rows:,} texts as found, {result.tokens:,} tokens after the cut, {SHARDS} Parquet files",
        f"- all-MiniLM-L6-v2; vectide in {wide} unless it says otherwise, all others in float32",
        "",
        (
            "Time begins with the process. Medians of all rounds, in turn. `x` is the median, over the rounds, of Ray Data's time "
            "over this one's in the same round; once it runs: rows a second after a third of all were out, and for a backfill, "
            "as a share of the engine's alone (nothing read or written) in the same round."
        ),
        "",
        "| way | seconds | range | x | rows/s once it runs | x | of the engine's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, passed in result.passed.items():
        rates = passed.steady_rows_per_s
        both = base is not None and len(base.total_s) == len(passed.total_s)
        times = f"{paired_ratio(base.total_s, passed.total_s):.2f}" if both and base else ""
        has_rate = rates[0] == rates[0]  # not nan
        runs = f"{paired_ratio(rates, base.steady_rows_per_s):.2f}" if both and base and has_rate else ""
        rate = f"{statistics.median(rates):,.1f}" if has_rate else "not reported"
        alone = result.passed.get(ENGINE.get(label, ""))
        share = (
            f"{paired_ratio(rates, alone.steady_rows_per_s):.2f}" if alone and len(alone.total_s) == len(rates) else ""
        )
        time = f"{statistics.median(passed.total_s):.1f} | {min(passed.total_s):.1f} to {max(passed.total_s):.1f} | {times}"
        lines.append(f"| {label} | {'| |' if label in ENGINE.values() else time} | {rate} | {runs} | {share} |")
    if OURS in result.passed:
        lines += ["", _beginning(result)]
    lines += ["", "Where the time goes, seconds, medians:", "", "| way | part | seconds |", "|---|---|---:|"]
    for label, passed in result.passed.items():
        for part in passed.parts[0]:
            seconds = statistics.median(parts[part] for parts in passed.parts)
            lines.append(f"| {label} | {part} | {seconds:.1f} |")
    if result.left_out:
        lines += ["", "Not run here:", "", *(f"- {label}: {reason}" for label, reason in result.left_out.items())]
    return "\n".join(lines) + "\n"


def _beginning(result: Result) -> str:
    """Compare the time of the first receipt with its lower bound."""
    ours = result.passed[OURS]
    ray, load = statistics.median(result.ray_alone_s), statistics.median(result.load_model_s)
    unit = statistics.median(parts[FIRST_UNIT] for parts in ours.parts)
    return (
        f"The first receipt of `{OURS}` came after {statistics.median(ours.first_s):.1f} s "
        f"({min(ours.first_s):.1f} to {max(ours.first_s):.1f}). A graph of the same three stages with nothing in them gives its "
        f"first row after {ray:.1f} s; a new process takes {load:.1f} s to import torch and load the model; the first unit takes "
        f"{unit:.1f} s: together {ray + load + unit:.1f} s."
    )
