"""Tests of the vectors of chunks: late chunks use the states of the whole text, however many windows it is cut into."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.batching.budget import BudgetController
from actors.encoders import describe, load_encoder
from actors.encoders.encoder import Encoder
from actors.encoders.packed import PackedBatch
from actors.encoders.pooling import sums_by_slices, sums_on_gpu
from actors.encoders.windows import cut_windows
from actors.errors import ConfigError
from actors.text.chunk_rules import Chunking
from actors.text.chunks import Chunker
from tests.checkpoints import SENTENCES, write_bert, write_jina_v2, write_jina_v4
from tests.examples import examples

LONG = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return describe(str(write_bert(tmp_path_factory.mktemp("bert"), tokenizer="word_piece")), dtype="float32")


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """A model with a limit of 8,192 tokens and relative positions: a window's states depend on its own tokens only."""
    return describe(str(write_jina_v2(tmp_path_factory.mktemp("v2"))), dtype="float32")


@pytest.fixture(scope="module")
def v4(tmp_path_factory):
    """A model without special tokens, with a prompt and causal attention."""
    return describe(str(write_jina_v4(tmp_path_factory.mktemp("v4"))), dtype="float32", task="retrieval.passage")


@pytest.fixture(params=["v2", "v4"])
def relative(request):
    """Models in which a window's states depend on its own tokens only."""
    return request.getfixturevalue(request.param)


class Looking:
    """A model in which a token attends to itself and the `back` tokens before it.

    So with that much overlap and the special tokens, each token has the same state in its window as in the whole text.
    """

    def __init__(self, hidden: int, *, back: int) -> None:
        self.table = torch.randn(1000, hidden, generator=torch.Generator().manual_seed(1))
        self.back = back

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        rows = torch.split(self.table[batch.ids], batch.lengths.tolist())
        return torch.cat([self._look(row) for row in rows])

    def _look(self, row: torch.Tensor) -> torch.Tensor:
        return torch.stack([row[max(i - self.back, 0) : i + 1].mean(0) for i in range(len(row))])


def test_a_single_chunk_has_the_vector_of_its_text(spec):
    encoder = load_encoder(spec)
    texts = [*SENTENCES[:4], "", "x"]
    plain = encoder.encode(texts)
    modes: tuple[Literal["late"], Literal["split"]] = ("late", "split")
    for mode in modes:
        chunks = encoder.encode_chunks(texts, mode=mode, max_tokens=60)
        assert [len(each) for each in chunks] == [1] * len(texts)
        assert [(each[0].start, each[0].end) for each in chunks] == [(0, len(text)) for text in texts]
        np.testing.assert_allclose([each[0].vector for each in chunks], plain, atol=1e-6)


def test_split_chunks_have_the_vectors_of_their_texts_alone(spec):
    encoder = load_encoder(spec)
    for text, chunks in zip([LONG, "short"], encoder.encode_chunks([LONG, "short"], mode="split", max_tokens=20), strict=True):  # fmt: skip
        parts = [text[chunk.start : chunk.end] for chunk in chunks]
        assert "".join(parts) == text
        np.testing.assert_allclose([chunk.vector for chunk in chunks], encoder.encode(parts), atol=1e-6)
        assert [chunk.tokens for chunk in chunks] == [len(ids) for ids in encoder.tokenizer.tokenize(parts).ids]


def test_late_chunks_are_means_of_the_texts_token_states(relative):
    encoder = load_encoder(relative)
    (chunks,) = encoder.encode_chunks([LONG], max_tokens=30)
    (states,) = encoder.encode_token_states(encoder.tokenizer.tokenize([LONG]).ids)
    assert len(chunks) > 4
    assert sum(chunk.tokens for chunk in chunks) == len(states)
    place = 0
    for chunk in chunks:
        mean = states[place : place + chunk.tokens].mean(0)
        np.testing.assert_allclose(chunk.vector, mean / np.linalg.norm(mean), atol=1e-6)
        place += chunk.tokens


def test_only_late_chunks_depend_on_the_rest_of_the_text(v2):
    modes: tuple[Literal["late"], Literal["split"]] = ("late", "split")
    encoder = load_encoder(v2)
    same = "The fox sleeps on."
    texts = [f"It jumps over the lazy dog. {same}", f"Numbers make up the rest. {same}"]
    limit = len(encoder.tokenizer.tokenize([same]).ids[0]) - 2
    late, split = (
        [chunks[-1].vector for chunks in encoder.encode_chunks(texts, mode=mode, max_tokens=limit)] for mode in modes
    )
    np.testing.assert_allclose(split[0], split[1], atol=1e-6)
    assert np.abs(late[0] - late[1]).max() > 1e-3


@pytest.mark.parametrize("by", ["sentence", "tokens"])
def test_windows_with_enough_overlap_match_the_whole_text(spec, by):
    text = " ".join(SENTENCES * 6)
    family = Looking(spec.hidden, back=8)
    whole = Encoder(replace(spec, max_tokens=8000), device="cpu", family=family)
    cut = Encoder(replace(spec, max_tokens=50), device="cpu", family=family)
    (expected,) = whole.encode_chunks([text], max_tokens=17, by=by)
    for overlap_tokens in (8, 13, 24):
        (chunks,) = cut.encode_chunks([text], max_tokens=17, by=by, overlap_tokens=overlap_tokens)
        assert [(chunk.start, chunk.end, chunk.tokens) for chunk in chunks] == [
            (chunk.start, chunk.end, chunk.tokens) for chunk in expected
        ]
        # The end token's state depends on the text before it, and every last window has enough of it.
        np.testing.assert_allclose([chunk.vector for chunk in chunks], [chunk.vector for chunk in expected], atol=2e-6)
    (seam,) = cut.encode_chunks([text], max_tokens=17, by=by, overlap_tokens=2)
    assert max(np.abs(a.vector - b.vector).max() for a, b in zip(seam, expected, strict=True)) > 1e-3


def test_a_text_within_the_limit_is_not_cut_into_windows(relative):
    texts = [LONG, SENTENCES[0]]
    (long, short) = load_encoder(relative).encode_chunks(texts, max_tokens=30)
    tokens = sum(chunk.tokens for chunk in long)
    (exact, _) = load_encoder(replace(relative, max_tokens=tokens)).encode_chunks(texts, max_tokens=30)
    (over, still) = load_encoder(replace(relative, max_tokens=tokens - 1)).encode_chunks(texts, max_tokens=30)
    for a, b, c in zip(long, exact, over, strict=True):
        np.testing.assert_array_equal(a.vector, b.vector)
        assert (a.start, a.end, a.tokens) == (c.start, c.end, c.tokens)
    assert max(np.abs(a.vector - c.vector).max() for a, c in zip(long, over, strict=True)) > 1e-4
    np.testing.assert_allclose(short[0].vector, still[0].vector, atol=1e-6)


def test_every_window_starts_with_the_prompt_without_special_tokens(v4):
    """Compares with windows cut by hand: the prompt and 38 tokens of the text, of which 9 count in the window before."""
    encoder = load_encoder(replace(v4, max_tokens=40))
    (ids,) = (row.ids.tolist() for row in Chunker(v4, Chunking("late", 17, "tokens"))._tokenizer.tokenize_whole([LONG]))
    (prompt,) = encoder.tokenizer.tokenize([""]).ids.to_pylist()
    prefix = ids[:2]
    assert prompt[:2] == prefix  # the prompt's trailing space belongs to the token of the text's first word
    window_tokens, overlap = 40 - 2, 9
    states = []
    for start in range(0, len(ids) - 2 - overlap, window_tokens - overlap):
        window = prefix + ids[2 + start : 2 + start + window_tokens]
        (window_states,) = encoder.encode_token_states(pa.array([window], pa.list_(pa.int32())))
        states.append(window_states[2 + overlap if start else 0 :])
    whole = np.concatenate(states)
    assert len(whole) == len(ids)
    assert len(states) > 3
    (chunks,) = encoder.encode_chunks([LONG], max_tokens=17, by="tokens", overlap_tokens=overlap)
    place = 0
    for chunk in chunks:
        mean = whole[place : place + chunk.tokens].mean(0)
        np.testing.assert_allclose(chunk.vector, mean / np.linalg.norm(mean), atol=1e-5)
        place += chunk.tokens
    assert place == len(ids)


def test_late_chunks_depend_on_earlier_text_only_if_causal(v4, v2):
    same = "The fox sleeps on."
    for spec, expected in ((v4, False), (v2, True)):
        encoder = load_encoder(spec)
        limit = len(encoder.tokenizer.tokenize([same]).ids[0]) - 2  # two are special ones, or the prompt's
        before, behind = (
            [chunks[place].vector for chunks in encoder.encode_chunks(texts, max_tokens=limit)]
            for place, texts in (
                (-1, [f"It jumps over the lazy dog. {same}", f"Numbers make up the rest. {same}"]),
                (0, [f"{same} It jumps over the lazy dog.", f"{same} Numbers make up the rest."]),
            )
        )
        assert np.abs(before[0] - before[1]).max() > 1e-3
        assert (np.abs(behind[0] - behind[1]).max() > 1e-3) == expected


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    prefix=st.integers(0, 4),
    suffix=st.integers(0, 2),
    limit=st.integers(12, 40),
    data=st.data(),
)
@examples(200)
def test_every_token_counts_once_in_windows_that_fit(lengths, prefix, suffix, limit, data):
    """Each id is its position in the text, so that the window's position can be read from its ids."""
    overlap = data.draw(st.integers(0, (limit - prefix - suffix) // 2))
    rows: list[dict[str, Any]] = []
    for own in lengths:
        total = max(prefix + own + suffix, 1)
        inner = sorted(data.draw(st.sets(st.integers(1, total), max_size=6)) | {total})
        parts = [{"start": 0, "end": 0, "tokens": high - low} for low, high in pairwise([0, *inner])]
        rows.append({"_input_ids": list(range(total)), "_parts": parts})
    table = pa.table(
        {
            "_input_ids": pa.array([row["_input_ids"] for row in rows], pa.list_(pa.int32())),
            "_parts": pa.array([row["_parts"] for row in rows]),
            "_prefix": pa.array([prefix] * len(rows), pa.int32()),
            "_suffix": pa.array([suffix] * len(rows), pa.int32()),
        }
    )
    windows = cut_windows(table, max_tokens=limit, overlap_tokens=overlap)
    chunk_of_token = {}
    ids = windows.ids.to_pylist()
    for window, row in enumerate(windows.text.tolist()):
        assert 0 < len(ids[window]) <= max(limit, 1)
        total = len(rows[row]["_input_ids"])
        assert ids[window][:prefix] == list(range(min(prefix, total)))
        assert suffix == 0 or ids[window][-suffix:] == list(range(total))[-suffix:]
        for place in range(*windows.stretches(window).indices(len(windows.chunk))):
            for token in ids[window][windows.starts[place] : windows.stops[place]]:
                assert (row, token) not in chunk_of_token
                chunk_of_token[row, token] = int(windows.chunk[place])
    first = 0
    for row, each in enumerate(rows):
        stops = np.cumsum([part["tokens"] for part in each["_parts"]])
        for token in each["_input_ids"]:
            assert chunk_of_token.pop((row, token)) == first + np.searchsorted(stops, token, side="right")
        first += len(stops)
    assert not chunk_of_token
    # The number of windows is the smallest possible.
    step = limit - prefix - suffix - overlap
    for row, own in enumerate(lengths):
        needed = 1 if prefix + own + suffix <= limit else 1 + -(-(own - (step + overlap)) // step)
        assert (windows.text == row).sum() == needed


def test_slices_of_documents_are_encoded_correctly(spec):
    encoder = load_encoder(spec)
    texts = [LONG, "a", SENTENCES[1], LONG[50:], ""]
    for chunking in (Chunking("late", 20, "sentence", 10), Chunking("split", 20, "sentence")):
        documents = Chunker(spec, chunking).chunk(texts)
        whole = encoder.encode_documents(documents, chunking)
        counts = [len(row["_parts"]) for row in documents.to_pylist()]
        ends = np.cumsum(counts)
        part = encoder.encode_documents(documents.slice(2, 2), chunking)
        np.testing.assert_allclose(part, whole[ends[1] : ends[3]], atol=1e-5)
        taken = encoder.encode_documents(documents.take([4, 0]), chunking)
        np.testing.assert_allclose(taken, np.concatenate([whole[ends[3] :], whole[: ends[0]]]), atol=1e-5)
        assert encoder.encode_documents(documents.slice(0, 0), chunking).shape == (0, spec.dim)


def test_vectors_do_not_depend_on_the_budget_or_other_rows(spec):
    texts = [LONG, *SENTENCES, LONG[100:]]
    small = Encoder(spec, device="cpu", budget=BudgetController([1]))
    large = Encoder(spec, device="cpu", budget=BudgetController([100_000]))
    together = large.encode_chunks(texts, max_tokens=15)
    for text, chunks in zip(texts, together, strict=True):
        (alone,) = small.encode_chunks([text], max_tokens=15)
        np.testing.assert_allclose([chunk.vector for chunk in chunks], [chunk.vector for chunk in alone], atol=1e-5)
    assert small.stats.micro_batches > len(texts)


def test_gpu_sums_match_the_sums_by_slices():
    hidden = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for starts, stops in (([0, 5, 9], [5, 9, 20]), ([2, 4, 11], [4, 10, 17]), ([19], [20])):
        a, b = np.array(starts), np.array(stops)
        sums = sums_on_gpu(hidden, a, b)
        assert sums.dtype == torch.float32
        np.testing.assert_allclose(sums, sums_by_slices(hidden, a, b), atol=1e-5)


def test_shortened_vectors_are_sliced_and_then_normalised(spec):
    (full,) = load_encoder(spec).encode_chunks([LONG], max_tokens=20)
    (short,) = load_encoder(replace(spec, dim=8)).encode_chunks([LONG], max_tokens=20)
    for a, b in zip(full, short, strict=True):
        np.testing.assert_allclose(b.vector, a.vector[:8] / np.linalg.norm(a.vector[:8]), atol=1e-6)


def test_each_text_has_its_own_task(spec):
    prompted = replace(spec, tasks=("q", "d"), task="d", prompt="the dog ", prompts={"q": "fox ", "d": "the dog "})
    encoder = load_encoder(prompted)
    mixed = encoder.encode_chunks([SENTENCES[0], SENTENCES[0]], task=["q", "d"], max_tokens=500)
    np.testing.assert_allclose(mixed[0][0].vector, encoder.encode([SENTENCES[0]], task="q")[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1][0].vector, encoder.encode([SENTENCES[0]])[0], atol=1e-6)
    with pytest.raises(ConfigError, match="2 tasks for 1 rows"):
        encoder.encode_chunks(["a"], task=["q", "d"])


def test_no_texts_give_no_chunks(spec):
    assert load_encoder(spec).encode_chunks([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, "takes a list of texts"),
        ({"texts": ["a"], "mode": "none"}, "mode 'none' makes no chunks"),
        ({"texts": ["a"], "mode": "split", "max_tokens": 63}, "leaves 62 to a chunk"),
        ({"texts": ["a"], "task": "retrieval"}, "has no task 'retrieval'"),
    ],
)
def test_invalid_arguments_are_refused(spec, arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(spec).encode_chunks(**arguments)
