"""Texts that commands print."""

from __future__ import annotations

from jobs import output


def test_control_characters_of_a_corpus_do_not_reach_the_terminal():
    assert (
        output.visible("a\nb\x1b[31m\x9b2J\tÜ 日本 \u200d [bold]") == r"a\nb\x1b[31m\x9b2J\tÜ 日本 " + "\u200d [bold]"
    )
