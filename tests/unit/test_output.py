"""Texts that commands print."""

from __future__ import annotations

from jobs import output
from jobs.progress import StepsLog
from jobs.terminal import visible
from pipeline.table.versions import Version


def test_control_characters_of_a_corpus_do_not_reach_the_terminal():
    assert visible("a\nb\x1b[31m\x9b2J\tÜ 日本 \u200d [bold]") == r"a\nb\x1b[31m\x9b2J\tÜ 日本 " + "\u200d [bold]"


def test_versions_of_one_model_with_other_adapters_name_their_embedding_specs(capsys):
    specs = ["a" * 64, "a" * 64, "b" * 64, "a" * 64]
    versions = [
        Version(number, "2026-11-30T00:00:00", "refresh", None, 1, 1, "/models/m", spec)
        for number, spec in enumerate(specs, start=1)
    ]
    output.print_versions(versions[::-1])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "model of version 4: /models/m, embedding spec aaaaaaaa",
        "model of version 3: /models/m, embedding spec bbbbbbbb",
        "model of versions 1 to 2: /models/m, embedding spec aaaaaaaa",
    ]
    output.print_versions(versions[1::-1])
    assert capsys.readouterr().out.splitlines()[-1] == "model of versions 1 to 2: /models/m"


def test_the_line_of_a_step_names_its_source_if_there_are_several(capsys):
    StepsLog().trained(1, 23, 3.91379, "")
    StepsLog().trained(16, 24, 2.5056, "graph\x1b.jsonl")
    assert capsys.readouterr().err.splitlines() == [
        "step 1 of 23, loss 3.9138",
        r"step 16 of 24, graph\x1b.jsonl: loss 2.5056",
    ]
