"""The usual way with Ray Data: read_parquet, an actor class around `SentenceTransformer.encode`, write_parquet.

It gets the same cores as Vectide: one actor and one thread a core. Ray gets one core more than there are, because Ray Data's
listing of files asks for a whole one: with actors on all of them, the run waits for ever.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.race.ways.results import print_result, record_rows, recorded_rows, since_start

BATCH = 256


class Embed:
    """The actor class that the documentation of Ray shows."""

    def __init__(self, model: str, max_tokens: int, notes: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self._model = SentenceTransformer(model, device="cpu")
        self._model.max_seq_length = max_tokens
        self._notes = Path(notes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self._model.encode(list(batch["text"]), batch_size=32, show_progress_bar=False)
        record_rows(self._notes, len(batch["text"]))
        return batch


def main(corpus: str, out: str, model: str, max_tokens: str) -> None:
    import ray
    import ray.data

    cores = os.cpu_count() or 1
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        num_cpus=cores + 1,
    )
    started = since_start()
    notes = Path(out) / "notes"
    (
        ray.data.read_parquet(corpus, ray_remote_args={"num_cpus": 0.25})
        .map_batches(
            Embed,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=cores),
            num_cpus=1,
            fn_constructor_args=(model, int(max_tokens), str(notes)),
        )
        .write_parquet(f"{out}/table", ray_remote_args={"num_cpus": 0.25})
    )
    came = recorded_rows(notes)
    parts = {
        "imports, Ray's start": started,
        "workers, model, first batch": came[0][0] - started,
        "all other batches": came[-1][0] - came[0][0],
        "writing the last": since_start() - came[-1][0],
    }
    print_result(rows=sum(rows for _, rows in came), out=came, parts=parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
