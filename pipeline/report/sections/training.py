"""Section: what a training read, its curves, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.quantities import counted
from pipeline.report.blocks import Curve, Section, Table, Text, Tile, Tiles, duration, short
from pipeline.report.measure import Report

_UNITS = {"learning_rate": "learning rate", "gradient_norm": "norm of the gradient, before it was scaled"}


def training(report: Report) -> Section | None:
    """Return the section; None if the report is not of a training."""
    found = report.get("training")
    if found is None:
        return None
    blocks: list[Tiles | Table | Text | Curve] = []
    if (result := found["result"]) is not None:
        blocks += [Tiles(_tiles(result)), Table((), _facts(result))]
    if found["data"]:
        blocks.append(_data(found["data"]))
    for name, points in found["curves"].items():
        unit = _UNITS.get(name, name if name in ("loss", "nDCG@10") else f"term of the loss: {name}")
        blocks.append(Curve(f"{unit} by step", [(step, value) for step, value in points], unit, "step"))
    if not found["curves"]:
        blocks.append(Text("No step is recorded yet."))
    return Section(
        "training", "Training", blocks, "Each point of a curve is the mean of the steps since the one before it."
    )


def _tiles(result: Mapping[str, Any]) -> list[Tile]:
    fitted, scores = result["fitted"], result["scores"]
    stopped = (
        "all that were planned"
        if fitted["stopped"] == "finished"
        else f"of {fitted['planned_steps']:,}: no better score"
    )
    tiles = [
        Tile("rows", f"{result['rows']:,}", "to train with"),
        Tile("steps", f"{fitted['steps']:,}", stopped),
        Tile(
            "tokens a second",
            short(fitted["tokens"] / max(fitted["seconds"], 1e-9)),
            f"{short(fitted['tokens'])} in all",
        ),
        Tile("time", duration(fitted["seconds"]), f"on {fitted['workers']} x {fitted['device']}"),
    ]
    if scores is not None:
        interval = f"before {scores['before']:.4f}; difference {scores['low']:+.4f} to {scores['high']:+.4f}"
        tiles.append(Tile("nDCG@10", f"{scores['after']:.4f}", interval))
    return tiles


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("model", str(result["model"]))]
    facts += [(f"adapter {name}", str(url)) for name, url in result["adapters"].items()]
    facts += [("whole model", str(result["checkpoint"]))] if result["checkpoint"] else []
    if (best := result["fitted"]["best_step"]) is not None:
        facts.append(("weights", f"of step {best:,}, the best of the evaluations"))
    facts.append(("largest difference of a number, trained and loaded again", f"{result['difference']:.1e}"))
    return facts


def _data(data: Mapping[str, Mapping[str, int]]) -> Table:
    names = list(dict.fromkeys(name for counts in data.values() for name in counts))
    rows = [(source, *(f"{counts.get(name, 0):,}" for name in names)) for source, counts in data.items()]
    note = f"{counted(len(rows), 'source')}; a step has rows of one"
    return Table(("source", *names), rows, frozenset(range(1, 1 + len(names))), note)
