from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.encoders import describe
from actors.errors import ConfigError
from actors.text import tokenizer as module
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import SENTENCES, write_bert, write_jina_v2
from tests.examples import examples

LONG = " ".join(SENTENCES * 40)


@pytest.fixture(scope="module")
def spec(minilm):
    return describe(str(minilm))


def test_the_real_tokenizer_matches_transformers(minilm, spec):
    from transformers import AutoTokenizer

    texts = [*SENTENCES, "", LONG]
    expected = AutoTokenizer.from_pretrained(minilm)(texts, truncation=True, max_length=256)["input_ids"]
    tokens = Tokenizer(spec).tokenize(texts)
    assert tokens.ids.to_pylist() == expected
    assert tokens.ids.type.value_type == "int32"
    assert tokens.truncated.tolist() == [False] * len(SENTENCES) + [False, True]


def test_a_text_exactly_at_the_limit_is_not_truncated(spec):
    tokens = Tokenizer(spec).tokenize(["a " * 254, "a " * 255])
    assert [len(row) for row in tokens.ids.to_pylist()] == [256, 256]
    assert tokens.truncated.tolist() == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        LONG * 10,
        "word" + " " * 50_000 + "another word " * 600,  # so much space that the first cut holds one word
        "x" * 100_000,  # one word, and to WordPiece one unknown token
        "\n" * 30_000 + LONG * 3,
    ],
    ids=["sentences", "spaces", "one word", "lines"],
)
def test_pre_cutting_a_long_text_changes_no_token(spec, monkeypatch, text):
    cut = Tokenizer(spec).tokenize([text, "short"])
    monkeypatch.setattr(module, "_CHARS_PER_TOKEN", 10**9)
    whole = Tokenizer(spec).tokenize([text, "short"])
    assert cut.ids.to_pylist() == whole.ids.to_pylist()
    assert cut.truncated.tolist() == whole.truncated.tolist()


@pytest.fixture(scope="module", params=["word_piece", "byte_level", "white_space"])
def small(request, tmp_path_factory):
    folder = write_jina_v2(tmp_path_factory.mktemp("small"), tokenizer=request.param)
    return describe(str(folder), max_tokens=16)


@given(st.lists(st.sampled_from([*" \n", "fox ", "jumps", "向量", "3.14", "é"]), max_size=400).map("".join))
@examples(80)
def test_pre_cutting_changes_no_token_of_any_text(small, text):
    cut = Tokenizer(small).tokenize([text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHARS_PER_TOKEN", 10**9)
        whole = Tokenizer(small).tokenize([text])
    assert cut.ids.to_pylist() == whole.ids.to_pylist()
    assert cut.truncated.tolist() == whole.truncated.tolist()


def test_lone_surrogates_become_replacement_characters(spec):
    tokens = Tokenizer(spec).tokenize(["a \ud800 b", "fine \U0001f600"]).ids.to_pylist()
    assert tokens == Tokenizer(spec).tokenize(["a \ufffd b", "fine \U0001f600"]).ids.to_pylist()


def test_each_row_gets_the_prompt_of_its_task(tmp_path):
    plain = describe(str(write_bert(tmp_path, tokenizer="word_piece")))
    spec = replace(plain, tasks=("query", "document"), task="document", prompt="the dog ", prompts={"query": "a fox "})
    tokenizer, bare = Tokenizer(spec), Tokenizer(plain)
    mixed = tokenizer.tokenize(["sleeps", "sleeps"], ["query", "document"]).ids.to_pylist()
    assert mixed == bare.tokenize(["a fox sleeps", "the dog sleeps"]).ids.to_pylist()
    assert tokenizer.tokenize(["sleeps"]).ids.to_pylist() == mixed[1:]
    with pytest.raises(ConfigError, match="no task 'nothing': its tasks are query, document"):
        tokenizer.tokenize(["sleeps"], ["nothing"])


def test_texts_are_lower_cased_if_the_repository_says_so(tmp_path):
    spec = describe(str(write_jina_v2(tmp_path, tokenizer="byte_level")))
    lowered = Tokenizer(replace(spec, lowercase=True)).tokenize(["The Fox"]).ids
    assert lowered.to_pylist() == Tokenizer(spec).tokenize(["the fox"]).ids.to_pylist()
    assert lowered.to_pylist() != Tokenizer(spec).tokenize(["The Fox"]).ids.to_pylist()


def test_no_texts_give_no_rows(spec):
    tokens = Tokenizer(spec).tokenize([])
    assert len(tokens.ids) == 0
    assert tokens.truncated.dtype == np.bool_
