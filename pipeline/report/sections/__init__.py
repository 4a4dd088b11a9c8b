"""Sections of the page. Each is one file with a function from the data of a report to a section, or None without data.

To add one, write its file and a line below. Its data is a key of the report, which `measure` or the recorder writes.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.report.blocks import Section
from pipeline.report.measure import Report
from pipeline.report.sections.calls import calls
from pipeline.report.sections.curation import curation
from pipeline.report.sections.curation_measures import curation_measures
from pipeline.report.sections.curation_samples import curation_samples
from pipeline.report.sections.evaluation import evaluation
from pipeline.report.sections.files import files
from pipeline.report.sections.gate import gate
from pipeline.report.sections.in_and_out import in_and_out
from pipeline.report.sections.lineage import lineage
from pipeline.report.sections.mining import mining
from pipeline.report.sections.quarantine import quarantine
from pipeline.report.sections.repeat import repeat
from pipeline.report.sections.stages import stages
from pipeline.report.sections.throughput import throughput
from pipeline.report.sections.tokens import tokens
from pipeline.report.sections.training import training
from pipeline.report.sections.vectors import vectors

# In the order of the page.
SECTIONS: tuple[Callable[[Report], Section | None], ...] = (
    evaluation,
    in_and_out,
    curation,
    curation_measures,
    curation_samples,
    mining,
    training,
    gate,
    throughput,
    stages,
    tokens,
    quarantine,
    files,
    vectors,
    calls,
    lineage,
    repeat,
)
