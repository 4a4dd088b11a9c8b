"""CPU kernels in C: attention over packed rows, layer norm, GELU, rotary positions, 8-bit products, stored vectors.

Called by `attention`, `linear`, `int8` and `rope` of the encoders, and by the scan of a table. If a compiler is available
at install, the C files of this folder are built into the module `vectide_kernels`. It does not use Python's C API and is
called through ctypes, which releases the interpreter lock. If it was not built, or the processor has no AVX2, `find`
returns None, and torch's operations compute the same more slowly (docs/log.md).
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch

from actors.kernels.parallel import parallel_for

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Pairs = tuple[Ints, Ints, Floats]  # queries, rows and values of some pairs
InstructionSet = Literal["avx2", "avx512", "avx512_bf16"]

_MODULE = "vectide_kernels"
_INTERFACE_VERSION = 6  # of the argument lists below; processor.c returns the version that it was built with
_P, _N = ctypes.c_void_p, ctypes.c_int64
_ATTEND = (_P, _P, _P, _P, ctypes.c_int, _P, _N, _N, _N, _N, ctypes.c_float, ctypes.c_int, _P, _N, _P, _N, _N)
_ROUND = (_P, _N, _N, _P, _P, _P)
_NORM = (_P, _P, _N, _N, _P, _P, ctypes.c_float, _P)
_GELU = (_P, _N)
_ROTARY = (_P, _N, _N, _N, _N, _P, _P)
_FINISH = (_P, _N, _N, _P, _P, _P, _P, _P, ctypes.c_int)
_PRODUCTS = (_P, _N, _N, _N, _P, _P, _P)
_SELECT = (_P, ctypes.c_int, _N, _N, _P, _P, _P, _P)
_SEARCH = (_P, _N, _N, _N, _P, _P, _N, _P, _P, _P, _P)
_MAXSIM = (_P, _P, _N, _N, _N, _P, _N, _P)
# What functions return, by their arguments.
_RESULTS = {_SELECT: _N, _SEARCH: _N, _ATTEND: ctypes.c_int, _NORM: ctypes.c_int, _MAXSIM: ctypes.c_int}
_ROWS_OF_MAXSIM = 4  # of a thread at a time; a page has some 700 vectors
_ROWS_OF_PRODUCTS = 8192  # of a thread at a time
_PAIRS_OF_SEARCH = 1 << 19


class Kernels:
    """Kernels of one instruction set.

    Args:
        library: The loaded module.
        name: The instruction set. Each includes the ones before it.
    """

    def __init__(self, library: ctypes.CDLL, name: InstructionSet) -> None:
        self.name = name
        wide: InstructionSet = "avx2" if name == "avx2" else "avx512"
        # None if the processor has no bfloat16 instructions.
        self._attend_bfloat16: Any = None
        self._norm_bfloat16: Any = None
        self._gelu_bfloat16: Any = None
        self._rotary_bfloat16: Any = None
        if name == "avx512_bf16":
            self._attend_bfloat16 = _function(library, f"attend_{name}", _ATTEND)
            self._norm_bfloat16 = _function(library, f"norm_{name}", _NORM)
            self._gelu_bfloat16 = _function(library, f"gelu_{name}", _GELU)
            self._rotary_bfloat16 = _function(library, f"turn_{name}", _ROTARY)
        self._attend_float32 = _function(library, f"attend_{wide}", _ATTEND)
        self._norm_float32 = _function(library, f"norm_{wide}", _NORM)
        self._rotary_float32 = _function(library, f"turn_{wide}", _ROTARY)
        self._round = _function(library, f"round_{wide}", _ROUND)
        self._finish = _function(library, f"finish_{wide}", _FINISH)
        self._products = _function(library, f"products_{wide}", _PRODUCTS)
        self._select = _function(library, f"select_{wide}", _SELECT)
        self._search = _function(library, f"search_{wide}", _SEARCH)
        self._maxsim = _function(library, f"maxsim_{wide}", _MAXSIM)
        self._group = 6 if wide == "avx2" else 12  # queries that `search` multiplies at a time

    def takes(self, dtype: torch.dtype) -> bool:
        """Return True if `attend` and `norm` accept states of this type."""
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
        causal: bool = False,
        bias: torch.Tensor | None = None,
        approximate: bool = False,
    ) -> None:
        """Compute self-attention of packed rows.

        Args:
            query: [tokens, heads, width] float32 or bfloat16; the heads of a token contiguous, tokens at any stride.
            key: [tokens, groups, width], otherwise as `query`; head h of the query uses group `h // (heads / groups)`.
            value: Same form as `key`.
            lengths: int64 [rows], tokens of each row.
            scale: Factor of the scores, above 0.
            out: [tokens, heads * width] in the type of `query`, contiguous; receives the result.
            causal: A token attends to itself and earlier tokens only.
            bias: float32 [heads, 2 * length - 1], indexed by key position minus query position; requires rows of equal
                length.
            approximate: Multiply float32 as bfloat16 if the processor can.

        Raises:
            OutOfMemoryError: the kernel cannot allocate its buffers.
        """
        heads, width = query.shape[1:]
        query, key, value = (_with_contiguous_heads(x) for x in (query, key, value))
        wide = query.dtype == torch.float32
        kernel = self._attend_float32
        if self._attend_bfloat16 is not None and (approximate or not wide):
            kernel = self._attend_bfloat16
        steps = np.array([x.stride(0) * x.element_size() for x in (query, key, value)], np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)

        def attend_heads(first: int, last: int) -> None:
            failed = kernel(
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                steps.ctypes.data,
                wide,
                lengths.ctypes.data,
                len(lengths),
                heads,
                key.shape[1],
                width,
                scale,
                causal,
                None if bias is None else bias.data_ptr(),
                0 if bias is None else bias.stride(0),
                out.data_ptr(),
                first,
                last,
            )
            if failed:
                raise torch.OutOfMemoryError(f"no memory for attention over rows of {int(lengths.max())} tokens")

        parallel_for(attend_heads, heads)

    def norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the layer norm of `x + residual` over the last axis, with float32 sums and statistics.

        Args:
            x: [n, hidden] float32 or bfloat16.
            weight: float32 [hidden].
            bias: float32 [hidden].
            eps: Added to the variance.
            residual: Same form as `x`.

        Raises:
            OutOfMemoryError: the kernel cannot allocate its buffers.
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
        """Apply GELU in place with an error up to 5e-5, which is below the precision of bfloat16; `x` is contiguous."""
        self._gelu_bfloat16(x.data_ptr(), x.numel())
        return x

    def apply_rotary_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Apply rotary positions in place.

        Args:
            x: [tokens, heads, width] float32 or bfloat16; the heads of a token contiguous, tokens at any stride.
            cos: float32 [tokens, width / 2], contiguous.
            sin: Same form as `cos`.
        """
        kernel = self._rotary_bfloat16 if x.dtype == torch.bfloat16 else self._rotary_float32
        kernel(x.data_ptr(), x.stride(0), *x.shape, cos.data_ptr(), sin.data_ptr())
        return x

    def round_states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Round states to uint8 as `encoders.compute.int8.round_states` does; scale and offset are float32 [n]."""
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
        """Compute `y * scale + offset * sums + bias + residual`, then GELU, in place; all float32 and contiguous.

        Args:
            y: [n, out].
            scale: [n].
            offset: [n].
            sums: [out].
            bias: [out].
            residual: [n, out].
            gelu: Apply GELU, with an error up to 5e-5.
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

    def products(self, rows: torch.Tensor, query: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        """Compute `(rows @ query) * factors`, with float32 sums.

        Args:
            rows: bfloat16 [n, dim], contiguous; n is 1 or more.
            query: float32 [dim], contiguous.
            factors: float32 [n], contiguous.
            out: float32 [n], contiguous; receives the result.
        """
        count, dim = rows.shape
        pointers = query.data_ptr(), factors.data_ptr(), out.data_ptr()

        def multiply(first: int, last: int) -> None:
            self._products(rows.data_ptr(), first, last, dim, *pointers)

        parallel_for(multiply, count, _ROWS_OF_PRODUCTS)

    def select(self, scores: torch.Tensor, lowest: torch.Tensor) -> Pairs:
        """Return the pairs of a query and a row whose score is at least the threshold of the query.

        Args:
            scores: float32 or bfloat16 [queries, rows], contiguous, without NaN.
            lowest: float32 [queries], contiguous.
        """
        found = _empty_pairs(scores.numel())
        wide = scores.dtype == torch.float32
        count = self._select(scores.data_ptr(), wide, *scores.shape, lowest.data_ptr(), *(x.ctypes.data for x in found))
        return _first_pairs(found, count)

    def packed(self, queries: torch.Tensor) -> torch.Tensor:
        """Return float32 queries [n, dim] in the form that `search` takes."""
        groups = -(-len(queries) // self._group)
        padded = torch.zeros(groups * self._group, queries.shape[1])
        padded[: len(queries)] = queries
        return padded.view(groups, self._group, -1).transpose(1, 2).contiguous()

    def search(
        self, rows: torch.Tensor, factors: torch.Tensor, packed: torch.Tensor, lowest: torch.Tensor
    ) -> list[Pairs]:
        """Return the pairs with `factors[row] * (rows[row] @ queries[query]) >= lowest[query]`, with float32 sums.

        Args:
            rows: bfloat16 [n, dim], contiguous; n is 1 or more.
            factors: float32 [n], contiguous; a row with NaN is never found.
            packed: The result of `packed`.
            lowest: float32 [queries], contiguous, finite.

        Raises:
            OutOfMemoryError: the kernel cannot allocate its buffers.
        """
        groups, dim, group = packed.shape
        thresholds = torch.full((groups * group,), torch.inf)
        thresholds[: len(lowest)] = lowest
        step = max(256, _PAIRS_OF_SEARCH // len(thresholds))
        results: list[Pairs] = []

        def search_rows(first: int, last: int) -> None:
            found = _empty_pairs((last - first) * len(thresholds))
            count = self._search(
                rows.data_ptr(),
                first,
                last,
                dim,
                factors.data_ptr(),
                packed.data_ptr(),
                groups,
                thresholds.data_ptr(),
                *(part.ctypes.data for part in found),
            )
            if count < 0:
                raise torch.OutOfMemoryError(f"no memory for a product of {dim} columns")
            results.append(_first_pairs(found, count))

        parallel_for(search_rows, len(rows), step)
        return results

    def maxsim(self, rows: Ints, counts: Ints, packed: torch.Tensor) -> Floats:
        """Return the largest cosine of each query with a vector of each row, float32 [rows, queries and padding].

        Args:
            rows: int64 [n], addresses of vectors of int8.
            counts: int64 [n], vectors of each row; of a row without, the result is minus infinity.
            packed: The result of `packed` of queries of length 1, whose width is a multiple of 16.

        Raises:
            OutOfMemoryError: the kernel cannot allocate its buffers.
        """
        groups, dim, group = packed.shape
        out = np.empty((len(rows), groups * group), np.float32)
        pointers = packed.data_ptr(), groups, out.ctypes.data

        def score(first: int, last: int) -> None:
            if self._maxsim(rows.ctypes.data, counts.ctypes.data, first, last, dim, *pointers):
                raise torch.OutOfMemoryError(f"no memory for products of {dim} columns")

        parallel_for(score, len(rows), _ROWS_OF_MAXSIM)
        return out


def _empty_pairs(count: int) -> tuple[np.ndarray[Any, Any], ...]:
    return np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float32)


def _first_pairs(found: tuple[np.ndarray[Any, Any], ...], count: int) -> Pairs:
    """Return the first pairs, without the memory of the rest."""
    query, row, value = (part[:count] for part in found)
    return query.astype(np.int64), row.astype(np.int64), value.copy()


@cache
def find() -> Kernels | None:
    """Return the fastest kernels for this processor, or None."""
    kernels = available()
    return kernels[-1] if kernels else None


def kernels_for(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Return the fastest kernels, or None if they do not accept states of this type on this device."""
    kernels = find() if device.type == "cpu" else None
    return kernels if kernels is not None and kernels.takes(dtype) else None


@cache
def available() -> tuple[Kernels, ...]:
    """Return the kernels of each instruction set of this processor, the fastest last; empty if they were not built."""
    library = _library()
    names: tuple[InstructionSet, ...] = get_args(InstructionSet)
    return () if library is None else tuple(Kernels(library, name) for name in names[: library.instruction_set()])


def _library() -> ctypes.CDLL | None:
    module = find_spec(_MODULE)
    if module is None or module.origin is None:
        return None
    try:
        library = ctypes.CDLL(module.origin)
        version = library.interface_version()
    except (OSError, AttributeError):  # built for another system, or another module of this name
        return None
    # The versions differ if a job ships its own packages to a cluster that has another installed version.
    return library if version == _INTERFACE_VERSION else None


def _function(library: ctypes.CDLL, name: str, argument_types: tuple[Any, ...]) -> Any:
    function = getattr(library, name)
    function.argtypes = argument_types
    function.restype = _RESULTS.get(argument_types)  # None: it returns nothing
    return function


def _with_contiguous_heads(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
