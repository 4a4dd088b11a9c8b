"""Peak memory of one step of a training, by rows of a batch; each in a process of its own.

Run as `python -m benchmarks training-memory`. An adapter of rank 16 on all-MiniLM-L6-v2 gets texts of random tokens, 8 to 32
of them. The loss without a cache is `MultipleNegativesRankingLoss` of sentence-transformers on the same module.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.race.machine import commit, hardware, versions
from benchmarks.race.peers import ROOT

CACHED, WITHOUT_CACHE = "infonce", "without a cache"
_TOKENS = (8, 32)


def measure(model: Path, loss: str, rows: int, budget_tokens: int) -> dict[str, float]:
    """Return peak memory before and in a step, in bytes, its seconds, and the tokens of its texts."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from actors.encoders import describe
    from pipeline.job.training import parse_training
    from pipeline.train.data import Source, TrainingData
    from pipeline.train.losses import build_losses
    from pipeline.train.module import embedding_model

    spec = describe(str(model), dtype="float32")
    of = embedding_model(spec, tasks=["legal"], rank=16, alpha=32)
    job = parse_training(
        {
            "train": {"model": str(model), "budget_tokens": budget_tokens},
            "data": [{"uri": "none"}],
            "out": {"uri": "none"},
        }
    )
    source = Source(name="source", folder=Path(), weight=1, loss=CACHED, negatives=0, rows=rows)
    cached = loss == CACHED
    step = (
        build_losses(of, job, TrainingData((source,), Path(), "", {}))["source"]
        if cached
        else MultipleNegativesRankingLoss(of)
    )

    def column(first: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(first)
        lengths = torch.randint(*_TOKENS, (rows, 1), generator=generator)
        ids = torch.randint(1000, 30_000, (rows, _TOKENS[1]), generator=generator)
        mask = (torch.arange(_TOKENS[1]) < lengths).long()
        found = {"input_ids": ids * mask, "attention_mask": mask, "task": torch.zeros(rows, dtype=torch.int64)}
        return found | {"text_hash": torch.arange(first, first + rows)} if cached else found

    features = [column(0), column(rows)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    started = time.perf_counter()
    terms = step(features, None)
    (torch.stack(list(terms.values())).sum() if isinstance(terms, dict) else terms).backward()
    return {
        "s": time.perf_counter() - started,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "tokens": sum(int(each["attention_mask"].sum()) for each in features),
    }


def run(model: Path, *, rows: list[int], budget_tokens: int) -> list[dict[str, Any]]:
    """Measure each number of rows, and the first without a cache: it needs 250 KB a token."""
    found: list[dict[str, Any]] = []
    for loss, count in (*((CACHED, count) for count in rows), (WITHOUT_CACHE, rows[0])):
        arguments = json.dumps([str(model), loss, count, budget_tokens])
        command = [sys.executable, "-m", "benchmarks.training_memory", arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"{loss} with {count} rows failed: {done.stderr[-2000:]}")
        found.append({"loss": loss, "rows": count, **json.loads(done.stdout.splitlines()[-1])})
    return found


def markdown(results: list[dict[str, Any]], *, budget_tokens: int, command: str, date: str) -> str:
    """Return the page of a measurement."""
    lines = [f"# Memory of a training step, {date}", "", f"`{command}`, commit {commit()}.", ""]
    lines += [f"{hardware()}. {versions('torch', 'sentence-transformers', 'peft')}.", ""]
    lines += [
        f"One step of an adapter of rank 16 on all-MiniLM-L6-v2 with pairs of texts of {_TOKENS[0]} to {_TOKENS[1]} tokens,"
    ]
    lines += [
        f"{budget_tokens:,} tokens at once. The memory is the peak of the process, and in it that of the step: what it has"
    ]
    lines += ["beside modules and model. The ratio is that of the peak to the first one.", ""]
    lines += [
        "| loss | rows | tokens | peak, MiB | of the step, MiB | ratio | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        step, ratio = each["peak"] - each["before"], each["peak"] / results[0]["peak"]
        row = f"{each['loss']} | {each['rows']:,} | {each['tokens']:,} | {each['peak'] >> 20:,} | {step >> 20:,}"
        lines.append(f"| {row} | {ratio:.2f} | {each['s']:.1f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    place, *settings = json.loads(sys.argv[1])
    print(json.dumps(measure(Path(place), *settings)))
