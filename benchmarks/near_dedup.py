"""Shingles, MinHash signatures and bands of `near_dedup` against datasketch and datatrove, and the pairs that they find.

Run as `python -m benchmarks near-dedup`. Each way gets the same normalised texts and does the same with one thread, in a
process of its own; seconds are of the CPU.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.race.machine import commit, hardware, versions
from benchmarks.race.peers import ROOT, install, python_of
from benchmarks.race.workers.minhash import N, shingles
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.shingles import Shingles, band_keys, bands_for

_ENVIRONMENT = "near_dedup"
_WAYS = {"vectide": None, "datasketch": _ENVIRONMENT, "datatrove": _ENVIRONMENT}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_PERMUTATIONS = (128, 256)
_THRESHOLD = 0.8
_SHARE = 0.05  # of the words of a text that its near copy has otherwise
_LEAST_WORDS = 60  # of a text with a near copy


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs of texts with at least the threshold, and with a shared band."""

    bands: int
    length: int
    true: int
    candidates: int
    found: int


@dataclass(frozen=True, slots=True)
class Result:
    """Texts a second by permutations and way, and the pairs that bands find."""

    texts: int
    characters: float
    copies: int
    rates: dict[int, dict[str, float]]
    pairs: dict[int, Found]
    left_out: list[str]


def race(corpora: Path, work: Path, *, repeats: int, print_progress: Callable[[str], None]) -> Result:
    """Time each way, and count the pairs."""
    work.mkdir(parents=True, exist_ok=True)
    texts = [
        normalised(text)
        for file in sorted(corpora.glob("*.parquet"))
        for text in pq.read_table(file)["text"].to_pylist()
    ]
    file = work / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    failed = install(_ENVIRONMENT, print_progress)
    ways = {way: environment for way, environment in _WAYS.items() if environment is None or failed is None}
    rates: dict[int, dict[str, float]] = {}
    for permutations in _PERMUTATIONS:
        rates[permutations] = {}
        for way, environment in ways.items():
            seconds = [_run(way, environment, file, permutations) for _ in range(repeats)]
            rates[permutations][way] = len(texts) / statistics.median(seconds)
            print_progress(f"{permutations} permutations, {way}: {rates[permutations][way]:,.0f} texts/s")
    edited = texts + [_edited(text) for text in texts if text.count(" ") >= _LEAST_WORDS]
    similarities = _similarities(edited)
    pairs = {permutations: _found(edited, similarities, permutations) for permutations in _PERMUTATIONS}
    characters = statistics.mean(map(len, texts))
    return Result(len(texts), characters, len(edited) - len(texts), rates, pairs, [failed] if failed else [])


def _run(way: str, environment: str | None, file: Path, permutations: int) -> float:
    bands, length = bands_for(_THRESHOLD, permutations)
    command = [
        str(python_of(environment)),
        "-m",
        "benchmarks.race.workers.minhash",
        way,
        str(file),
        str(bands),
        str(length),
    ]
    variables = {**os.environ, **dict.fromkeys(_THREADS, "1")}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["s"])


def _edited(text: str) -> str:
    words, rng = text.split(" "), random.Random(text)
    for place in rng.sample(range(len(words)), round(_SHARE * len(words))):
        words[place] = rng.choice(words)
    return " ".join(words)


def _similarities(texts: list[str]) -> np.ndarray:
    """Return the Jaccard similarity of all pairs, the first of a pair before the second, by products of sparse rows."""
    from scipy.sparse import csr_array

    sets = [shingles(text) for text in texts]
    names = {shingle: number for number, shingle in enumerate(sorted(set().union(*sets)))}
    columns = [names[shingle] for each in sets for shingle in each]
    sizes = np.array([len(each) for each in sets])
    rows = csr_array((np.ones(len(columns), np.float32), columns, np.r_[0, np.cumsum(sizes)]), (len(sets), len(names)))
    common = (rows @ rows.T).toarray()
    return np.triu(common / np.maximum(sizes[:, None] + sizes[None, :] - common, 1), 1)


def _found(texts: list[str], similarities: np.ndarray, permutations: int) -> Found:
    bands, length = bands_for(_THRESHOLD, permutations)
    keys = band_keys(Shingles("characters", N).signatures(texts, permutations), bands, length)
    shared = np.zeros(similarities.shape, bool)
    for band in range(bands):
        order = np.argsort(keys[:, band], kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(keys[order, band])) + 1):
            if len(bucket) > 1:
                shared[np.ix_(bucket, bucket)] = True
    shared = np.triu(shared, 1)
    true = similarities >= _THRESHOLD
    return Found(bands, length, int(true.sum()), int(shared.sum()), int((true & shared).sum()))


def markdown(result: Result, *, command: str, date: str) -> str:
    """Return the page of a result."""
    facts = (
        f"{hardware()}. {versions('numpy', 'rensa')}; peers in `benchmarks/race/environments/near_dedup.txt`. "
        f"{result.texts:,} docstrings of {result.characters:.0f} characters on average, normalised before; shingles of {N} "
        "characters."
    )
    truth = (
        f"Among these texts and {result.copies:,} copies of them with {_SHARE:.0%} of the words exchanged, all pairs were "
        f"compared. Pairs with a Jaccard similarity of {_THRESHOLD} or more, and those that share a band:"
    )
    lines = [
        f"# Near copies: shingles, signatures and bands, {date}",
        "",
        f"`{command}`, commit {commit()}, one thread for each, CPU seconds.",
        "",
        facts,
        "",
        "| way | permutations | texts/s | vectide is faster by |",
        "|---|---:|---:|---:|",
    ]
    for permutations, rates in result.rates.items():
        for way, rate in rates.items():
            lines.append(f"| {way} | {permutations} | {rate:,.0f} | {rates['vectide'] / rate:.1f} |")
    lines += [
        "",
        truth,
        "",
        "| permutations | bands x places | pairs of similarity | found | candidates |",
        "|---:|---:|---:|---:|---:|",
    ]
    for permutations, each in result.pairs.items():
        share = each.found / max(each.true, 1)
        lines.append(
            f"| {permutations} | {each.bands} x {each.length} | {each.true:,} | {share:.2%} | {each.candidates:,} |"
        )
    lines += ["", *(f"- Left out: {reason}." for reason in result.left_out)]
    return "\n".join(lines).rstrip() + "\n"
