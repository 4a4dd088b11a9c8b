"""Small functions that torch's compiler turns into one kernel each on a GPU, so that states are read and written once.

They are compiled if the environment variable VECTIDE_FUSE is 1. It is off by default, because no GPU has run them yet; then,
and on a CPU, torch's operations run one after the other. The same variable turns on ALiBi from slopes (`compute.slopes`), the
mean in pieces (`pooling`) and merged adapters (`lora.store`). `benchmarks.gpu.probes` compares each with and without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

from actors.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])
BACKEND = "inductor"
VARIABLE = "VECTIDE_FUSE"


def is_on() -> bool:
    """Returns True if the environment variable is 1."""
    return os.environ.get(VARIABLE) == "1"


def fuses(device: torch.device) -> bool:
    """Returns True if functions are compiled on this device."""
    return device.type == "cuda" and is_on()


def fused(function: Function) -> Function:
    """Marks a function of tensors that is compiled on a GPU, once for all numbers of tokens.

    Its first argument is a tensor on the device. The compiler sees the whole function: it has no loop over rows, and
    reads nothing back.
    """
    compiled: list[Callable[..., torch.Tensor]] = []

    @wraps(function)
    def call(first: torch.Tensor, *others: Any) -> torch.Tensor:
        if not fuses(first.device):
            return function(first, *others)
        if not compiled:
            compiled.append(torch.compile(function, dynamic=True, fullgraph=True, backend=BACKEND))
        from torch._dynamo.exc import TorchDynamoException  # the compiler, which takes seconds to import

        try:
            return compiled[0](first, *others)
        except TorchDynamoException as error:  # not an error of a row
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{VARIABLE} is 1, and torch {torch.__version__} cannot compile {function.__name__} here "
                f"({type(error).__name__}: {reason}). Leave the variable out."
            ) from error

    return cast("Function", call)
