"""Time and results of each function that VECTIDE_FUSE=1 turns on, beside those of what runs without it.

Called as `python -m benchmarks gpu-probes`, in a process of its own: a kernel that fails can end the use of the GPU. Each call is
made without and with the variable, on inputs of a model's real sizes. An error is a line of the page, since a function that no
GPU has compiled yet may fail to compile. Merged adapters have no probe: `VECTIDE_FUSE=1 python -m benchmarks gpu` measures them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from actors.encoders.alibi import Alibi
from actors.encoders.compute import fused
from actors.encoders.compute.attention import attend
from actors.encoders.compute.device import Compute
from actors.encoders.compute.linear import LayerNorm, Linear, RmsNorm, swiglu
from actors.encoders.packed import PackedBatch, pack
from actors.encoders.pooling import pool
from actors.encoders.rope import Rope, apply_rotary_
from benchmarks.gpu.timing import let_go, wait
from benchmarks.race import machine

_CALLS = 20
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Probe:
    """One function.

    Attributes:
        plain_ms, fused_ms: Median milliseconds without and with VECTIDE_FUSE=1.
        apart: Norm of the difference of both results over the norm of the first.
        compile_s: Seconds of the first fused call.
        error: Why there is no fused time.
    """

    name: str
    plain_ms: float = 0.0
    fused_ms: float = 0.0
    apart: float = 0.0
    compile_s: float = 0.0
    error: str = ""

    def cells(self) -> str:
        """Return the line of a table."""
        if self.error:
            return f"| {self.name} | {self.plain_ms:.3f} | {self.error} | | | |"
        return (
            f"| {self.name} | {self.plain_ms:.3f} | {self.fused_ms:.3f} | {self.plain_ms / self.fused_ms:.2f} "
            f"| {self.apart:.5f} | {self.compile_s:.1f} |"
        )


def probe_all(device: torch.device, tokens: int) -> Iterator[Probe]:
    """Probe each function on about `tokens` tokens."""
    for name, prepare in _prepared(device, tokens).items():
        yield probe(name, prepare, device)
        let_go(device)


def page(found: Sequence[Probe], *, date: str) -> str:
    """Return the page of what was probed so far."""
    lines = [
        "# Fused functions on a GPU",
        "",
        machine.written("python -m benchmarks gpu-probes", date),
        "",
        f"On {machine.gpu()}. Medians of one call in bfloat16, without and with VECTIDE_FUSE=1. Apart is the norm of the difference of the results",
        "over the norm of the first: bfloat16 itself has some 0.003.",
        "",
        "| function | plain, ms | fused, ms | x | apart | first call, s |",
        "|---|---:|---:|---:|---:|---:|",
        *(probe.cells() for probe in found),
    ]
    return "\n".join(lines) + "\n"


def probe(name: str, prepare: Callable[[], Call], device: torch.device) -> Probe:
    """Time one function; `prepare` returns its call."""
    plain_ms = 0.0
    try:
        call = prepare()
        with _fusing("0"):
            right, plain_ms = call().float(), _milliseconds(call, device)
        with _fusing("1"):
            started = time.perf_counter()
            result = call().float()
            wait(device)
            seconds = time.perf_counter() - started
            fused_ms = _milliseconds(call, device)
    except Exception as error:  # noqa: BLE001  the compiler raises errors of many kinds
        return Probe(name, plain_ms, error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
    apart = float(torch.linalg.vector_norm(result - right) / torch.linalg.vector_norm(right))
    return Probe(name, plain_ms, fused_ms, apart, seconds)


@contextmanager
def _fusing(value: str) -> Iterator[None]:
    before = os.environ.get(fused.VARIABLE)
    os.environ[fused.VARIABLE] = value
    try:
        with torch.inference_mode():
            yield
    finally:
        del os.environ[fused.VARIABLE]
        if before is not None:
            os.environ[fused.VARIABLE] = before


def _milliseconds(call: Call, device: torch.device) -> float:
    times = []
    for _ in range(3):
        wait(device)
        started = time.perf_counter()
        for _ in range(_CALLS):
            call()
        wait(device)
        times.append((time.perf_counter() - started) / _CALLS * 1000)
    return statistics.median(times)


def _batch(length: int, tokens: int, device: torch.device) -> PackedBatch:
    lengths = np.full(max(1, tokens // length), min(length, tokens), np.int64)
    return pack(np.zeros(int(lengths.sum()), np.int64), lengths, device=device)


def _prepared(device: torch.device, tokens: int) -> dict[str, Callable[[], Call]]:
    """Functions that make the inputs of a call and return it. Weights are those of the named model's layers."""
    compute = Compute(device, torch.bfloat16)
    random = partial(torch.randn, device=device, dtype=torch.bfloat16)

    def rotary() -> Call:
        batch = _batch(32, tokens, device)
        angles, heads = Rope(64, 20_000.0, compute=compute).angles(batch), random(len(batch.ids), 48, 64)
        return lambda: apply_rotary_(heads.clone()[:, :32], angles)

    def layer_norm() -> Call:
        norm, (x, y) = LayerNorm(torch.ones(1024), torch.zeros(1024), 1e-5, compute=compute), random(2, tokens, 1024)
        return lambda: norm.of_sum(x, y)

    def rms_norm() -> Call:
        norm, (x, y) = RmsNorm(torch.ones(2048), 1e-6, compute=compute), random(2, tokens // 4, 2048)
        stream = x.float()
        return lambda: norm.of_sum_(stream.clone(), y)

    def gelu(bias: bool) -> Call:
        weight = torch.randn(4096, 1024) / 32
        linear = Linear(weight, torch.randn(4096) if bias else None, compute=compute, gelu=True)
        x, factor = random(tokens, 1024), random(tokens, 4096)
        return (lambda: linear(x)) if bias else (lambda: linear.times(x, factor))

    def gated() -> Call:
        wide = random(tokens // 4, 2 * 11_008)
        return lambda: swiglu(wide)

    def alibi(length: int) -> Call:
        batch, bias = _batch(length, tokens, device), Alibi(12, device)
        query, key, value = random(len(batch.ids), 3, 12, 64).unbind(1)
        return lambda: attend(query, key, value, batch, bias=bias)

    def mean(length: int) -> Call:
        batch = _batch(length, tokens, device)
        hidden = random(len(batch.ids), 768)
        return lambda: pool(hidden, batch, "mean")

    return {
        "rotary positions, v3": rotary,
        "residual and layer norm, v3": layer_norm,
        "residual and RMS norm, v4": rms_norm,
        "product, bias and GELU, v3": partial(gelu, True),
        "product, GELU and factor, v2": partial(gelu, False),
        "SwiGLU, v4": gated,
        **{f"ALiBi, v2, rows of {length:,}": partial(alibi, length) for length in (35, 512, 8192)},
        **{f"mean over rows of {length:,}": partial(mean, length) for length in (35, 512, 8192)},
    }
