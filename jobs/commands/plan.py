"""`vectide plan`: the dry run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from actors.quantities import format_bytes, format_duration
from jobs import output
from jobs.options import AsJson, JobFile, ModelName, Settings, SourceUri, TableUri, load_any, load_job

if TYPE_CHECKING:
    from pipeline.curate.plan import CurationPlan
    from pipeline.run.estimate import Estimate
    from pipeline.train.plan import TrainingPlan


def plan(  # noqa: PLR0917  (typer's arguments are options by name)
    job: JobFile = None,
    settings: Settings = None,
    source: SourceUri = None,
    table: TableUri = None,
    model: ModelName = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of the whole cluster per hour.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Throughput of the cluster; default: measured on this machine.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Estimate shards, units, rows, tokens, output size, time and cost; or check a curation or a training. Nothing is written."""
    from pipeline.job.curation import Curation
    from pipeline.job.training import Training
    from pipeline.run.estimate import estimate

    if job is not None and (source, table, model) == (None, None, None):
        other = load_any(job, settings)
        if isinstance(other, Curation):
            from pipeline.curate.plan import plan_curation

            planned = plan_curation(other)
            output.as_json(planned) if json else _print(_curation_lines(planned))
            return
        if isinstance(other, Training):
            from pipeline.train.plan import plan_training

            training = plan_training(other)
            output.as_json(training) if json else _print(_training_lines(training))
            return
    loaded = load_job(job, settings, source=source, table=table, model=model)
    estimated = estimate(loaded, tokens_per_s=tokens_per_second, price_per_hour=price_per_hour)
    output.as_json(estimated) if json else _print(_lines(estimated))


def _curation_lines(planned: CurationPlan) -> list[tuple[str, str]]:
    about = "" if planned.rows_exact else "about "
    size = format_bytes(planned.source_bytes)
    lines = [
        ("run", planned.run),
        ("source", f"{planned.shards:,} shards, {size}, {about}{planned.rows:,} rows"),
        ("units", f"{planned.units:,} of about {planned.unit_rows:,} rows ({planned.units_done:,} read already)"),
        *(("step", step) for step in planned.steps),
        ("table", "none yet" if planned.version is None else f"version {planned.version}"),
        *(("read", use.sentence()) for use in planned.dialects if use.worth_saying),
        *(("left out", left_out.sentence()) for left_out in planned.left_out),
    ]
    if planned.done:
        lines.append(("done", "the table already holds this job on this source"))
    return lines


def _training_lines(planned: TrainingPlan) -> list[tuple[str, str]]:
    trained, all_ = planned.parameters
    lines = [
        ("model", planned.model),
        ("stage", planned.stage),
        (
            "trained",
            f"{trained:,} parameters, on a model of {all_:,}" if trained < all_ else f"all {all_:,} parameters",
        ),
        *(
            ("data", f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")
            for name, counts in planned.counts.items()
        ),
        ("steps", f"{planned.steps:,}, about {planned.tokens:,} tokens in all"),
        ("out", planned.out),
    ]
    if planned.held_out is not None:
        lines.append(("held out", f"{planned.held_out[0]:,} queries, {planned.held_out[1]:,} documents"))
    lines += [("held out", note) for note in planned.notes]
    if planned.done is not None:
        finished = planned.done == "finished"
        lines.append(
            ("done", "the folder already holds the result" if finished else f"continues from step {planned.done:,}")
        )
    return lines


def _print(lines: Iterable[tuple[str, str]]) -> None:
    for name, text in lines:
        print(f"{name:>8}  {text}")


def _pictures(estimate: Estimate) -> list[tuple[str, str]]:
    if not estimate.picture_share:
        return []
    share = f"{estimate.picture_share:.0%} of the sampled rows are pictures or pages"
    return [("pictures", f"{share}, about {estimate.patches:,} patches in all")]


def _lines(estimate: Estimate) -> list[tuple[str, str]]:
    """Names and texts of the lines."""
    about = "" if estimate.rows_exact else "about "
    output_size = format_bytes(estimate.output_bytes)
    seconds = format_duration(estimate.seconds)
    lines = [
        ("run", estimate.run or "the name is known once the source is hashed"),
        (
            "source",
            f"{estimate.shards:,} shards, {format_bytes(estimate.source_bytes)}, {about}{estimate.rows:,} rows",
        ),
        ("units", f"{estimate.units:,} of about {estimate.unit_rows:,} rows ({estimate.units_done:,} done already)"),
        (
            "tokens",
            f"{estimate.tokens_per_row:,.1f} a row in a sample of {estimate.sampled_rows:,}, about {estimate.tokens:,}",
        ),
        *_pictures(estimate),
        (
            "cut",
            f"{estimate.truncated_share:.1%} of the sampled rows are longer than {estimate.max_tokens:,} tokens",
        ),
        ("output", f"about {output_size}: {estimate.vectors}"),
        ("time", f"about {seconds} at {estimate.tokens_per_s:,.0f} tokens/s ({estimate.rate_basis})"),
    ]
    if estimate.hash_bytes:
        hashed = format_bytes(estimate.hash_bytes)
        lines.append(("verify", f"source.verify: content reads {hashed} once in each run, to hash them"))
    if estimate.untagged:
        shards = f"{estimate.untagged:,} of {estimate.shards:,} shards have none"
        lines.append(
            (
                "tags",
                f"{shards}: each refresh counts them as changed and reads them again, unless source.verify is content",
            )
        )
    if estimate.hive is not None:
        columns = [f"{column.name} ({column.type}, {column.values:,} values, {column.use})" for column in estimate.hive]
        lines.append(("hive", ", ".join(columns) or "no folder of the source is named name=value"))
    lines += [("read", use.sentence()) for use in estimate.dialects if use.worth_saying]
    if estimate.cost is not None:
        lines.append(("cost", f"about {estimate.cost:,.2f}"))
    lines += [("left out", left_out.sentence()) for left_out in estimate.left_out]
    return lines
