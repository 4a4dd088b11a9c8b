"""Curation jobs: forms of the steps, and what is refused with the value, the rule and the fix."""

from __future__ import annotations

import re

import pytest

from actors.errors import ConfigError
from pipeline.job.curation import parse_curation
from pipeline.job.load import load_curation, load_job
from pipeline.report.repeat import command_of

JOB = {"pairs": {"uri": "pairs.jsonl"}, "steps": ["dedup"], "table": {"uri": "table"}}


def test_a_step_is_a_name_or_has_settings():
    forms = ["dedup", {"near_dedup": None}, {"overlap": {"min_words": 2}}, {"language": {"allow": ["en"]}}]
    steps = parse_curation({**JOB, "steps": forms}).steps
    assert [step.name for step in steps] == ["dedup", "near_dedup", "overlap", "language"]
    assert steps[2].settings.model_dump() == {"max_share": 0.8, "min_words": 2}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": []}, "steps names no step; the steps are dedup, near_dedup, overlap"),
        ({"steps": {"dedup": {}}}, "steps: must be a list of steps, as in `[dedup, near_dedup: {threshold: 0.8}]`, not {'dedup'"),
        ({"steps": [{"language": {"allow": [["en", "en"]]}}]}, "['en', 'en'] has one language twice"),
        ({"steps": ["dedup", "dedup"]}, "steps names dedup twice"),
        ({"steps": ["overlp"]}, "steps.0.overlp: no such key; did you mean 'overlap'?"),
        ({"steps": [{"dedup": {}, "overlap": {}}]}, "steps.0: must be one step and its settings"),
        ({"steps": [{"overlap": {"max_share": 1.5}}]}, "steps.0.overlap.max_share: input should be less than or equal to 1"),
        ({"steps": [{"near_dedup": {"threshold": 0}}]}, "steps.0.near_dedup.threshold: input should be greater than 0, not 0"),
        ({"steps": [{"overlap": {"min_words": True}}]}, "steps.0.overlap.min_words: must not be true"),
        ({"steps": [{"language": {"allow": ["en", ["en", "de"]]}}]}, "or pairs of languages, as in [[en, de]], not"),
        ({"steps": [{"language": {"allow": ["english"]}}]}, "'english' is no code of a language"),
        ({"steps": [{"consistency": {"model": "m", "top_k": "best"}}]}, "top_k: must be auto or a whole number"),
        ({"steps": ["semantic_dedup"]}, "steps.semantic_dedup needs a model"),
        ({"corpus": {"uri": "x"}}, "needs one of the sections pairs (texts with two sides) and corpus (documents)"),
        ({"pairs": None, "corpus": {"uri": "x"}, "steps": ["overlap"]}, "overlap, which compares the two sides of pairs"),
        ({"pairs": {"uri": "x", "query": "a", "passage": "a"}}, "pairs: 'a' has two uses here"),
        ({"pairs": {"uri": "x", "keep": ["query"]}}, "keep names 'query', which is in the table as 'query'; leave it out"),
        ({"pairs": {"uri": "x", "keep": ["Kept"]}}, "keep gives 'Kept', and the table has its own 'kept'"),
        ({"pairs": {"uri": "x", "keep": {"a": "Kept"}}}, "as in keep: {a: my_Kept}"),
        ({"pairs": {"uri": "x", "format": "pages"}}, "pairs.format: input should be 'auto', 'parquet'"),
        ({"run": {"memory": "much"}}, "run.memory: "),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused(changed, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_curation({**JOB, **changed})


def test_settings_reach_the_steps(tmp_path):
    (tmp_path / "job.yaml").write_text("pairs: {uri: a}\nsteps: [dedup, near_dedup, overlap: ]\ntable: {uri: b}\n")
    settings = ["steps.near_dedup.threshold=0.7", "steps.overlap.max_share=0.5"]
    job = load_curation(tmp_path / "job.yaml", settings=settings)
    set_to = [step.settings.model_dump() for step in job.steps]
    assert (set_to[1]["threshold"], set_to[2]["max_share"]) == (0.7, 0.5)
    with pytest.raises(ConfigError, match="'steps.language' is not a section"):
        load_curation(tmp_path / "job.yaml", settings=["steps.language.side=query"])
    with pytest.raises(ConfigError, match="has steps, so it is a curation job: run it with `vectide curate`"):
        load_job(tmp_path / "job.yaml")
    command = command_of("curate", job.model_dump(mode="json"))
    assert "--set pairs.uri=a" in command
    assert "'steps=[" in command


def test_a_file_without_keys_is_refused_as_a_job_of_the_command(tmp_path):
    (tmp_path / "job.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"must hold sections \(pairs or corpus, steps"):
        load_curation(tmp_path / "job.yaml")
    with pytest.raises(ConfigError, match=r"must hold sections \(source, table"):
        load_job(tmp_path / "job.yaml")
