"""Estimated throughput of an encoder, used to size units and to decide whether a job fits in this process.

Called by the plan, before anything is measured. The rate of a core is that of the driver's processor; on a cluster the
encoders mostly have the same kind. An estimate that is wrong by a factor of three gives units of 3 or of 30 seconds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

# Of a core, in operations a second: some two thirds of what was measured (docs/benchmarks), since others are slower.
_CORE = {"float32": 4e10, "bfloat16": 4e10, "int8": 6e10}
_CORE_AVX512 = {"float32": 1.2e11, "bfloat16": 1.2e11, "int8": 1.5e11}
_BFLOAT16 = 2.5e11
_INT8 = 3.5e11
_GPU = 1.5e14
_GPU_TOKENS_PER_S = 500_000


def core_flops(precision: str) -> float:
    """Operations a second of a core of this processor, for a spec's precision class."""
    has = processor_flags()
    if precision == "bfloat16" and has_bfloat16():
        return _BFLOAT16
    if precision == "int8" and has & {"avx512_vnni", "amx_int8"}:
        return _INT8
    return (_CORE_AVX512 if "avx512f" in has else _CORE)[precision]


def encoder_tokens_per_s(flops_per_token: float, precision: str, *, cores: int | None) -> float:
    """Tokens a second of one encoder: on so many cores, or on a card (None)."""
    if cores is None:
        return min(_GPU / flops_per_token, _GPU_TOKENS_PER_S)
    return cores * core_flops(precision) / flops_per_token


def has_bfloat16() -> bool:
    """Return whether Linux reports that this processor multiplies bfloat16 in hardware."""
    return bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def processor_flags() -> frozenset[str]:
    """Return the processor features that Linux reports; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
