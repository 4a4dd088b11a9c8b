"""Section: lengths of texts, truncation, padding."""

from __future__ import annotations

from pipeline.report.blocks import Bar, Chart, Section, Text, Tile, Tiles, percent
from pipeline.report.measure import Report


def tokens(report: Report) -> Section | None:
    """Return the section; None if the run tokenized nothing."""
    totals, lengths = report.get("totals"), report.get("token_lengths")
    if totals is None or not totals["tokens"]:
        return None
    made, padding = totals["tokens"], totals["padding"]
    tiles = [Tile("tokens", f"{made:,}", "of the texts that had no stored vector")]
    if lengths is not None:
        texts = sum(lengths["counts"])
        tiles.append(Tile("tokens a text", f"{made / max(texts, 1):,.0f}", f"longest {lengths['longest']:,}"))
    tiles.append(Tile("padding", percent(padding, made + padding), f"{padding:,} padding tokens computed"))
    share = percent(totals["truncated"], totals["documents"])
    tiles.append(Tile("truncated", f"{totals['truncated']:,}", f"{share} of the documents"))
    blocks: list[Tiles | Chart | Text] = [Tiles(tiles)]
    if lengths is not None:
        bins, counts = lengths["bins"], lengths["counts"]
        first = next(number for number, count in enumerate(counts) if count)
        ends = [f"{end - 1:,}" for end in bins[1:]] + [f"{max(lengths['longest'], bins[-1]):,}"]
        bars = [
            Bar(
                counts[number],
                f"{bins[number]:,}",
                f"{counts[number]:,} texts of {bins[number]:,} to {ends[number]} tokens",
            )
            for number in range(first, len(counts))
        ]
        blocks.append(Chart("number of texts by length in tokens", bars, "texts", "tokens of a text, from"))
    if totals["truncated"]:
        blocks.append(
            Text("Truncated texts were longer than encoder.max_tokens; their end is not in the vector.", tone="warning")
        )
    return Section("tokens", "Tokens", blocks)
