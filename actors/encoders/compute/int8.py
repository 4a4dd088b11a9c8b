"""Products of 8-bit integers, used by the linear layers with `dtype: int8`. For CPUs.

Weights are rounded once, with one scale per output. States are rounded in each call, with one scale and offset per token,
so a row's vector does not depend on the other rows of its micro-batch. No calibration is needed.

Processors without VNNI add the products of two neighbouring inputs in 16 bits and saturate silently (`vpmaddubsw` of AVX2).
The usual remedy is 7-bit weights. Here the scale of an output is chosen so that no *pair* of its weights can overflow:
single weights keep up to 8 bits, products are exact on every processor, and all machines of a cluster round in the same
way. The effect is measured in docs/log.md. Attention is computed in float32, or in bfloat16 if the processor has it, which
changes vectors far less than the rounding does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

from actors import kernels
from actors.errors import ConfigError

# States are 0 to 255, so two products fit into int16 if the weights' absolute values sum to this: 255 * 128 <= 32,767.
_PAIR = 128
_LARGEST = 127
_STATES = 255
# oneDNN chooses a memory layout for about this many rows; the result is correct for any number.
_TYPICAL_ROWS = 2048
_SMALLEST = 1e-12


class IntegerProduct:
    """Computes `x @ weight.T + bias` with 8-bit integers; input and output are float32.

    Args:
        weight: float32 [out, in].
        bias: float32 [out] or None.

    Raises:
        ConfigError: The integer products are not exact on this processor, or torch has none for it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        check_integers()
        rounded, self._scales = round_weights(weight)
        self._packed = pack(rounded)
        # Sums of the rounded weights: an offset of all inputs adds offset * sum to each output.
        self._sums = rounded.sum(dim=1, dtype=torch.float32) * self._scales
        self._bias = bias
        self._zeros = zero_points(len(weight))

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None, *, gelu: bool = False) -> torch.Tensor:
        """Computes the product, adds `residual`, then applies GELU.

        Args:
            x: float32 [n, in]. A row with a value that is not finite gives results that are not finite.
            residual: float32 [n, out].
            gelu: Apply GELU.

        Returns:
            float32 [n, out].
        """
        kernel = kernels.find()
        if kernel is None:
            return self.unfused(x, residual, gelu=gelu)
        x = x.contiguous()
        states, scale, offset = kernel.round_states(x)
        y = multiply(states, self._packed, self._scales, self._zeros)
        residual = None if residual is None else residual.contiguous()
        return kernel.finish(y, scale, offset, self._sums, bias=self._bias, residual=residual, gelu=gelu)

    def unfused(self, x: torch.Tensor, residual: torch.Tensor | None = None, *, gelu: bool = False) -> torch.Tensor:
        """Computes the same with torch's own operations, one after the other."""
        states, scale, offset = round_states(x)
        y = multiply(states, self._packed, self._scales, self._zeros)
        y.mul_(scale).addr_(offset.squeeze(1), self._sums)
        if self._bias is not None:
            y.add_(self._bias)
        if residual is not None:
            y.add_(residual)
        return torch.ops.aten.gelu_(y) if gelu else y


def round_weights(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds weights to 8 bits such that two neighbouring products with states of 0 to 255 fit into 16 bits.

    Args:
        weight: float32 [out, in].

    Returns:
        int8 [out, in], in which the absolute values of inputs 2i and 2i + 1 sum to at most 128, and float32 [out], the
        scales of the integers.
    """
    even = functional.pad(weight.abs(), (0, weight.shape[1] % 2))
    pairs = even.view(len(even), -1, 2).sum(dim=2).amax(dim=1)
    # Rounding can add a half to each weight of a pair, so the limit is one less.
    scales = (pairs / (_PAIR - 1)).clamp_min(_SMALLEST)
    return (weight / scales[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def round_states(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rounds each token's states to 0..255 between its own smallest and largest value.

    Args:
        x: float32 [n, in].

    Returns:
        uint8 [n, in], float32 [n, 1] scale and [n, 1] offset: `x` is about `states * scale + offset`.
    """
    offset = x.amin(dim=1, keepdim=True)
    scale = ((x.amax(dim=1, keepdim=True) - offset) / _STATES).clamp_min(_SMALLEST)
    # Converted through int8, because torch's conversion to uint8 is seven times slower.
    centred = (x - offset).mul_(1 / scale).sub_(128).round_().to(torch.int8)
    return centred.view(torch.uint8).bitwise_xor_(128), scale, offset


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Packs int8 [out, in] into the memory layout that `multiply` takes."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, [_TYPICAL_ROWS, weight.shape[1]])
    return packed


def zero_points(outputs: int) -> torch.Tensor:
    """Returns the zero points of the outputs' weights: 0 for all."""
    return torch.zeros(outputs, dtype=torch.int64)


def multiply(states: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Computes `states @ weight.T * scales` from uint8 [n, in] and packed int8 [out, in].

    The sums are int32; the result is float32 [n, out].
    """
    # What torch's own compiler emits for a quantized linear layer; there is no public name for it.
    y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


@cache
def check_integers() -> None:
    """Tests the largest possible sums, once per process.

    Raises:
        ConfigError: They are not exact on this processor, or torch does not support them here.
    """
    # Pairs of weights at the limit, equal and unequal, with all states at their maximum.
    weight = torch.tensor([[64, 64] * 32, [127, 1] * 32, [-64, -64] * 32], dtype=torch.int8).repeat(16, 1)
    states = torch.full((5, weight.shape[1]), _STATES, dtype=torch.uint8)
    try:
        product = multiply(states, pack(weight), torch.ones(len(weight)), zero_points(len(weight)))
    except (RuntimeError, AttributeError) as error:
        product, reason = None, f"are not there for this processor ({type(error).__name__})"
    else:
        reason = "are not exact on this processor"
    if product is None or not torch.equal(product, states.float() @ weight.float().T):
        raise ConfigError(
            f"encoder.dtype is int8, and the 8-bit products of torch {torch.__version__} {reason}; use dtype auto or float32."
        )
