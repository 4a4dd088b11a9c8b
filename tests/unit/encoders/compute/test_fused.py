"""Functions that are compiled for GPUs: on a CPU, traced by the same compiler for any number of tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from actors.encoders import pooling, rope
from actors.encoders.alibi import slopes
from actors.encoders.compute import fused, linear
from actors.encoders.compute.slopes import _attend_in_blocks
from actors.encoders.packed import pack
from actors.errors import ConfigError


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = torch.complex(*x.double().chunk(2, -1)) * torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Attention with ALiBi by its definition, in float64."""
    slope = torch.tensor(slopes(query.shape[1]), dtype=torch.float64)[:, None, None]
    rows = []
    for q, k, v in zip(*(x.double().transpose(0, 1).split(lengths, 1) for x in (query, key, value)), strict=True):
        places = torch.arange(q.shape[1])
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2]) - slope * (places[:, None] - places).abs()
        rows.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(rows)


def arguments(name: str, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[object, ...], torch.Tensor]:
    """Returns the first argument of a function, the others, and the right result in float64."""
    torch.manual_seed(tokens)
    x, residual = torch.randn(2, tokens, 24, dtype=dtype)
    weight, bias = torch.randn(2, 24, dtype=dtype)
    if name == "norm":
        right = functional.layer_norm((x.double() + residual.double()), (24,), weight.double(), bias.double(), 1e-5)
        return x, (residual, weight, bias, 1e-5), right
    if name == "rms":
        square = x.double().square().mean(-1, keepdim=True)
        return x, (weight.float(), 1e-6, dtype), x.double() / (square + 1e-6).sqrt() * weight.double()
    if name == "add rms":
        stream = torch.randn(tokens, 24)
        right = stream.double() + x.double()
        right = right / (right.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        return stream, (x, weight.float(), 1e-6, dtype), right
    if name in ("gelu", "geglu"):
        wide = x.double() + bias.double() if name == "gelu" else x.double()
        right = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
        return (x, (bias, None), right) if name == "gelu" else (x, (None, residual), right * residual.double())
    if name == "pieces":
        starts = torch.arange(0, tokens, 5, dtype=torch.int32)
        stops = (starts + 5).clamp_max(tokens)
        return x, (starts, stops), torch.stack([part.double().sum(0) for part in x.split(5)])
    if name == "slopes":
        lengths = [20 * tokens, 9 * tokens, tokens, 1]
        batch = pack(np.zeros(sum(lengths), np.int64), np.array(lengths), device=torch.device("cpu"))
        query, key, value = torch.randn(sum(lengths), 3, 3, 16, dtype=dtype).unbind(1)
        others = (key, value, torch.tensor(slopes(3)), batch.blocks())
        return query, others, attended(query, key, value, lengths)
    if name == "swiglu":
        gate, up = x.double().chunk(2, -1)
        return x, (), gate * torch.sigmoid(gate) * up
    qkv, angles = torch.randn(tokens, 5, 24, dtype=dtype), torch.randn(tokens, 12)
    heads = qkv[:, :3]  # a view: queries and keys of one product
    return heads, (angles.cos(), angles.sin()), rotated(heads, angles.cos(), angles.sin())


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "norm": linear._add_norm,
    "rms": linear._rms_norm,
    "add rms": linear._add_rms_norm_,
    "gelu": linear._gelu_,
    "geglu": linear._gelu_,
    "pieces": pooling._sum_pieces,
    "slopes": _attend_in_blocks,
    "swiglu": linear.swiglu,
    "rotate": rope._rotate_,
}
# Without a compiler, torch's flexible attention traces each size anew, which takes seconds.
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "slopes" else []) for name in FUNCTIONS]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_function_equals_float64(name, dtype):
    first, others, right = arguments(name, 7, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(FUNCTIONS[name](first, *others).double(), right, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_compiled_whole_and_once_for_all_numbers_of_tokens(monkeypatch, name):
    monkeypatch.setattr(fused, "fuses", lambda device: True)
    monkeypatch.setattr(fused, "BACKEND", "aot_eager")  # the real one needs a compiler; this one traces as it does
    torch.compiler.reset()  # forms of one function are compiled apart
    function = fused.fused(inspect.unwrap(FUNCTIONS[name]))
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (7, 12, 64):
            first, others, right = arguments(name, tokens, torch.float32)
            stream = first + others[0] if name == "add rms" else first  # type: ignore[operator]
            torch.testing.assert_close(function(first, *others).double(), right, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(first, stream)


def test_functions_are_compiled_on_gpus_and_on_request_only(monkeypatch):
    monkeypatch.delenv("VECTIDE_FUSE", raising=False)
    assert not fused.fuses(torch.device("cuda"))
    monkeypatch.setenv("VECTIDE_FUSE", "1")
    assert fused.fuses(torch.device("cuda"))
    assert not fused.fuses(torch.device("cpu"))


@pytest.mark.slow
def test_an_error_of_the_compiler_names_the_variable_and_is_none_of_a_row(monkeypatch):
    def broken(graph: object, inputs: object) -> None:
        raise ValueError("no such instruction")

    monkeypatch.setattr(fused, "fuses", lambda device: True)
    monkeypatch.setattr(fused, "BACKEND", broken)
    torch.compiler.reset()
    function = fused.fused(inspect.unwrap(linear.swiglu))
    with pytest.raises(ConfigError, match=r"VECTIDE_FUSE is 1, .* cannot compile swiglu .*no such instruction"):
        function(torch.ones(3, 8))
