"""The whole loop of docs/fine-tuning.md on a reverse dictionary: from a table with a stock model to one with a trained one.

`make demo-train` runs it once: embed, mine, train, evaluate, re-embed behind the gate, roll back. Its last line is the
result. `python -m benchmarks training` trains with several seeds, with mined and with random negatives, and measures what
the model has lost on a task that nothing was trained for: finding signatures of Python by their documentation.

Without WordNet the demo is trained and measured on those signatures.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from actors.encoders import EncoderSettings, describe, load_encoder
from actors.encoders.settings import AdapterSettings
from benchmarks import reverse_dictionary
from benchmarks.race.machine import hardware, versions, written
from benchmarks.reverse_dictionary import Entry, Files
from pipeline.quality.bootstrap import Difference
from pipeline.train.evaluate import Comparison, Encode, of_encoder, read_held_out

TASK = "dictionary"
HELD_OUT = 1_000
NEGATIVES = 1  # of a pair
MAX_TOKENS = 64
SETTINGS: dict[str, Any] = {
    "method": "lora",
    "task": TASK,
    "rank": 16,
    "batch_rows": 128,
    "max_tokens": MAX_TOKENS,
    "learning_rate": 5e-4,
}
_SIGNATURE_PAIRS = 5_000  # where there is no WordNet
# The settings were chosen on the held-out entries of the demo, so the benchmark draws others.
_DEMO_DRAW, _BENCHMARK_DRAW = 0, 1


@dataclass(frozen=True)
class Trial:
    """One training of the benchmark.

    Attributes:
        negatives: "mined" or "random".
        result: nDCG@10 of the held-out entries before and after, with the exported adapter.
        control: The same of the task that nothing was trained for.
        trained: The output of `vectide train --json`.
    """

    seed: int
    negatives: str
    result: Comparison
    control: Comparison
    trained: dict[str, Any]


@dataclass(frozen=True)
class Loop:
    """What the table was worth in each state.

    Attributes:
        before, after, rolled_back: nDCG@10 of the table with the stock model, after the re-embedding, and after the rollback.
        difference: The difference of the second to the first.
    """

    before: float
    after: float
    rolled_back: float
    difference: Difference


class Shell:
    """Runs commands of vectide as a user does, and prints them with their output."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._started = folder, time.monotonic()

    def run(self, *arguments: str) -> str:
        """Run a command in the folder of the experiment, and return what it printed; end this process if it fails."""
        print(f"\n[{time.monotonic() - self._started:4.0f} s] $ vectide {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"vectide {arguments[0]} failed with exit code {done.returncode}: see above\n{done.stdout}"
            )
        if arguments[-1] != "--json":
            print(done.stdout.rstrip(), flush=True)
        return done.stdout


def entries(wordnet: Path | None, pairs: int, *, draw: int) -> tuple[list[Entry], list[Entry]]:
    """Return entries to train on and held-out ones: of WordNet, or signatures where it is not there."""
    if wordnet is None:
        print("WordNet is not on this machine (make test-data fetches it): signatures of Python take its place")
        return reverse_dictionary.split(
            reverse_dictionary.signatures(), HELD_OUT, min(pairs, _SIGNATURE_PAIRS), seed=draw
        )
    return reverse_dictionary.split(reverse_dictionary.glosses(wordnet), HELD_OUT, pairs, seed=draw)


def prepare(shell: Shell, folder: Path, model: Path, train: Sequence[Entry], held_out: Sequence[Entry]) -> Files:
    """Write the files and the jobs, and make both tables: of the words to train on, and of the held-out ones."""
    files = reverse_dictionary.write(folder, train, held_out)
    for name, corpus in (("words", files.corpus), ("dictionary", files.documents)):
        job = {
            "source": {"uri": corpus.name, "id": "id", "text": "text"},
            "table": {"uri": name, "keep_text": True},
            "encoder": {"model": str(model), "max_tokens": MAX_TOKENS},
            "run": {"address": "inline"},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    shell.run("backfill", "words.yaml")
    shell.run("backfill", "dictionary.yaml")
    return files


def mine(shell: Shell) -> None:
    """Find hard negatives for the pairs among the words to train on."""
    shell.run("mine", "dictionary", "--pairs", "pairs.parquet", "--out", "negatives", "--negatives", str(NEGATIVES))


def write_random_negatives(folder: Path, train: Sequence[Entry]) -> None:
    """Write the pairs with negatives that are any other passages."""
    draw, passages = random.Random(0), [entry.passage for entry in train]
    columns = {"query": [entry.query for entry in train], "passage": passages}
    for number in range(1, NEGATIVES + 1):
        columns[f"negative_{number}"] = [
            draw.choice(passages[:row] + passages[row + 1 :]) for row in range(len(passages))
        ]
    pq.write_table(pa.table(columns), folder / "random.parquet")


def write_training(folder: Path, model: Path, out: str, *, negatives: str, seed: int = 0) -> str:
    """Write a training job, and return the name of its file."""
    mined = {"uri": "pairs.parquet", "negatives": "negatives"}
    held_out = {name: f"{name}.parquet" for name in ("corpus", "queries", "judgements")}
    job = {
        "train": {"model": str(model), **SETTINGS, "seed": seed, "evaluate": {"every_steps": 1_000, **held_out}},
        "data": [mined if negatives == "mined" else {"uri": "random.parquet"}],
        "out": {"uri": out},
        "run": {"address": "inline"},
    }
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    return f"{out}.yaml"


def deploy(shell: Shell, adapter: str) -> Loop:
    """Re-embed the table with an adapter behind the gate, evaluate both versions, and roll back."""
    judged = ("--queries", "queries.parquet", "--judgements", "judgements.parquet")
    settings = ("--set", f"encoder.adapters={{{TASK}: {adapter}}}", "--set", f"encoder.task={TASK}")
    shell.run("refresh", "words.yaml", *settings, *judged)
    shell.run("evaluate", "words", *judged, "--against", "@1", "--out", "evaluated")
    old, new, *_ = json.loads((shell.folder / "evaluated" / "evaluation.json").read_text())["rows"]
    shell.run("rollback", "words", "--to", "1")
    again = json.loads(shell.run("evaluate", "words", *judged, "--json"))["rows"][0]
    before, after, rolled_back = (float(row["scores"]["nDCG@10"]["value"]) for row in (old, new, again))
    return Loop(before, after, rolled_back, Difference(**new["differences"]["nDCG@10"]))


def demo(folder: Path, model: Path, wordnet: Path | None, *, pairs: int) -> None:
    """Run the loop once; the last line is the result."""
    shell = Shell(folder)
    train, held_out = entries(wordnet, pairs, draw=_DEMO_DRAW)
    prepare(shell, folder, model, train, held_out)
    mine(shell)
    shell.run("train", write_training(folder, model, "trained", negatives="mined"))
    found = deploy(shell, f"trained/adapters/{TASK}")
    low, high = found.difference.low, found.difference.high
    print(f"nDCG@10 before {found.before:.4f} after {found.after:.4f} [{low:+.4f}, {high:+.4f}]")


def measure(folder: Path, model: Path, wordnet: Path, *, seeds: int, pairs: int) -> tuple[list[Trial], Loop]:
    """Train with each seed, with mined and with random negatives, and put the first result into the table."""
    shell = Shell(folder)
    train, held_out = entries(wordnet, pairs, draw=_BENCHMARK_DRAW)
    files = prepare(shell, folder, model, train, held_out)
    mine(shell)
    write_random_negatives(folder, train)
    _, unrelated = reverse_dictionary.split(reverse_dictionary.signatures(), HELD_OUT, 0, seed=_BENCHMARK_DRAW)
    control = reverse_dictionary.write(folder / "control", [], unrelated)
    trials = []
    for seed in range(seeds):
        for negatives in ("mined", "random"):
            out = f"{negatives}-{seed}"
            job = write_training(folder, model, out, negatives=negatives, seed=seed)
            trained = json.loads(shell.run("train", job, "--json"))
            before, after = _encoders(model, folder / out / "adapters" / TASK)
            result, lost = (_held_out(each).compare(before, after) for each in (files, control))
            trials.append(Trial(seed, negatives, result, lost, trained))
    return trials, deploy(shell, f"mined-0/adapters/{TASK}")


def markdown(trials: Sequence[Trial], loop: Loop, *, pairs: int, command: str, date: str) -> str:
    """Return the page of results."""
    lines = [
        "# Fine-tuning on a reverse dictionary",
        "",
        f"{written(command, date)} {hardware()}. {versions('torch', 'sentence-transformers', 'peft', 'transformers')}.",
        "",
        (
            f"all-MiniLM-L6-v2, {pairs:,} pairs of WordNet 3.0: a gloss finds its words. {HELD_OUT:,} other entries are held out, and "
            "each of their glosses is compared with the words of all of them. The control is the first sentence of a docstring, which "
            f"shall find its signature among {HELD_OUT:,}; nothing was trained for it. All numbers are those of the exported adapter, "
            "loaded by the encoder. Intervals: 95 %, paired bootstrap over queries."
        ),
        "",
        "| seed | negatives | nDCG@10 before | after | difference | control before | after | difference | steps | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in trials:
        fitted, result, control = each.trained["fitted"], each.result, each.control
        cells = (
            *(each.seed, each.negatives, f"{result.before.value:.4f}", f"{result.after.value:.4f}", result.difference),
            *(f"{control.before.value:.4f}", f"{control.after.value:.4f}", control.difference, fitted["steps"]),
            f"{fitted['tokens'] / fitted['seconds']:,.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    settings = ", ".join(f"`{key}: {value}`" for key, value in SETTINGS.items())
    lines += [
        "",
        (
            f"Settings: {settings}, {NEGATIVES} negative a pair. They were chosen on another draw of held-out entries and of the "
            "control, that of `make demo-train`; by chance a few entries are in both."
        ),
        "",
        (
            f"The table of held-out words was then re-embedded with the adapter of seed 0 and mined negatives behind the gate: nDCG@10 "
            f"{loop.before:.4f} before, {loop.after:.4f} after ({loop.difference}), and {loop.rolled_back:.4f} after `vectide rollback`."
        ),
        "",
    ]
    return "\n".join(lines)


def _held_out(files: Files) -> Any:
    names = {name: str(getattr(files, name)) for name in ("corpus", "queries", "judgements")}
    return read_held_out(SimpleNamespace(**names))  # type: ignore[arg-type]


def _encoders(model: Path, adapter: Path) -> tuple[Encode, Encode]:
    """Return what encodes texts with the base, and what does so with an adapter."""
    settings: dict[str, Any] = {"max_tokens": MAX_TOKENS, "dtype": "float32"}
    trained = EncoderSettings(str(model), task=TASK, adapters={TASK: AdapterSettings(str(adapter))}, **settings)
    return of_encoder(load_encoder(describe(str(model), **settings))), of_encoder(load_encoder(describe(trained)))
