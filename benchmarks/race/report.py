"""The engine race as Markdown and as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.race import machine
from benchmarks.race.engine import Result
from benchmarks.race.figures import Measured, paired_ratio
from benchmarks.race.peers import BASE


def write(result: Result, folder: Path, stem: str, *, command: str, date: str) -> Path:
    """Write both files and return the path of the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    plot(result, folder / f"{stem}.svg")
    page = folder / f"{stem}.md"
    page.write_text(markdown(result, plot_name=f"{stem}.svg", command=command, date=date))
    return page


def markdown(result: Result, *, plot_name: str, command: str, date: str) -> str:
    """The whole page."""
    facts = result.facts
    best = {kind: max(rates) for kind, rates in result.limit.items()}
    lines = [
        "# The engine race, on a CPU",
        "",
        machine.written(command, date),
        "",
        f"- Hardware: {machine.hardware()}",
        f"- Load averages before and after: {facts['load']}; {facts['load after']}",
        (
            f"- all-MiniLM-L6-v2, texts cut at {facts['max_tokens']} tokens, {facts['threads']} threads for each, "
            f"{facts['repeats']} rounds after a warm-up, in turn; those that wait are stopped"
        ),
        "- Limit of the machine, the best matrix product of the same rounds: "
        + ", ".join(
            f"{rate / 1e9:.0f} {'GOP/s' if kind == 'int8' else 'GFLOP/s'} in {kind}" for kind, rate in best.items()
        ),
        "",
        f"![real tokens a second by engine and mix]({plot_name})",
        "",
        (
            "Tokens are real ones, padding not counted; tokenizing is part of the time. `x` is the median, over the rounds, of the "
            "rate against sentence-transformers float32 in the same round. The range is that of all rounds. Seconds of a core are those "
            "that its threads had: other work on the machine changes them little. The share of the "
            "limit counts the model's matrix products alone, in the type computed in."
        ),
        "",
    ]
    for mix in result.mixes:
        lengths = sorted(mix.lengths)
        lines += [
            (
                f"## {mix.name}: {len(mix.texts)} texts, {mix.tokens:,} tokens, {lengths[0]} to {lengths[-1]}, median "
                f"{int(statistics.median(lengths))}"
            ),
            "",
            "| engine | tokens/s | range | x | tokens per second of a core | x | padding | share of the limit |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *_rows(result, mix.name, best),
            "",
        ]
    lines += [
        "## Each engine",
        "",
        "| engine | cosine with the base: worst | mean | peak memory | load | used how | versions |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for peer in result.peers:
        worst, mean = result.cosine[peer.label]
        named = ", ".join(f"{name} {value}" for name, value in result.versions[peer.label].items())
        lines.append(
            f"| {peer.label} | {worst:.5f} | {mean:.5f} | {result.peak_bytes[peer.label] / 2**20:,.0f} MiB "
            f"| {result.loaded_s[peer.label]:.1f} s | {peer.note} | {named} |"
        )
    if result.left_out:
        lines += ["", "Not run here:", ""]
        lines += [f"- {label}: {reason}" for label, reason in result.left_out.items()]
    return "\n".join(lines) + "\n"


def _rows(result: Result, mix: str, best: dict[str, float]) -> list[str]:
    measured = result.measured[mix]
    by_label = {peer.label: peer for peer in result.peers}
    rows = []
    for label, found in sorted(measured.items(), key=lambda item: -item[1].rate):
        bound = best.get(by_label[label].compute, best.get("float32", float("nan")))
        share = result.operations[mix] / found.tokens * found.rate / bound
        padding = "not reported" if found.padding is None else f"{found.padding:.1%}"
        rows.append(
            f"| {label} | {found.rate:,.0f} | {min(found.rates):,.0f} to {max(found.rates):,.0f} "
            f"| {paired_ratio(found.rates, measured[BASE].rates):.2f} | {statistics.median(found.rates_by_core):,.0f} "
            f"| {paired_ratio(found.rates_by_core, measured[BASE].rates_by_core):.2f} | {padding} | {share:.0%} |"
        )
    return rows


def plot(result: Result, path: Path) -> None:
    """Bars by mix, with the range of the rounds."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "vectide"  # the same figures give the same file
    labels = [peer.label for peer in result.peers]
    figure, axes = plt.subplots(1, len(result.mixes), figsize=(13, 0.42 * len(labels) + 1.2), sharey=True)
    for axis, mix in zip(axes, result.mixes, strict=True):
        found: list[Measured] = [result.measured[mix.name][label] for label in labels]
        middle = [one.rate for one in found]
        spread = [[one.rate - min(one.rates) for one in found], [max(one.rates) - one.rate for one in found]]
        colours = ["#1f6f8b" if label.startswith("vectide") else "#b9c3c9" for label in labels]
        axis.barh(labels, middle, xerr=spread, color=colours, ecolor="#444444", capsize=2)
        axis.set_title(mix.name)
        axis.set_xlabel("real tokens a second")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
