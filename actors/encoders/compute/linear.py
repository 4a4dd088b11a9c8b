"""Linear layers and norms for inference, used by every family.

On a CPU with oneDNN, weights are reordered once at load instead of in each call, and GELU or the residual is fused into the
product where possible. Elsewhere torch's plain operation is used; the result is the same up to rounding. With `int8` the
product is that of `int8.IntegerProduct`, which is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from actors import kernels
from actors.encoders.compute.device import Compute
from actors.encoders.compute.fused import fused, fuses
from actors.encoders.compute.int8 import IntegerProduct

# oneDNN chooses a memory layout for about this many rows; the result is correct for any number.
_TYPICAL_ROWS = 2048
# What torch's own compiler emits for a frozen linear layer; there is no public name for it.
_POINTWISE = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001


# Adds an adapter's contribution to a product, in place.
Add = Callable[[torch.Tensor], torch.Tensor]


class Linear:
    """`activation(x @ weight.T + bias)`.

    Args:
        weight: float32 [out, in].
        bias: float32 [out] or None.
        compute: Device and type to compute in.
        gelu: Apply the exact (erf) GELU to the result.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, compute: Compute, gelu: bool = False
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self._gelu = gelu
        self._integers = IntegerProduct(weight, bias) if compute.int8 else None
        if self._integers is not None:
            return
        self._packed = _can_pack(compute)
        own = _gelu_kernel(compute.dtype, compute.device)
        self._fused = gelu and self._packed and own is None and _has_fast_erf()
        self._bias = None if bias is None else bias.to(compute.device, compute.dtype)
        weight = weight.to(compute.device, compute.dtype).contiguous()
        self._weight = _pack(weight) if self._packed else weight

    def __call__(self, x: torch.Tensor, add: Add | None = None) -> torch.Tensor:
        """Maps [n, in] in the compute type to [n, out]. `add` adds to the product in place, before the activation."""
        if add is not None:  # GELU follows the addition, so it cannot be fused into the product
            y = add(self._product(x))
            return gelu_(y) if self._gelu else y
        if self._integers is not None:
            return self._integers(x, gelu=self._gelu)
        if self._fused:
            fused: torch.Tensor = _POINTWISE(x, self._weight, self._bias, "gelu", [], "none")
            return fused
        if self._gelu and fuses(x.device):
            return _gelu_(functional.linear(x, self._weight), self._bias, None)
        y = self._product(x)
        return gelu_(y) if self._gelu else y

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x @ weight.T + bias`."""
        if self._integers is not None:
            return self._integers(x)
        if self._packed:
            y: torch.Tensor = _POINTWISE(x, self._weight, self._bias, "none", [], "")
            return y
        return functional.linear(x, self._weight, self._bias)

    def times(self, x: torch.Tensor, factor: torch.Tensor, add: Add | None = None) -> torch.Tensor:
        """Returns `self(x, add) * factor`, where fused in the same pass as GELU."""
        if self._gelu and add is None and fuses(x.device):
            return _gelu_(functional.linear(x, self._weight), self._bias, factor)
        return self(x, add).mul_(factor)

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in] in the compute type; only on a GPU, elsewhere it may have another layout."""
        return self._weight

    @property
    def adds_cheaply(self) -> bool:
        """True if a pass over the product is made anyway, so that `plus` adds almost no cost."""
        return self._integers is not None

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Returns `self(x) + residual`, fused where possible. For layers without activation."""
        if self._integers is not None and not self._gelu:
            return self._integers(x, residual)
        if self._packed and not self._gelu:
            fused: torch.Tensor = _POINTWISE.binary(x, residual, self._weight, self._bias, "add")
            return fused
        return self(x) + residual


class LayerNorm:
    """Layer normalisation over the last axis, with float32 statistics for any input type.

    Args:
        weight: float32 [hidden].
        bias: float32 [hidden].
        eps: Added to the variance.
        compute: Device and type.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float, *, compute: Compute) -> None:
        self._shape = tuple(weight.shape)
        self._eps = eps
        self._dtype = compute.dtype
        self._kernel = kernels.kernels_for(compute.dtype, compute.device)
        if self._kernel is not None:  # the kernel multiplies in float32, so the weights stay float32
            self._weight, self._bias = weight.contiguous(), bias.contiguous()
            return
        self._weight = weight.to(compute.device, compute.dtype)
        self._bias = bias.to(compute.device, compute.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises [n, hidden] of any float type; returns the compute type."""
        if self._kernel is not None:
            return self._kernel.norm(x.to(self._dtype), self._weight, self._bias, self._eps)
        return functional.layer_norm(x.to(self._dtype), self._shape, self._weight, self._bias, self._eps)

    def after(self, linear: Linear, x: torch.Tensor, residual: torch.Tensor, *, add: Add | None = None) -> torch.Tensor:
        """Returns `self(linear(x) + residual)`; the sum is fused into the cheaper step. `add` adds to the product in place."""
        if self._kernel is not None and not linear.adds_cheaply:
            y = linear(x)
            return self._kernel.norm(y if add is None else add(y), self._weight, self._bias, self._eps, residual)
        if x.device.type == "cpu":
            y = linear.plus(x, residual)
            return self(y if add is None else add(y))
        y = linear(x)
        return self.of_sum(y if add is None else add(y), residual)

    def of_sum(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Returns `self(x + residual)`, where fused in one pass."""
        if x.device.type == "cpu":
            return self(x + residual)
        return _add_norm(x, residual, self._weight, self._bias, self._eps)


class RmsNorm:
    """RMS normalisation: scales to a mean square of 1, without mean and bias, with float32 statistics for any input type.

    Args:
        weight: float32 [hidden].
        eps: Added to the mean square.
        compute: Device and type.
    """

    def __init__(self, weight: torch.Tensor, eps: float, *, compute: Compute) -> None:
        self._weight = weight.to(compute.device)
        self._eps = eps
        self._dtype = compute.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises [n, hidden] of any float type; returns the compute type."""
        return _rms_norm(x, self._weight, self._eps, self._dtype)

    def of_sum_(self, x: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """Adds to float32 `x` in place (None adds nothing) and returns `self(x)`, where fused in one pass."""
        return self(x) if added is None else _add_rms_norm_(x, added, self._weight, self._eps, self._dtype)


@fused
def _add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    return functional.layer_norm(x + residual, weight.shape, weight, bias, eps)


@fused
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    return functional.rms_norm(x.float(), weight.shape, weight, eps).to(dtype)


@fused
def _add_rms_norm_(
    x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    x += added
    return functional.rms_norm(x, weight.shape, weight, eps).to(dtype)


@fused
def _gelu_(y: torch.Tensor, bias: torch.Tensor | None, factor: torch.Tensor | None) -> torch.Tensor:
    activated = functional.gelu(y if bias is None else y + bias)
    return y.copy_(activated if factor is None else activated * factor)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001
    return packed


def gelu_(y: torch.Tensor) -> torch.Tensor:
    """Applies the exact GELU to a contiguous tensor in place, to the precision of its type."""
    kernel = _gelu_kernel(y.dtype, y.device)
    if kernel is not None:
        return kernel.gelu_(y)
    activated: torch.Tensor = torch.ops.aten.gelu_(y)
    return activated


@fused
def swiglu(wide: torch.Tensor) -> torch.Tensor:
    """Computes the gated unit of Shazeer 2020 (arXiv 2002.05202): `silu(gate) * up`, where silu is `x * sigmoid(x)`.

    Args:
        wide: [n, 2 * inner], gate and up concatenated.

    Returns:
        [n, inner], contiguous.
    """
    gate, up = wide.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def _gelu_kernel(dtype: torch.dtype, device: torch.device) -> kernels.Kernels | None:
    # Faster than the GELU that oneDNN fuses into its product (docs/log.md), but not precise enough for float32.
    return kernels.kernels_for(dtype, device) if dtype == torch.bfloat16 else None


def _has_fast_erf() -> bool:
    # On a processor with AVX2 only, oneDNN's fused GELU takes 12 ms and torch's own 3 to 6 (docs/log.md).
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def _can_pack(compute: Compute) -> bool:
    if compute.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # oneDNN refuses bfloat16 on a processor without the instructions for it.
    return compute.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
