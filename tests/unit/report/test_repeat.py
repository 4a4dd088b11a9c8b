"""The command that repeats a run makes the same job."""

from __future__ import annotations

import shlex

import pytest

from pipeline.job.config import parse_job
from pipeline.job.load import load_job
from pipeline.report.repeat import command_of

PLAIN = {"source": {"uri": "s3://lake/wiki/*.parquet"}, "table": {"uri": "out"}, "encoder": {"model": "m"}}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"source": {"uri": "it's here; rm -rf ~/$HOME", "text": ["a", "b: c"], "keep": {"x": "y"}}},
        {"source": {"uri": "1e3", "id": "yes", "text": "null"}},
        {
            "run": {
                "replicas": {"min": 0, "max": 4},
                "gpus_per_replica": 1,
                "labels": {"ray.io/accelerator-type": "!T4"},
            }
        },
        {"table": {"uri": "x", "file_size": None, "partition_by": ["lang"]}, "source": {"uri": "a", "keep": ["lang"]}},
        {"chunking": {"mode": "late", "max_tokens": 64}, "encoder": {"model": "m", "dtype": "int8", "dim": 256}},
    ],
)
def test_the_command_makes_the_same_job(sections):
    job = parse_job({**PLAIN, **sections})
    words = shlex.split(command_of("refresh", job.model_dump(mode="json")))
    assert words[:2] == ["vectide", "refresh"]
    assert words[2::2] == ["--set"] * len(words[3::2])
    assert load_job(None, settings=words[3::2]) == job


def test_a_retry_has_its_option_and_a_compaction_has_no_job():
    job = parse_job(PLAIN).model_dump(mode="json")
    assert command_of("generation", job, retries=True).startswith("vectide refresh --retry-quarantined --set ")
    assert command_of("compact", {}) == ""
    assert command_of("backfill", {"source": {"key_of_an_older_release": 1}}) == ""
