"""Functions that are compiled for GPUs: on a CPU, traced by the same compiler for any number of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from actors.encoders import rope
from actors.encoders.compute import fused, linear


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    pairs = torch.complex(*x.double().chunk(2, -1)) * torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat([pairs.real, pairs.imag], -1)


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
    if name == "swiglu":
        gate, up = x.double().chunk(2, -1)
        return x, (), gate * torch.sigmoid(gate) * up
    qkv, angles = torch.randn(tokens, 5, 24, dtype=dtype), torch.randn(tokens, 12)
    heads = qkv[:, :3]  # a view: queries and keys of one product
    return heads, (angles.cos(), angles.sin()), rotated(heads, angles.cos(), angles.sin())


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "norm": linear._add_norm,
    "rms": linear._rms_norm,
    "swiglu": linear.swiglu,
    "rotate": rope._rotate_,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_equals_float64(name, dtype):
    first, others, right = arguments(name, 7, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(FUNCTIONS[name](first, *others).double(), right, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_compiled_whole_and_once_for_all_numbers_of_tokens(monkeypatch, name):
    monkeypatch.setattr(fused, "fuses", lambda device: True)
    monkeypatch.setattr(fused, "BACKEND", "aot_eager")  # the real one needs a compiler; this one traces as it does
    function = fused.fused(inspect.unwrap(FUNCTIONS[name]))
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (7, 12, 64):
            first, others, right = arguments(name, tokens, torch.float32)
            torch.testing.assert_close(function(first, *others).double(), right, atol=1e-5, rtol=1e-5)


def test_functions_are_compiled_on_gpus_and_on_request_only(monkeypatch):
    monkeypatch.delenv("VECTIDE_FUSE", raising=False)
    assert not fused.fuses(torch.device("cuda"))
    monkeypatch.setenv("VECTIDE_FUSE", "1")
    assert fused.fuses(torch.device("cuda"))
    assert not fused.fuses(torch.device("cpu"))
