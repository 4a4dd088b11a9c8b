"""Several encoders on one GPU, and readers beside encoders on GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.encoders.compute.device import Compute
from pipeline.execute.attempts import NoAttemptLog
from pipeline.execute.stages.encode import EncodeStage
from tests.checkpoints import write_bert


@pytest.mark.parametrize(
    ("device", "gpus", "limits"),
    [("cuda:0", 0.5, [0.475]), ("cuda:0", 0.25, [0.2375]), ("cuda:0", 1.0, []), ("cuda:0", 2.0, []), ("cpu", 0.5, [])],
)
def test_each_encoder_of_a_shared_gpu_keeps_to_its_share_of_the_memory(monkeypatch, device, gpus, limits):
    called = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, on: called.append((share, str(on)))
    )
    encoder: Any = SimpleNamespace(compute=Compute(torch.device(device), torch.bfloat16))
    monkeypatch.setattr("actors.encoders.load_encoder", lambda *args, **kwargs: encoder)
    spec: Any = SimpleNamespace(chunking=None, model=None, source=SimpleNamespace(task=None))
    stage = EncodeStage(spec, NoAttemptLog(), 1, device, gpus=gpus, load_now=True)
    assert stage.encoder is encoder
    assert called == [(pytest.approx(share), device) for share in limits]


@pytest.mark.parametrize(("column", "one_task"), [(None, True), ("kind", False)])
def test_an_encoder_is_told_if_a_job_has_no_column_of_tasks(monkeypatch, column, one_task):
    received: dict[str, Any] = {}
    encoder: Any = SimpleNamespace(compute=Compute(torch.device("cpu"), torch.float32))

    def load(*_: Any, **settings: Any) -> Any:
        received.update(settings)
        return encoder

    monkeypatch.setattr("actors.encoders.load_encoder", load)
    spec: Any = SimpleNamespace(chunking=None, model=None, source=SimpleNamespace(task=column))
    EncodeStage(spec, NoAttemptLog(), 1, "cpu", load_now=True)
    assert received["one_task"] is one_task


@pytest.mark.parametrize(("device", "expected"), [("cuda", "expandable_segments:True"), ("cpu", None)])
def test_memory_of_an_encoder_on_a_gpu_grows_in_segments(monkeypatch, device, expected):
    """Torch reads the variable when it is imported, so the stage sets it before it loads the model."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that the test removes it at its end
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    spec: Any = SimpleNamespace(chunking=None)
    EncodeStage(spec, NoAttemptLog(), 1, device)
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected


READER = """
import os, pickle, sys
from actors.schema import Unit
from pipeline.execute.stages import read
from pipeline.execute.stages.spec import to_block
from actors.text.tokenizer import Tokenizer

class Log:
    def attempt(self, stage, unit):
        raise KeyError("the rest of the stage")

for _ in range(2):
    try:
        read.read_and_tokenize(to_block(Unit(0, ())), None, Log(), beside_gpus=sys.argv[2] == "yes")
    except KeyError:
        pass
from actors.encoders import describe
tokenizer = Tokenizer(describe(sys.argv[1]))
threads = len(os.listdir("/proc/self/task"))
tokenizer.tokenize(["some words"] * 500)
print(os.nice(0), len(os.listdir("/proc/self/task")) - threads)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("beside_gpus", "nice"), [("yes", 19), ("no", os.nice(0))])
def test_a_reader_beside_gpus_tokenizes_in_one_thread_at_the_lowest_priority(tmp_path, beside_gpus, nice):
    command = [sys.executable, "-c", READER, str(write_bert(tmp_path)), beside_gpus]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    environment.pop("RAYON_NUM_THREADS", None)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    threads = 1 if beside_gpus == "yes" else os.cpu_count()
    assert done.stdout.split() == [str(nice), str(threads)]
