"""The page of results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from actors.encoders.compute import fused
from benchmarks.gpu.backfills import Backfill
from benchmarks.gpu.measure import Row
from benchmarks.gpu.peers import DEFAULT_BATCH, FLASH
from benchmarks.gpu.vision import PageRates
from benchmarks.race import machine

_NOTES = f"""\
- Random weights of the published shapes, token ids in, vectors on the host out; medians
- Vectide's best token budget, fixed; the first pass is that of an encoder that looks for its budget
- Kernels: their time over the clock, in a pass over all texts
- sentence-transformers: padded batches sorted by length, in its default of {DEFAULT_BATCH} texts and its best of a few batch \
sizes; torch's attention, and flash-attention's
- Of v3 it runs transformers' native class, of v4 the language model as a plain Qwen2, both without adapters
- The share of the limit does not count the products of adapters"""
_HEAD = (
    f"| shape | mix | tokens/s | range | share of the limit | kernels | sentence-transformers bfloat16, {DEFAULT_BATCH} texts "
    "| x | its best | x | its best with flash_attention_2 | x | first pass | out of memory | budget |"
)
Result = Row | Backfill | PageRates
# Reasons for a missing comparison.
_PEERLESS = {"v2": "needs remote code", "v3 adapters": "has no adapters", "v4 adapters": "has no adapters"}


def markdown(
    found: Sequence[Result],
    bound: float,
    *,
    left_out: Sequence[str],
    command: str,
    date: str,
) -> str:
    """The page.

    Args:
        found: What was measured.
        bound: Operations a second of square bfloat16 products.
        left_out: Parts for which there was no time.
        command: What wrote it.
        date: Of today.
    """
    backfills = [each for each in found if isinstance(each, Backfill)]
    pages = [each for each in found if isinstance(each, PageRates)]
    lines = [
        "# Encoders on a GPU",
        "",
        machine.written(command, date),
        "",
        f"- GPU: {machine.gpu()}; square bfloat16 products reach {bound / 1e12:,.1f} TFLOP/s",
        f"- Hardware: {machine.hardware()}",
        f"- Versions: {machine.versions('torch', 'sentence-transformers', 'transformers', 'ray')}",
        _NOTES,
        *(["- With VECTIDE_FUSE=1"] if fused.is_on() else []),
        *([f"- Not measured, for lack of time: {', '.join(left_out)}"] if left_out else []),
        "",
        _HEAD,
        "|---|---" + "|---:" * 13 + "|",
    ]
    for row in (each for each in found if isinstance(each, Row)):
        rate = statistics.median(row.ours)
        share = row.shape.operations(row.lengths.tolist()) / int(row.lengths.sum()) * rate / bound
        peers = " | ".join(_against(row, rate, attention, batch) for attention, batch in _PEERS)
        lines.append(
            f"| {row.shape.name} | {row.mix} | {rate:,.0f} | {min(row.ours):,.0f} to {max(row.ours):,.0f} | {share:.1%} "
            f"| {row.busy:.0%} | {peers} | {row.raced:,.0f} | {row.out_of_memory} | {row.budget_tokens:,} |"
        )
    if backfills:
        lines += [
            "",
            "Backfills of docstrings on this GPU, from the first receipts to the last. Idle is the share of the time in which",
            "no kernel runs: 1 - kernels x tokens/s / tokens/s of an encoder alone, which gets token ids and never waits.",
            "",
            "| model | replicas a GPU | seconds | tokens/s | encoder alone | its kernels | GPU idle |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {each.model} | {each.replicas} | {each.seconds:.1f} | {each.rate:,.0f} | {each.alone:,.0f} | {each.busy:.0%} "
            f"| {each.idle:.1%} |"
            for each in backfills
        ]
    if pages:
        lines += [
            "",
            "Pages of text through v4, in pages a second. Rendering includes resizing, on all cores. The language model alone gets",
            "texts of as many tokens. The backfill is timed as above.",
            "",
            "| model | tokens a page | render | vision tower | language model | encoder alone | its kernels | backfill | GPU idle |",
            "|---" + "|---:" * 8 + "|",
        ]
        lines += [
            f"| {each.backfill.model} | {each.tokens} | {each.render:,.1f} | {each.tower:,.1f} | {each.language:,.1f} "
            f"| {each.backfill.alone:,.1f} | {each.backfill.busy:.0%} | {each.backfill.rate:,.1f} | {each.backfill.idle:.1%} |"
            for each in pages
        ]
    return "\n".join(lines) + "\n"


# Attention and texts a batch; None is the best.
_PEERS = (("sdpa", DEFAULT_BATCH), ("sdpa", None), (FLASH, None))


def _against(row: Row, rate: float, attention: str, batch: int | None) -> str:
    """Their tokens a second, and how many times that ours are: two cells."""
    medians = {rows: statistics.median(rates) for rows, rates in row.theirs.get(attention, {}).items()}
    base = max(medians.values(), default=None) if batch is None else medians.get(batch)
    if base is not None:
        return f"{base:,.0f} | {rate / base:.2f}"
    return "not installed | " if row.theirs else f"{_PEERLESS.get(row.shape.family, 'not run')} | "
