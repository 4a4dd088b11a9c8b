"""The page of results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from benchmarks.gpu.measure import Row
from benchmarks.gpu.peers import FLASH
from benchmarks.race import machine

_NOTES = """\
- Random weights of the published shapes, token ids in, vectors on the host out; medians
- sentence-transformers: padded batches sorted by length, its best batch size; torch's attention, and flash-attention's
- Of v3 it runs transformers' native class, of v4 the language model as a plain Qwen2, both without adapters
- Ours of v3 is without a task, so without an adapter; of v4 once with one merged, which are the Qwen2's products, and once
  with one beside the base, whose products the share of the limit does not count"""
_HEAD = (
    "| shape | mix | tokens/s | range | share of the limit | sentence-transformers bfloat16 | x | with flash_attention_2 | x "
    "| out of memory | budget |"
)
# Reasons for a missing comparison.
_PEERLESS = {"v2": "needs remote code", "v4 adapters": "has no adapters"}


def markdown(rows: Sequence[Row], bound: float, idle: dict[float, dict[str, float]], *, command: str, date: str) -> str:
    """The page.

    Args:
        rows: What was measured.
        bound: Operations a second of square bfloat16 products.
        idle: What `utilisation.backfill_idle` found, by GPUs a replica.
        command: What wrote it.
        date: Of today.
    """
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    lines = [
        "# Encoders on a GPU",
        "",
        f"{date}, commit {machine.commit()}. Written by `{command}`.",
        "",
        f"- GPU: {name}; square bfloat16 products reach {bound / 1e12:,.1f} TFLOP/s",
        f"- Hardware: {machine.hardware()}",
        f"- Versions: {machine.versions('torch', 'sentence-transformers', 'transformers', 'ray')}",
        _NOTES,
        "",
        _HEAD,
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = statistics.median(row.ours)
        share = row.shape.operations(row.lengths.tolist()) / int(row.lengths.sum()) * rate / bound
        lines.append(
            f"| {row.shape.name} | {row.mix} | {rate:,.0f} | {min(row.ours):,.0f} to {max(row.ours):,.0f} | {share:.1%} "
            f"| {_against(row, 'sdpa', rate)} | {_against(row, FLASH, rate)} | {row.out_of_memory} | {row.budget_tokens:,} |"
        )
    if idle:
        lines += [
            "",
            "A backfill of docstrings with all-MiniLM-L6-v2 on this GPU, from the first receipt to the last:",
            "",
        ]
        lines += ["| replicas a GPU | seconds | rows/s | GPU idle |", "|---:|---:|---:|---:|"]
        for share, found in idle.items():
            lines.append(f"| {1 / share:.0f} | {found['seconds']:.1f} | {found['rows/s']:,.0f} | {found['idle']:.1%} |")
    return "\n".join(lines) + "\n"


def _against(row: Row, attention: str, rate: float) -> str:
    """Their tokens a second, and how many times that ours are: two cells."""
    if attention in row.theirs:
        base = statistics.median(row.theirs[attention])
        return f"{base:,.0f} | {rate / base:.2f}"
    return "not installed | " if row.theirs else f"{_PEERLESS.get(row.shape.family, 'not run')} | "
