"""Products of 8-bit integers: what the linear layers compute with under `dtype: int8`. For CPUs.

Weights are rounded once, with a scale for each output; states are rounded anew in each call, with a scale and an
offset for each token, so a row's vector does not depend on the rows beside it. Nothing is calibrated.

Processors without VNNI add two products of a pair of neighbouring inputs in 16 bits, and what does not fit is cut
without a word (`vpmaddubsw` of AVX2). The usual way round is weights of 7 bits. Here the scale of an output is chosen
so that no *pair* of its weights can overflow: single weights keep up to 8 bits, the products are exact on every
processor, and what is rounded is rounded in the same way on all machines of a cluster. docs/log.md has what that is worth.
Attention is in float32, or in bfloat16 where the processor has it, which changes far less than the rounding does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

from actors import kernels
from actors.errors import ConfigError

# States are 0 to 255, so two products fit into int16 where the weights' sizes add up to this: 255 * 128 <= 32,767.
_PAIR = 128
_LARGEST = 127
_STATES = 255
# oneDNN chooses a layout for about this many rows; it stays right for any number.
_TYPICAL_ROWS = 2048
_SMALLEST = 1e-12


class IntegerProduct:
    """`x @ weight.T + bias` with 8-bit integers, float32 in and out.

    Args:
        weight: float32 [out, in].
        bias: float32 [out] or None.

    Raises:
        ConfigError: This processor's integer products are not exact, or torch has none for it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        check_integers()
        rounded, self._scales = round_weights(weight)
        self._packed = pack(rounded)
        # Of the weights as rounded: what an offset of all inputs adds to each output.
        self._sums = rounded.sum(dim=1, dtype=torch.float32) * self._scales
        self._bias = bias
        self._zeros = zero_points(len(weight))

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None, *, gelu: bool = False) -> torch.Tensor:
        """The product, `residual` added, then GELU.

        Args:
            x: float32 [n, in]. A row with a value that is not finite gives values that are not.
            residual: float32 [n, out].
            gelu: Whether GELU follows.

        Returns:
            float32 [n, out].
        """
        kernel = kernels.find()
        if kernel is None:
            return self.plainly(x, residual, gelu=gelu)
        x = x.contiguous()
        states, scale, offset = kernel.round_states(x)
        y = multiply(states, self._packed, self._scales, self._zeros)
        residual = None if residual is None else residual.contiguous()
        return kernel.finish(y, scale, offset, self._sums, bias=self._bias, residual=residual, gelu=gelu)

    def plainly(self, x: torch.Tensor, residual: torch.Tensor | None = None, *, gelu: bool = False) -> torch.Tensor:
        """The same by torch's own operations, one after the other."""
        states, scale, offset = round_states(x)
        y = multiply(states, self._packed, self._scales, self._zeros)
        y.mul_(scale).addr_(offset.squeeze(1), self._sums)
        if self._bias is not None:
            y.add_(self._bias)
        if residual is not None:
            y.add_(residual)
        return torch.ops.aten.gelu_(y) if gelu else y


def round_weights(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights to 8 bits such that two neighbouring products with states of 0 to 255 fit into 16 bits.

    Args:
        weight: float32 [out, in].

    Returns:
        int8 [out, in], of which inputs 2i and 2i + 1 have sizes that add up to 128 at most, and float32 [out]: what
        the integers are to be multiplied with.
    """
    even = functional.pad(weight.abs(), (0, weight.shape[1] % 2))
    pairs = even.view(len(even), -1, 2).sum(dim=2).amax(dim=1)
    # Rounding can add a half to each of a pair, so one is left free.
    scales = (pairs / (_PAIR - 1)).clamp_min(_SMALLEST)
    return (weight / scales[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def round_states(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token's states to 0..255 between its own smallest and largest.

    Args:
        x: float32 [n, in].

    Returns:
        uint8 [n, in], float32 [n, 1] scale and [n, 1] offset: `x` is about `states * scale + offset`.
    """
    offset = x.amin(dim=1, keepdim=True)
    scale = ((x.amax(dim=1, keepdim=True) - offset) / _STATES).clamp_min(_SMALLEST)
    # By way of int8, since torch converts to uint8 seven times slower.
    centred = (x - offset).mul_(1 / scale).sub_(128).round_().to(torch.int8)
    return centred.view(torch.uint8).bitwise_xor_(128), scale, offset


def pack(weight: torch.Tensor) -> torch.Tensor:
    """int8 [out, in] in the layout that `multiply` takes."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, [_TYPICAL_ROWS, weight.shape[1]])
    return packed


def zero_points(outputs: int) -> torch.Tensor:
    """What an integer of each output's weights stands for no weight: 0 for all."""
    return torch.zeros(outputs, dtype=torch.int64)


def multiply(states: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """`states @ weight.T * scales`: uint8 [n, in] and packed int8 [out, in], added up in int32, to float32 [n, out]."""
    # What torch's own compiler emits for a quantized linear layer; there is no public name for it.
    y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


@cache
def check_integers() -> None:
    """Tries the hardest sums once a process.

    Raises:
        ConfigError: They are not exact here, or torch cannot do them.
    """
    # Pairs at the limit in both shapes they can have, against states that are all at theirs.
    weight = torch.tensor([[64, 64] * 32, [127, 1] * 32, [-64, -64] * 32], dtype=torch.int8).repeat(16, 1)
    states = torch.full((5, weight.shape[1]), _STATES, dtype=torch.uint8)
    try:
        found = multiply(states, pack(weight), torch.ones(len(weight)), zero_points(len(weight)))
    except (RuntimeError, AttributeError) as error:
        found, why = None, f"are not there for this processor ({type(error).__name__})"
    else:
        why = "are not exact on this processor"
    if found is None or not torch.equal(found, states.float() @ weight.float().T):
        raise ConfigError(
            f"encoder.dtype is int8, and the 8-bit products of torch {torch.__version__} {why}; use dtype auto or float32."
        )
