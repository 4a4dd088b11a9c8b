"""Section: where the time went, in the stages of the workers and in the steps of the driver."""

from __future__ import annotations

from pipeline.execute.metrics import STAGES
from pipeline.report.blocks import Section, Share, Shares, Text, duration, percent
from pipeline.report.measure import Report


def stages(report: Report) -> Section | None:
    """Return the section; None if there is no time to show."""
    seconds = report.get("seconds", {})
    steps: dict[str, float] = {}
    for call in report["calls"]:
        for step in call["steps"]:
            steps[step["name"]] = steps.get(step["name"], 0.0) + step["seconds"]
    if not seconds and not steps:
        return None
    blocks: list[Text | Shares] = []
    if seconds:
        whole = sum(seconds.values())
        names = sorted(seconds, key=STAGES.index)
        blocks.append(Text("Stages of a unit, summed over all workers:"))
        shares = [
            Share(name, seconds[name], f"{duration(seconds[name])} · {percent(seconds[name], whole)}") for name in names
        ]
        blocks.append(Shares(shares))
    if steps:
        blocks.append(Text("Steps of the driver, by the clock, over all calls:"))
        blocks.append(Shares([Share(name, spent_s, duration(spent_s)) for name, spent_s in steps.items()]))
    return Section("stages", "Where the time went", blocks)
