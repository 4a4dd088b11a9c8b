"""The reference of the job file: complete, up to date, and its example is a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.job.config import Job, Replicas, parse_job
from pipeline.job.reference import SHORTEST_JOB, reference

PAGE = Path(__file__).parents[3] / "docs" / "jobs.md"
SECTIONS: dict[str, Any] = {name: field.annotation for name, field in Job.model_fields.items()}


def test_page_is_what_make_docs_writes():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_shortest_job_of_the_page_is_valid():
    job = parse_job(yaml.safe_load(SHORTEST_JOB))
    assert (job.source.uri, job.table.uri) == ("corpus/*.parquet", "embeddings")
    assert f"```yaml\n{SHORTEST_JOB}```" in reference()


@pytest.mark.parametrize("section", [*SECTIONS.values(), Replicas], ids=lambda section: section.__name__)
def test_each_key_has_one_sentence(section):
    for name, field in section.model_fields.items():
        text = field.description or ""
        assert text[:1].isupper(), f"{name} has no description that begins with a capital"
        assert text.endswith("."), f"{name}: the description is no sentence"
        assert ". " not in text, f"{name}: the description is more than one sentence"


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_page_lists_each_key_of_a_section(name):
    part = reference().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in part.splitlines() if line.startswith("| `")]
    assert [row.strip("|` ") for row in rows if "." not in row] == list(SECTIONS[name].model_fields)
