from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from actors.encoders import describe
from actors.images.pixels import pack_pixels
from actors.inputs import MODALITIES, PAGE_CONTENT, load_preparer, prepare_texts
from actors.schema import COST, GRID_H, GRID_W, INPUT_IDS, PICTURE, PREFIX
from actors.text.tokenizer import Tokenizer as TextTokenizer
from tests.checkpoints import SENTENCES, write_jina_v4

# Tokens of the published vocabulary.
PUBLISHED = {
    "user": 872,
    "Ċ": 198,
    "Describe": 74785,
    "Ġthe": 279,
    "Ġimage": 2168,
    ".": 13,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
}


def pixels(rows, columns):
    return pack_pixels(np.full((28 * rows, 28 * columns, 3), rows, np.uint8))


def content(*rows):
    """Texts and pictures as content, in two chunks."""
    made = [{"text": row} if isinstance(row, str) else {"picture": row} for row in rows]
    return pa.chunked_array([pa.array(made[:2], PAGE_CONTENT), pa.array(made[2:], PAGE_CONTENT)])


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = write_jina_v4(tmp_path_factory.mktemp("v4") / "model")
    return describe(str(folder), task="retrieval.passage", dtype="float32").seeing()


def test_a_picture_has_the_published_prompt(tmp_path):
    """The ids that the publisher's processor gives a picture of 2 x 3 tokens; other tokens are unknown."""
    folder = write_jina_v4(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({**PUBLISHED, "?": 0}, unk_token="?"))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in PUBLISHED if name.startswith("<|")])
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = describe(str(folder), task="code.query").seeing()
    rows = load_preparer(spec).prepare(content(pixels(2, 3))).rows
    before, after = [151644, 872, 198, 151652], [151653, 74785, 279, 2168, 13, 151645, 198]
    assert rows[INPUT_IDS].to_pylist() == [before + [151655] * 6 + after]
    assert (rows[COST].to_pylist(), rows[PREFIX].to_pylist()) == ([6 + 11], [4])


def test_texts_and_pictures_keep_their_order(spec):
    made = content("one", pixels(1, 2), pixels(3, 1), "two", SENTENCES[0])
    prepared = load_preparer(spec).prepare(made)
    ids = prepared.rows[INPUT_IDS].to_pylist()
    texts = TextTokenizer(spec).tokenize(["one", "two", SENTENCES[0]]).ids.to_pylist()
    assert [ids[0], ids[3], ids[4]] == texts
    assert len(ids[2]) == len(ids[1]) + 1
    assert prepared.rows[COST].to_pylist() == [len(row) for row in ids]
    assert prepared.rows[PICTURE].to_pylist() == [None, pixels(1, 2), pixels(3, 1), None, None]
    assert prepared.rows[GRID_H].to_pylist() == [None, 1, 3, None, None]
    assert prepared.rows[GRID_W].to_pylist() == [None, 2, 1, None, None]
    starts = prepared.rows[PREFIX].to_pylist()
    place = TextTokenizer(spec).tokenize(["<|image_pad|>"], [None]).ids[0].as_py()
    assert ids[1][starts[1] : starts[1] + 2] == place * 2
    assert prepared.truncated == 0


def test_tasks_belong_to_their_rows(spec):
    made = content(pixels(1, 1), "one", pixels(1, 1), "one")
    tasks = ["code.query", "code.query", "code.passage", "code.passage"]
    ids = load_preparer(spec).prepare(made, tasks).rows[INPUT_IDS].to_pylist()
    assert ids[0] == ids[2]
    assert [ids[1], ids[3]] == TextTokenizer(spec).tokenize(["one", "one"], tasks[1::2]).ids.to_pylist()


def test_a_text_is_truncated_and_a_picture_never(tmp_path):
    spec = describe(str(write_jina_v4(tmp_path / "model")), task="code.query", max_tokens=5).seeing()
    prepared = load_preparer(spec).prepare(content(" ".join(SENTENCES), pixels(3, 4)))
    assert prepared.truncated == 1
    short, long = prepared.rows[COST].to_pylist()
    assert short == 5
    assert long > 12 + 11


def test_no_rows_and_rows_of_one_kind(spec):
    preparer = load_preparer(spec)
    assert preparer.prepare(pa.chunked_array([], PAGE_CONTENT)).rows.num_rows == 0
    assert preparer.prepare(content("one", "two")).rows[PICTURE].null_count == 2
    assert preparer.prepare(content(pixels(1, 1), pixels(1, 1))).rows[PICTURE].null_count == 0


def test_questions_are_texts(spec):
    rows = prepare_texts(spec, ["what?", "who?"])
    assert rows[INPUT_IDS].to_pylist() == TextTokenizer(spec).tokenize(["what?", "who?"]).ids.to_pylist()


def test_blank_texts_among_pages_are_unfit():
    pages = pa.concat_arrays(content("one", pixels(1, 1), " \n", pixels(1, 1), "").chunks)
    unfit = MODALITIES["page"].unfit(pages)
    assert {row: reason for row, (reason, _) in unfit.items()} == {2: "empty_text", 4: "empty_text"}
    assert MODALITIES["page"].unfit(pages.slice(2, 2)).keys() == {0}
