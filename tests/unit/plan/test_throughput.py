from __future__ import annotations

import pytest

from pipeline.plan import throughput


@pytest.mark.parametrize(
    ("flags", "rising"),
    [
        (set(), ["float32", "int8"]),
        ({"avx512f"}, ["float32", "int8"]),
        ({"avx512f", "avx512_bf16", "avx512_vnni"}, ["float32", "bfloat16", "int8"]),
    ],
)
def test_the_estimate_for_a_core_depends_on_processor_flags(monkeypatch, flags, rising):
    monkeypatch.setattr(throughput, "processor_flags", lambda: frozenset(flags))
    found = [throughput.core_flops(precision) for precision in rising]
    assert found == sorted(set(found))
    if "avx512_bf16" not in flags:  # the class allows 16 bits, and float32 is what is computed
        assert throughput.core_flops("bfloat16") == throughput.core_flops("float32")


def test_no_processor_flag_lowers_the_estimate(monkeypatch):
    def rate(*flags):
        monkeypatch.setattr(throughput, "processor_flags", lambda: frozenset(flags))
        return [throughput.core_flops(precision) for precision in ("float32", "bfloat16", "int8")]

    plain, wide, all_of_it = rate(), rate("avx512f"), rate("avx512f", "avx512_bf16", "avx512_vnni")
    assert all(a < b for a, b in zip(plain, wide, strict=True))
    assert all(a <= b for a, b in zip(wide, all_of_it, strict=True))


def test_the_estimate_for_a_gpu_is_limited_by_tokenization(monkeypatch):
    assert throughput.encoder_tokens_per_s(1.0, "bfloat16", cores=None) == 500_000
    assert throughput.encoder_tokens_per_s(1e12, "bfloat16", cores=None) == pytest.approx(150)
    monkeypatch.setattr(throughput, "processor_flags", frozenset)
    assert throughput.encoder_tokens_per_s(2e7, "float32", cores=1) == pytest.approx(2_000)
    assert throughput.encoder_tokens_per_s(2e7, "float32", cores=4) == pytest.approx(8_000)


def test_the_flags_of_this_machine_are_words():
    assert all(flag.isidentifier() or flag[:1].isdigit() for flag in throughput.processor_flags())
