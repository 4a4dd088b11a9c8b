"""Protocol of a worker: one line of JSON in, one line out. Imported in every environment, so it needs numpy alone.

A worker loads its engine, says so, and then encodes one request at a time. Texts are read from a
file before the clock starts and vectors are written after it has stopped: texts in, vectors out is what is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """Settings with which a worker is started.

    Attributes:
        model: Folder of the published checkpoint.
        exported: Folder of what was exported from it.
        threads: CPU threads that it may use.
        max_tokens: Where every text is cut, special tokens counted.
        compute: "float32", "bfloat16" or "int8".
        processes: Processes that share the threads.
    """

    model: str
    exported: str
    threads: int
    max_tokens: int
    compute: str = "float32"
    processes: int = 1


class Engine(Protocol):
    """Texts in, unit vectors out. `places` counts the token places of the last call, padding included, or is None."""

    places: int | None

    def encode(self, texts: list[str]) -> Floats:
        """float32 [n, dim] in the order of `texts`."""


@dataclass
class Batch:
    """Rows padded to the longest of them, as models that take no packed rows want them."""

    rows: npt.NDArray[np.int64]
    feeds: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def padded_batches(ids: list[list[int]], budget: int) -> list[Batch]:
    """Rows from the longest to the shortest in batches of at most `budget` places each, padding included: what a user
    who knows the engine well would do, and the order in which ours are taken too."""
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        longest = max(len(ids[order[start]]), 1)
        rows = order[start : start + max(budget // longest, 1)]
        start += len(rows)
        tokens = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(ids[row])] = ids[row]
            mask[place, : len(ids[row])] = 1
        batches.append(Batch(np.array(rows), {"input_ids": tokens, "attention_mask": mask}))
    return batches


def serve(load: Callable[[Settings], Engine], packages: tuple[str, ...]) -> None:
    """Answer requests until there are no more.

    Args:
        load: Makes the engine; timed as its start.
        packages: Whose versions the table names.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    settings = Settings(**json.loads(sys.argv[1]))
    started = time.perf_counter()
    engine = load(settings)
    loaded_s = time.perf_counter() - started

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    answer(load_s=loaded_s, versions={name: version(name) for name in packages})
    texts: dict[str, list[str]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path = request["texts"]
        if path not in texts:
            with open(path, encoding="utf-8") as file:
                texts[path] = json.load(file)
        started, spent = time.perf_counter(), time.process_time()
        vectors = engine.encode(texts[path])
        seconds, processor_s = time.perf_counter() - started, time.process_time() - spent
        if request.get("vectors"):
            np.save(request["vectors"], vectors)
        elsewhere_s = getattr(engine, "children_s", 0.0)
        answer(seconds=seconds, processor_s=processor_s + elsewhere_s, places=engine.places)
