"""A curated table under stricter thresholds, by its stored measures: no model is loaded, and nothing is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, TableConflict
from pipeline.curate.context import DROPPED_BY, KEPT
from pipeline.curate.extra import need_module
from pipeline.curate.steps import steps_of
from pipeline.curate.steps.base import StepCount
from pipeline.job.curation import Curation
from pipeline.table import delta_table


@dataclass(frozen=True)
class View:
    """What a job would keep of the rows of a version.

    Attributes:
        condition: SQL condition of the kept rows, over columns of the table.
    """

    table: str
    version: int
    rows: int
    kept: int
    steps: tuple[StepCount, ...]
    condition: str


def view(job: Curation) -> View:
    """Return what stricter thresholds keep of the rows that the current version of a table has.

    The verdicts of the table stay: a row that it dropped is not kept, and among copies the survivor stays the same. A run
    may therefore keep a copy of a row that the view drops.

    Raises:
        ConfigError: the steps are others, or a threshold is looser than that of the table.
        TableConflict: it is no curated table.
    """
    need_module("duckdb")
    import duckdb

    url = storage.absolute(job.table.uri)
    table = delta_table.need_table(url, curated=True)
    spec = delta_table.embedding_spec_of(table)
    if spec is None or not spec.is_curation:
        raise TableConflict(f"{url!r} is a table of embeddings; --view is for one of `vectide curate`")
    names = ", ".join(step.name for step in job.steps)
    if job.section != spec.lineage["of"]:
        raise ConfigError(f"the table {url!r} is one of {spec.lineage['of']}, and the job has {job.section}")
    if names != spec.lineage["steps"]:
        raise ConfigError(
            f"the table {url!r} has the steps {spec.lineage['steps']}, and the job {names}; run without --view to have them"
        )
    steps = steps_of(job)
    stricter: dict[str, str] = {}
    for step, named in zip(steps, job.steps, strict=True):
        settings = named.settings.model_dump(mode="json")
        before = {key: spec.lineage.get(f"{step.name}.{key}") for key in settings}
        if settings != before:
            stricter[step.name] = f"coalesce({step.view(before)}, false)"
    cases = " ".join(
        f"when {DROPPED_BY} = '{step.name}' or {stricter.get(step.name, 'false')} then '{step.name}'" for step in steps
    )
    columns = [KEPT, DROPPED_BY, *(name for step in steps for name in step.schema().names)]
    counts: Counter[str | None] = Counter()
    with duckdb.connect() as connection:
        for path in delta_table.file_sizes(table):
            with storage.open_arrow(storage.join(url, path)) as file:
                connection.register("rows", pq.ParquetFile(file).read(columns=columns))
            query = f"select case {cases} end, count(*) from rows group by all"
            counts.update(dict(connection.execute(query).fetchall()))
    left, seen = sum(counts.values()), []
    for step in steps:
        seen.append(StepCount(step.name, left, counts[step.name]))
        left -= counts[step.name]
    condition = " and ".join([KEPT, *(f"not {each}" for each in stricter.values())])
    return View(url, int(table.version()), sum(counts.values()), counts[None], tuple(seen), condition)
