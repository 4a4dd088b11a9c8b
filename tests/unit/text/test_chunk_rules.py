"""Concatenated chunks equal the text, for any text and any token offsets."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.encoders import describe
from actors.errors import ConfigError
from actors.text import sentences
from actors.text.chunk_rules import BYS, Chunking, cut
from actors.text.chunks import Chunker, resolve
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import write_bert, write_jina_v1, write_jina_v2, write_jina_v3, write_jina_v4
from tests.examples import examples

PROSE = (
    "It began in 3.14 days, e.g. on a Monday. Nobody knew!  Was it so?\nThe line goes on\nand ends here.\n\n"
    "A second paragraph: 😀 it has two sentences. This is the other one.\n\n\n你好。再见！「好」吗？ The end without a period"
)

# Known difficult cases: several tokens per character, characters without a token, normalisers that make several
# characters of one, and texts that change their length in lower case.
PIECES = ["a", "fox ", "jumps. ", "Dr. B! ", "\n", "\n\n", "\r\n", "  ", "\u2029", "你", "。", "😀", "👩\u200d👩\u200d👧", "e\u0301", "\u0301"]  # fmt: skip
PIECES += ["\x00", "\u200b", "ﬁ", "ﷺ", "İ", "ẞ", "𝔘", "\ufffd", "[SEP]", "</s>", "<unk>", "…", "x" * 50]
TEXTS = st.one_of(st.text(max_size=120), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))


KINDS = ("letters", "word_piece", "byte_level", "white_space", "xlm_roberta", "t5", "qwen2")


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    folders = {kind: write_jina_v2(folder / kind, tokenizer=kind) for kind in KINDS[1:4]}
    folders |= {"letters": write_bert(folder / "letters"), "xlm_roberta": write_jina_v3(folder / "xlm_roberta")}
    folders["t5"] = write_jina_v1(folder / "t5")
    folders["qwen2"] = write_jina_v4(folder / "qwen2")  # no special tokens, but a prompt
    tasks = {"qwen2": "retrieval.passage"}
    return {kind: describe(str(folders[kind]), max_tokens=40, task=tasks.get(kind)) for kind in KINDS}


def pieces(text, row):
    return [text[chunk["start"] : chunk["end"]] for chunk in row["_parts"]]


def may_cut(whole, token):
    """Return True if all tokens before `token` end before any of the others begins."""
    spans = list(zip(whole.starts.tolist(), whole.ends.tolist(), strict=True))
    ends_before = [end for start, end in spans[:token] if start < end]
    starts_after = [start for start, end in spans[token:] if start < end]
    return not ends_before or not starts_after or max(ends_before) <= min(starts_after)


def chunks_of_words(text, *, by, max_tokens):
    """Cut a text with its words as tokens."""
    spans = np.array([match.span() for match in re.finditer(r"\S+", text)], np.int64).reshape(-1, 2)
    cuts = cut(text, spans[:, 0], spans[:, 1], max_tokens=max_tokens, by=by)
    return [text[start:end] for start, end in zip([0, *cuts.ends[:-1]], cuts.ends, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, max_tokens=st.integers(1, 20))
@example(text=PROSE, max_tokens=12)
@examples(40)
def test_chunks_concatenate_to_the_text_and_keep_their_limit(specs, kind, by, text, max_tokens):
    (row,) = Chunker(specs[kind], Chunking("late", max_tokens, by)).chunk([text]).to_pylist()
    assert "".join(pieces(text, row)) == text
    stops = list(accumulate(part["tokens"] for part in row["_parts"]))
    assert stops[-1] == len(row["_input_ids"])
    assert stops == sorted(set(stops))
    whole = next(Tokenizer(replace(specs[kind], max_tokens=10_000)).tokenize_whole([text]))
    text_stops = [0, *(stop - row["_prefix"] for stop in stops[:-1]), len(whole.starts)]
    for low, high in pairwise(text_stops):
        # A chunk exceeds the limit only if it is one character of many tokens, such as after normalisation.
        assert high - low <= max_tokens or not any(may_cut(whole, token) for token in range(low + 1, high))


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@examples(40)
def test_in_mode_split_a_chunk_has_the_ids_of_its_text_alone(specs, kind, text):
    (row,) = Chunker(specs[kind], Chunking("split", 12, "sentence")).chunk([text]).to_pylist()
    alone = Tokenizer(specs[kind]).tokenize(pieces(text, row)).ids.to_pylist()
    stops = accumulate((part["tokens"] for part in row["_parts"]), initial=0)
    assert [row["_input_ids"][low:high] for low, high in pairwise(stops)] == alone


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_the_same_in_both_modes(specs, kind):
    late, split = (Chunker(specs[kind], Chunking(mode, 12, "sentence")).chunk([PROSE]) for mode in ("late", "split"))
    assert pieces(PROSE, late.to_pylist()[0]) == pieces(PROSE, split.to_pylist()[0])


def test_a_chunk_over_the_limit_when_alone_keeps_its_ids_in_the_text(tmp_path):
    spec = describe(str(write_bert(tmp_path, tokenizer="word_piece")), max_tokens=4)
    text = "sleepssleeps"
    (row,) = Chunker(spec, Chunking("split", 2, "tokens")).chunk([text]).to_pylist()
    assert pieces(text, row) == ["sleepss", "leeps"]
    # At the beginning of a text, "leeps" has other tokens than inside a word.
    whole = Tokenizer(replace(spec, max_tokens=64)).tokenize([text, "leeps"]).ids.to_pylist()
    assert len(whole[1]) > spec.max_tokens
    assert row["_input_ids"] == [*whole[0][:3], whole[0][-1], whole[0][0], *whole[0][3:]]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("paragraph", ["One two. Three.\n\n", "Four five. ", "Six seven\neight nine ten\n", "eleven twelve thirteen."]),
        ("sentence", ["One two. Three.\n\nFour five. ", "Six seven\neight nine ten\n", "eleven twelve thirteen."]),
        ("tokens", ["One two. Three.\n\nFour five. Six ", "seven\neight nine ten\neleven twelve ", "thirteen."]),
    ],
)
def test_a_chunk_ends_at_the_requested_boundary_if_possible(by, expected):
    text = "One two. Three.\n\nFour five. Six seven\neight nine ten\neleven twelve thirteen."
    assert chunks_of_words(text, by=by, max_tokens=6) == expected


def test_there_is_no_cut_inside_a_character_or_between_unordered_tokens():
    text = "abcdefgh"
    starts = np.array([0, 1, 1, 1, 2, 4, 3, 5, 5, 6, 7])
    ends = np.array([1, 2, 2, 2, 3, 5, 4, 6, 5, 7, 8])  # b has three tokens, e comes before d, one token has no text
    cuts = cut(text, starts, ends, max_tokens=2, by="tokens")
    assert [text[a:b] for a, b in pairwise([0, *cuts.ends])] == ["a", "b", "c", "de", "f", "gh"]
    assert cuts.stops.tolist() == [1, 4, 5, 7, 9, 11]


def test_sentences_are_found_in_any_script_and_across_line_ends():
    text = "It costs 3.14 today. Is it so?  Yes!\nA line that goes on\nand ends. 😀 Ok. 你好。再见！ Last\r\n\r\nNew."
    starts = [0, *sentences.sentences(text), len(text)]
    assert [text[low:high] for low, high in pairwise(starts)] == [
        "It costs 3.14 today. ",
        "Is it so?  ",
        "Yes!\n",
        "A line that goes on\nand ends. ",
        "😀 Ok. ",
        "你好。",
        "再见！ ",
        "Last\r\n\r\n",
        "New.",
    ]


def test_paragraphs_begin_after_blank_lines():
    text = "\n\nOne.\nStill one.\r\n \t\r\n\n  Indented.\u2029Three.\n\n"
    starts = [0, *sentences.paragraphs(text), len(text)]
    assert [text[low:high] for low, high in pairwise(starts)] == [
        "\n\n",
        "One.\nStill one.\r\n \t\r\n\n",
        "  Indented.\u2029",
        "Three.\n\n",
    ]


@given(text=TEXTS)
def test_boundaries_are_inside_the_text_and_rising(text):
    for find in (sentences.sentences, sentences.paragraphs, sentences.lines):
        offsets = find(text).tolist()
        assert offsets == sorted(set(offsets))
        assert all(0 < offset < len(text) for offset in offsets)


def test_the_prompt_and_special_tokens_precede_the_first_chunk(specs):
    spec = replace(specs["byte_level"], task="document", tasks=("document", "query"), prompt="the dog ")
    spec = replace(spec, prompts={"document": "the dog ", "query": "fox:"})
    plain = Chunker(specs["byte_level"], Chunking("late", 8, "tokens"))
    text = "sleeps on. A table of embeddings"
    default, query, none = Chunker(spec, Chunking("late", 8, "tokens")).chunk([text] * 3, ["document", "query", None]).to_pylist()  # fmt: skip
    for row, prompt in ((default, "the dog "), (query, "fox:"), (none, "")):
        assert "".join(pieces(text, row)) == text
        (prompted,) = plain.chunk([prompt + text]).to_pylist()
        assert row["_input_ids"] == prompted["_input_ids"]
        assert row["_suffix"] == 1
    assert none["_prefix"] == 1
    assert query["_prefix"] == len(plain.chunk(["fox:"]).to_pylist()[0]["_input_ids"]) - 1
    # The space at the end of the prompt and the first word are one token, which belongs to the text.
    assert default["_prefix"] == len(plain.chunk(["the dog"]).to_pylist()[0]["_input_ids"]) - 1


@given(text=TEXTS)
def test_lower_casing_does_not_change_the_chunks_text(specs, text):
    spec = replace(specs["byte_level"], lowercase=True)
    (row,) = Chunker(spec, Chunking("late", 3, "tokens")).chunk([text]).to_pylist()
    assert "".join(pieces(text, row)) == text


def test_lower_casing_may_lengthen_a_character(specs):
    spec = replace(specs["byte_level"], lowercase=True)
    (row,) = Chunker(spec, Chunking("late", 3, "tokens")).chunk(["İİAB"]).to_pylist()
    assert pieces("İİAB", row) == ["İ", "İ", "AB"]


def test_lone_surrogates_do_not_change_offsets(specs):
    text = "a \ud800 fox. \ud83d\ude00 b \udfff"
    (row,) = Chunker(specs["byte_level"], Chunking("split", 3, "sentence")).chunk([text]).to_pylist()
    assert "".join(pieces(text, row)) == text


def test_settings_get_their_defaults(specs):
    spec = specs["letters"]
    assert resolve(spec, mode="none") is None
    assert resolve(spec, mode="split") == Chunking("split", 38, "sentence")
    assert resolve(spec, mode="late") == Chunking("late", 512, "sentence", 9)
    long = replace(specs["byte_level"], max_tokens=8192)
    assert resolve(long, mode="split", by="tokens") == Chunking("split", 512, "tokens")
    assert resolve(long, mode="late", max_tokens=10_000) == Chunking("late", 10_000, "sentence", 512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "early"}, "chunking.mode 'early' is not known; use one of none, split, late"),
        ({"mode": "late", "by": "word"}, "chunking.by 'word' is not known; use one of sentence, tokens, paragraph"),
        ({"mode": "late", "max_tokens": 0}, "max_tokens is 0"),
        ({"mode": "split", "max_tokens": 39}, "max_tokens 39 does not fit: .* takes 40 tokens .* leaves 38 to a chunk"),
        ({"mode": "split", "overlap_tokens": 3}, "overlap_tokens 3 is only for mode late"),
        ({"mode": "none", "overlap_tokens": 3}, "overlap_tokens 3 is only for mode late"),
        ({"mode": "late", "overlap_tokens": 20}, r"overlap_tokens 20 is outside 0\.\.19"),
        ({"mode": "late", "overlap_tokens": -1}, r"overlap_tokens -1 is outside 0\.\.19"),
    ],
)
def test_invalid_settings_are_refused(specs, settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve(specs["letters"], **settings)


def test_mode_late_requires_mean_pooling(specs):
    last = replace(specs["letters"], pooling="last")
    with pytest.raises(ConfigError, match="averages the token states .*pooling 'last'.* Use mode split"):
        resolve(last, mode="late")
    assert resolve(last, mode="split") is not None


def test_the_longest_prompt_counts_if_rows_have_their_own_task(specs):
    spec = replace(specs["letters"], tasks=("a", "b"), task="a", prompts={"a": "", "b": "x" * 30})
    assert resolve(spec, mode="split") == Chunking("split", 38, "sentence")
    assert resolve(spec, mode="split", every_task=True) == Chunking("split", 8, "sentence")
    with pytest.raises(ConfigError, match="max_tokens 40 of .* is used up by its special tokens and prompt"):
        resolve(replace(spec, prompt="x" * 38), mode="split")
