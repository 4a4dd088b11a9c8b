"""The device of an encoder in this process."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from pipeline.execute.choose import executor_for, inline_if_small
from pipeline.job.config import Run


@pytest.mark.parametrize(
    ("driver", "gpu", "wish", "device"),
    [
        (True, True, "auto", "cuda"),
        (True, False, "auto", "cpu"),  # a torch for CPUs, or CUDA_VISIBLE_DEVICES hides the GPU
        (False, False, "auto", "cpu"),
        (True, True, 0, "cpu"),  # the value for dtype int8, too
        (True, True, 0.5, "cuda"),
        (False, False, 1, "cuda"),  # the encoder then says that there is none
    ],
)
def test_a_run_in_this_process_takes_the_gpu_that_is_there(monkeypatch, driver, gpu, wish, device):
    def load(name, *args, **kwargs):
        if not driver:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for executor in (
        executor_for(Run(address="inline", gpus_per_replica=wish)),
        inline_if_small(Run(address="inline", gpus_per_replica=wish), fits_in_process=False),
        inline_if_small(Run(gpus_per_replica=wish), fits_in_process=True),
    ):
        assert executor is not None
        assert executor.pool.device == device
        # Units are cut for a GPU or for so many cores.
        assert (executor.pool.cores is None) == (device == "cuda")


def test_without_a_driver_torch_is_not_imported(monkeypatch):
    def load(name, *args, **kwargs):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would raise
    assert executor_for(Run(address="inline")).pool.device == "cpu"
