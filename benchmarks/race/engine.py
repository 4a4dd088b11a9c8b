"""The engine race: texts in, vectors out, every peer in turn. Writes a table and a plot.

Called by `python -m benchmarks engine`. All peers are loaded, warmed up on all mixes, and then take turns; those that
wait are held still. The reference for cosines is sentence-transformers in float32.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.race import machine
from benchmarks.race.figures import Measured, cosines, operations, rounds
from benchmarks.race.mixes import Mix, cut_mixes, read_texts
from benchmarks.race.peers import BASE, HOME, LIMIT, Peer, export, install, runnable
from benchmarks.race.session import Session, WorkerDied
from pipeline.plan.throughput import has_bfloat16


@dataclass(slots=True)
class Result:
    """Results of a race.

    Attributes:
        measured: By mix, then by label.
        cosine: By label: worst and mean over all mixes.
        limit: By compute type: operations a second of each round.
        left_out: Label to reason.
    """

    mixes: list[Mix]
    measured: dict[str, dict[str, Measured]]
    limit: dict[str, list[float]]
    operations: dict[str, float]
    cosine: dict[str, tuple[float, float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    loaded_s: dict[str, float] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def race(
    *,
    corpora: Path,
    model: Path,
    work: Path,
    threads: int,
    max_tokens: int,
    tokens: int,
    repeats: int,
    only: tuple[str, ...],
    print_progress: Callable[[str], None],
) -> Result:
    """Run it.

    Args:
        corpora: Folder of Parquet files with a column `text`.
        model: Folder of the checkpoint.
        work: Folder for what is written on the way.
        threads: CPU threads of each peer.
        max_tokens: Where every text is cut.
        tokens: Real tokens of each mix.
        repeats: Passes over each mix that count.
        only: Labels, or parts of them, of the peers to run; empty for all. The base always runs.
        print_progress: Gets one line for each step.
    """
    work.mkdir(parents=True, exist_ok=True)
    print_progress(f"cutting mixes of {corpora}")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    mixes, rest = cut_mixes(read_texts(corpora), tokenizer, max_tokens=max_tokens, tokens=tokens)
    paths = {mix.name: work / f"{mix.name.replace(' ', '-')}.json" for mix in mixes}
    for mix in mixes:
        paths[mix.name].write_text(json.dumps(mix.texts))
    (work / "calibration.json").write_text(json.dumps(rest))
    config = json.loads((model / "config.json").read_text())
    result = Result(
        mixes,
        {mix.name: {} for mix in mixes},
        {},
        {mix.name: operations(config, mix.lengths) for mix in mixes},
    )
    result.facts = {"threads": threads, "max_tokens": max_tokens, "repeats": repeats, "load": machine.load()}
    settings = {"model": str(model), "exported": str(HOME / "exported"), "threads": threads, "max_tokens": max_tokens}
    sessions = _start(result, settings, work, only, print_progress)
    try:
        _run(result, sessions, paths, work=work, repeats=repeats, print_progress=print_progress)
    finally:
        for session in sessions.values():
            session.close()
    return result


def _start(
    result: Result, settings: dict[str, Any], work: Path, only: tuple[str, ...], print_progress: Callable[[str], None]
) -> dict[str, Session]:
    """The workers of all peers that can run here, loaded and stopped."""
    peers, result.left_out = runnable(has_bfloat16())
    if only:
        peers = [peer for peer in peers if peer.label == BASE or any(part in peer.label for part in only)]
    broken = {
        name: reason
        for name in sorted({peer.environment for peer in peers if peer.environment})
        if (reason := install(name, print_progress)) is not None
    }
    for line in export(
        Path(settings["model"]),
        Path(settings["exported"]),
        calibration=work / "calibration.json",
        max_tokens=settings["max_tokens"],
        print_progress=print_progress,
    ):
        print_progress(line)
    sessions: dict[str, Session] = {}
    for peer in [*peers, *(LIMIT[kind] for kind in LIMIT if kind in {peer.compute for peer in peers})]:
        if peer.environment in broken:
            result.left_out[peer.label] = broken[peer.environment]
            continue
        print_progress(f"loading {peer.label}")
        processes = os.cpu_count() or 1 if peer.each_core else 1
        log = work / f"{peer.label.replace(' ', '-')}.log"
        try:
            session = Session(peer, {**settings, "compute": peer.compute, "processes": processes}, log)
        except WorkerDied as error:
            result.left_out[peer.label] = f"does not start: {error}"
            print_progress(f"{peer.label}: {error}")
            continue
        sessions[peer.label] = session
        if peer not in LIMIT.values():
            result.peers.append(peer)
            result.loaded_s[peer.label] = session.facts["load_s"]
            result.versions[peer.label] = session.facts["versions"]
    return sessions


def _run(
    result: Result,
    sessions: dict[str, Session],
    paths: dict[str, Path],
    *,
    work: Path,
    repeats: int,
    print_progress: Callable[[str], None],
) -> None:
    labels = [peer.label for peer in result.peers]
    vectors: dict[str, list[np.ndarray[Any, Any]]] = {label: [] for label in labels}
    for mix in result.mixes:
        print_progress(f"warming up on {mix.name}")
        for label in labels:
            file = work / "vectors.npy"
            sessions[label].encode(paths[mix.name], file)
            vectors[label].append(np.load(file))
            result.measured[mix.name][label] = Measured(mix.tokens)
    for label in labels:
        result.cosine[label] = cosines(np.concatenate(vectors[label]), np.concatenate(vectors[BASE]))
    limits = {label: peer.compute for label, peer in ((limit.label, limit) for limit in LIMIT.values())}
    for mix in result.mixes:
        for number, order in enumerate(rounds(list(sessions), repeats)):
            print_progress(f"{mix.name}: round {number + 1} of {repeats}")
            for label in order:
                if label in limits:
                    file = work / "vectors.npy"
                    sessions[label].encode(paths[mix.name], file)
                    result.limit.setdefault(limits[label], []).append(float(np.load(file)[0, 0]))
                    continue
                answer = sessions[label].encode(paths[mix.name])
                measured = result.measured[mix.name][label]
                measured.seconds.append(answer["seconds"])
                measured.processor_s.append(answer["processor_s"])
                measured.places = answer["places"]
    for label in labels:
        result.peak_bytes[label] = sessions[label].peak_bytes()
    result.facts["load after"] = machine.load()


def clear(work: Path) -> None:
    """Remove the intermediate files of a race."""
    shutil.rmtree(work, ignore_errors=True)


def today() -> str:
    """Return the date for result files."""
    return dt.datetime.now(dt.UTC).date().isoformat()
