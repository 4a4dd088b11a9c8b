"""Loops for CPUs in C: attention over packed rows, norms, rotary positions, and what stands around products of 8-bit integers.

Called by `attention`, `linear`, `rope` and `integers` of the encoders. The C files beside this one become the module `vectide_kernels` at
install, where there is a compiler; it has no Python in it, and is called through ctypes, which lets other threads of Python go
on. Where it was not built, or on a processor without AVX2, `find` gives None and torch's own operations do the same, slower
(docs/log.md).
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch

from actors.kernels.parallel import parallel_for

InstructionSet = Literal["avx2", "avx512", "avx512_bf16"]

_MODULE = "vectide_kernels"
_INTERFACE_VERSION = 2  # processor.c says what it was built with
_P, _N = ctypes.c_void_p, ctypes.c_int64
_ATTEND = (_P, _P, _P, _P, ctypes.c_int, _P, _N, _N, _N, ctypes.c_float, _P, _N, _P, _N, _N)
_ROUND = (_P, _N, _N, _P, _P, _P)
_NORM = (_P, _P, _N, _N, _P, _P, ctypes.c_float, _P)
_GELU = (_P, _N)
_TURN = (_P, _N, _N, _N, _N, _P, _P)
_FINISH = (_P, _N, _N, _P, _P, _P, _P, _P, ctypes.c_int)


class Kernels:
    """The loops of one instruction set.

    Args:
        library: The module, opened.
        name: The instruction set; each has what those before it have.
    """

    def __init__(self, library: ctypes.CDLL, name: InstructionSet) -> None:
        self.name = name
        wide: InstructionSet = "avx2" if name == "avx2" else "avx512"
        # None where the processor has no products of bfloat16.
        self._attend_bfloat16: Any = None
        self._norm_bfloat16: Any = None
        self._gelu_bfloat16: Any = None
        self._turn_bfloat16: Any = None
        if name == "avx512_bf16":
            self._attend_bfloat16 = _function(library, f"attend_{name}", _ATTEND)
            self._norm_bfloat16 = _function(library, f"norm_{name}", _NORM)
            self._gelu_bfloat16 = _function(library, f"gelu_{name}", _GELU)
            self._turn_bfloat16 = _function(library, f"turn_{name}", _TURN)
        self._attend_float32 = _function(library, f"attend_{wide}", _ATTEND)
        self._norm_float32 = _function(library, f"norm_{wide}", _NORM)
        self._turn_float32 = _function(library, f"turn_{wide}", _TURN)
        self._round = _function(library, f"round_{wide}", _ROUND)
        self._finish = _function(library, f"finish_{wide}", _FINISH)

    def takes(self, dtype: torch.dtype) -> bool:
        """True where `attend` and `norm` take states of this type."""
        return dtype == torch.float32 or (dtype == torch.bfloat16 and self._attend_bfloat16 is not None)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: np.ndarray[Any, np.dtype[np.int64]],
        *,
        scale: float,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        approximate: bool = False,
    ) -> None:
        """Attention of rows that lie one after the other, each over itself.

        Args:
            query: [tokens, heads, width] float32 or bfloat16; heads of a token side by side, tokens at any stride.
            key: As `query`.
            value: As `query`.
            lengths: int64 [rows], tokens of each.
            scale: Factor on the scores, above 0.
            out: [tokens, heads * width] in the type of `query`, contiguous; filled.
            bias: float32 [heads, 2 * length - 1], for key minus query, where all rows have one length.
            approximate: Multiply float32 as bfloat16 where the processor can.
        """
        heads, width = query.shape[1:]
        query, key, value = (_with_heads_together(x) for x in (query, key, value))
        wide = query.dtype == torch.float32
        kernel = self._attend_float32
        if self._attend_bfloat16 is not None and (approximate or not wide):
            kernel = self._attend_bfloat16
        steps = np.array([x.stride(0) * x.element_size() for x in (query, key, value)], np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)

        def some(first: int, last: int) -> None:
            failed = kernel(
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                steps.ctypes.data,
                wide,
                lengths.ctypes.data,
                len(lengths),
                heads,
                width,
                scale,
                None if bias is None else bias.data_ptr(),
                0 if bias is None else bias.stride(0),
                out.data_ptr(),
                first,
                last,
            )
            if failed:
                raise torch.OutOfMemoryError(f"no memory for attention over rows of {int(lengths.max())} tokens")

        parallel_for(some, heads)

    def norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Layer normalisation of `x + residual` over the last axis, with float32 sums and statistics.

        Args:
            x: [n, hidden] float32 or bfloat16.
            weight: float32 [hidden].
            bias: float32 [hidden].
            eps: Added to the variance.
            residual: As `x`.
        """
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        kernel = self._norm_bfloat16 if x.dtype == torch.bfloat16 else self._norm_float32
        if kernel(
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            *x.shape,
            weight.data_ptr(),
            bias.data_ptr(),
            eps,
            out.data_ptr(),
        ):
            raise torch.OutOfMemoryError(f"no memory for a row of {x.shape[1]} values")
        return out

    def gelu_(self, x: torch.Tensor) -> torch.Tensor:
        """GELU in place, to 5e-5, which only bfloat16 is too coarse to tell from the exact one; `x` is contiguous."""
        self._gelu_bfloat16(x.data_ptr(), x.numel())
        return x

    def apply_rotary_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary positions in place.

        Args:
            x: [tokens, heads, width] float32 or bfloat16; heads of a token side by side, tokens at any stride.
            cos: float32 [tokens, width / 2], contiguous.
            sin: As `cos`.
        """
        kernel = self._turn_bfloat16 if x.dtype == torch.bfloat16 else self._turn_float32
        kernel(x.data_ptr(), x.stride(0), *x.shape, cos.data_ptr(), sin.data_ptr())
        return x

    def round_states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `encoders.integers.round_states` does, with scale and offset as float32 [n]."""
        rows, width = x.shape
        out = torch.empty(rows, width, dtype=torch.uint8)
        scale, offset = torch.empty(2, rows).unbind(0)
        self._round(x.data_ptr(), rows, width, out.data_ptr(), scale.data_ptr(), offset.data_ptr())
        return out, scale, offset

    def finish(
        self,
        y: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor,
        sums: torch.Tensor,
        *,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        gelu: bool,
    ) -> torch.Tensor:
        """`y * scale + offset * sums + bias + residual`, then GELU, in place; all float32 and contiguous.

        Args:
            y: [n, out].
            scale: [n].
            offset: [n].
            sums: [out].
            bias: [out].
            residual: [n, out].
            gelu: Whether GELU follows; to 5e-5.
        """
        self._finish(
            y.data_ptr(),
            y.shape[0],
            y.shape[1],
            scale.data_ptr(),
            offset.data_ptr(),
            sums.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            gelu,
        )
        return y


@cache
def find() -> Kernels | None:
    """The fastest loops for this processor, or None."""
    every = available()
    return every[-1] if every else None


def kernels_for(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The fastest loops, where they take states of this type on this device."""
    found = find() if device.type == "cpu" else None
    return found if found is not None and found.takes(dtype) else None


@cache
def available() -> tuple[Kernels, ...]:
    """The loops of every instruction set that this processor has, the fastest last; none where they were not built."""
    library = _library()
    names: tuple[InstructionSet, ...] = get_args(InstructionSet)
    return () if library is None else tuple(Kernels(library, name) for name in names[: library.instruction_set()])


def _library() -> ctypes.CDLL | None:
    found = find_spec(_MODULE)
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
        version = library.interface_version()
    except (OSError, AttributeError):  # built for another system, or something else of this name
        return None
    # Other sources: packages that a job ships meet what is installed on the cluster.
    return library if version == _INTERFACE_VERSION else None


def _function(library: ctypes.CDLL, name: str, takes: tuple[Any, ...]) -> Any:
    function = getattr(library, name)
    function.argtypes = takes
    function.restype = ctypes.c_int if takes in {_ATTEND, _NORM} else None
    return function


def _with_heads_together(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
