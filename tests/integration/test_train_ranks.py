"""Two ranks train what one trains: the rows of a step are the same, and each rank sees the negatives of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pipeline.job.training import parse_training
from pipeline.train import worker
from pipeline.train.checkpoints import Checkpoints, read_fitted
from tests.toys.ranks import on_two_ranks
from tests.toys.training import parts

_RANKS = 2


def _train(out: Path, steps: int = 6) -> None:
    train = {"model": "none", "batch_rows": 8, "max_steps": steps, "checkpoint_steps": 2, "learning_rate": 0.01}
    job = parse_training({"train": train, "data": [{"uri": "none"}], "out": {"uri": str(out)}})
    spec: Any = None
    settings = worker.Settings(
        job, spec, str(out), out, Checkpoints(str(out)).newest(), 64, note=print, report=lambda *_: None
    )
    worker.fit(parts(dropout=0.0), settings, None)


def train_rank(rank: int, out: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(_RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
    )
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=_RANKS)
    _train(out)
    dist.destroy_process_group()


def test_two_ranks_train_what_one_trains(tmp_path):
    """One of the sources has negatives and the other has none, so ranks with different sources would wait for ever."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    _train(one)
    on_two_ranks(train_rank, two)
    fitted = [read_fitted(str(out)) or {} for out in (one, two)]
    assert [each["workers"] for each in fitted] == [1, _RANKS]
    assert fitted[0]["tokens"] == fitted[1]["tokens"]
    weights = [load_file(out / "_vectide" / "trained" / "weights.safetensors") for out in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
    losses = [
        [json.loads(line)["loss"] for line in (out / "_vectide" / "steps.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
