"""The step near_dedup against a brute-force oracle, and its shingles against sets of strings."""

from __future__ import annotations

import itertools
import random

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from actors.errors import ConfigError
from pipeline.curate.normalise import normalised
from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.components import smallest_of_components
from pipeline.curate.steps.near_dedup import NearDedup
from pipeline.curate.steps.shingles import Shingles, band_keys, bands_for, probability
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import NearDedup as Settings

WORDS = ["".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=2 + seed % 8)) for seed in range(2000)]
ODD = ["", "a", "abcd", "abcde", "abcde fghij", "ünï cödé 漢字漢字漢字 😀", "aaaaaaaaaa", "x " * 40 + "x", "one two"]


def of_words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def edited(rng: random.Random, text: str, share: float) -> str:
    """Another word in place of this share of the words."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def shingles_of(text: str, part: str = "characters", n: int = 5) -> set[str]:
    parts = text.split(" ") if part == "words" else text
    return {" ".join(parts[at : at + n]) for at in range(len(parts) - n + 1)}


def jaccard(left: str, right: str, part: str = "characters", n: int = 5) -> float:
    a, b = shingles_of(left, part, n), shingles_of(right, part, n)
    return len(a & b) / len(a | b)


def decide(texts, **settings):
    """The rows that are dropped, by n: the id of the keeper and the similarity; and the evidence."""
    columns = texts if isinstance(texts[0], tuple) else [(text,) for text in texts]
    sides = ("query", "passage") if len(columns[0]) == 2 else ("text",)
    step = NearDedup(Settings(**{"permutations": 64, **settings}), sides)
    arrays = [pa.array(column, pa.string()) for column in zip(*columns, strict=True)]
    raw = step.measure(arrays)
    assert raw.schema == step.raw()
    n = np.arange(len(texts))
    ids = [f"{each:05}" for each in n]
    table = pa.table([n, ids, *arrays, *raw.columns], ["n", "id", *sides, *raw.schema.names])
    connection = duckdb.connect(config={"threads": 1})
    connection.register("given", table.take(pa.array(np.random.default_rng(0).permutation(len(texts)))))
    connection.execute("create table rows as select * from given")
    decision = step.decide(Seen(connection, "rows", sides, NullReporter(), "unused"))
    rows = connection.execute(f"select * from {decision.table} order by n").fetchall()
    described = connection.table(decision.table)
    assert described.columns == ["n", *step.schema().names, "dropped"]
    assert all(row[3] for row in rows)
    return {row[0]: (int(row[1]), row[2]) for row in rows}, decision.evidence


@pytest.mark.parametrize(("part", "n"), [("characters", 5), ("characters", 1), ("words", 2), ("words", 5)])
def test_hashes_and_similarities_are_those_of_sets_of_strings(part, n):
    rng = random.Random(5)
    texts = [*map(normalised, ODD), *(of_words(rng, count) for count in (1, 3, 30, 200))]
    texts += [edited(rng, text, 0.1) for text in texts[-4:]]
    shingles = Shingles(part, n)
    assert (shingles.counts(texts) > 0).tolist() == [bool(shingles_of(text, part, n)) for text in texts]
    hashes = np.split(shingles.hashes(texts), np.cumsum(shingles.counts(texts))[:-1])
    assert [len(set(each.tolist())) for each in hashes] == [len(shingles_of(text, part, n)) for text in texts]
    assert all(each.tolist() == shingles.hashes([text]).tolist() for each, text in zip(hashes, texts, strict=True))
    long = [text for text in texts if shingles_of(text, part, n)]
    left, right = zip(*itertools.product(long, long), strict=True)
    expected = [jaccard(a, b, part, n) for a, b in zip(left, right, strict=True)]
    assert shingles.similarities(left, right).tolist() == expected


def test_signatures_agree_as_often_as_shingles_do_and_bands_when_all_places_do():
    rng = random.Random(6)
    texts = [of_words(rng, 60) for _ in range(40)]
    copies = [edited(rng, text, 0.08) for text in texts]
    shingles = Shingles("characters", 5)
    left, right = (shingles.signatures(each, 256) for each in (texts, copies))
    assert abs((left == right).mean() - shingles.similarities(texts, copies).mean()) < 0.02
    same = (left[:, :252] == right[:, :252]).reshape(40, 42, 6).all(axis=2)
    assert ((band_keys(left, 42, 6) == band_keys(right, 42, 6)) == same).all()
    assert 0 < same.mean() < 1


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_find_pairs_at_the_threshold_if_there_are_enough_permutations(threshold, permutations):
    bands, length = bands_for(threshold, permutations)
    assert 1 <= bands * length <= permutations
    assert length == 1 or probability(threshold, bands, length) >= 0.99


def test_components_are_the_same_for_any_parts_and_order_of_edges(monkeypatch):
    monkeypatch.setattr("pipeline.curate.steps.components._EDGES", 3)
    edges = [(5, 9), (9, 7), (100, 2), (7, 30), (2, 1), (3, 3), (30, 5)]
    expected = {7: 5, 9: 5, 30: 5, 2: 1, 100: 1}
    for seed in range(5):
        random.Random(seed).shuffle(edges)
        parts = [np.array(edges[at : at + 2]).T for at in range(0, len(edges), 2)]
        assert dict(zip(*smallest_of_components(iter(parts)).tolist(), strict=True)) == expected
    assert smallest_of_components([]).shape == (2, 0)


@pytest.mark.slow
def test_copies_with_5_of_100_words_edited_are_found_and_nothing_else():
    rng = random.Random(7)
    originals = [of_words(rng, 100) for _ in range(150)]
    texts = originals + [edited(rng, text, 0.05) for text in originals[:100]]
    dropped, evidence = decide(texts, permutations=128)
    right = sum(keeper == n - 150 for n, (keeper, _) in dropped.items())
    assert right >= 0.95 * 100
    assert right >= 0.95 * len(dropped)
    assert evidence["groups"] == len(dropped)
    assert evidence["largest_group"] == 2
    assert decide(texts, shingle="words")[0] == {}  # the trap: 5 % of the words are in a third of the word 5-grams


@pytest.mark.slow
def test_pairs_around_the_threshold_agree_with_the_true_jaccard():
    rng = random.Random(8)
    originals = [of_words(rng, 60) for _ in range(200)]
    texts = originals + [edited(rng, text, rng.choice([0.04, 0.06, 0.08, 0.1, 0.15])) for text in originals]
    for threshold in (0.75, 0.85):
        dropped, _ = decide(texts, threshold=threshold, permutations=128)
        true = {n + 200 for n in range(200) if jaccard(texts[n], texts[n + 200]) >= threshold}
        assert 20 < len(true) < 200
        assert len(true & dropped.keys()) >= 0.95 * max(len(true), len(dropped))
        for n, (keeper, similarity) in dropped.items():
            assert similarity == pytest.approx(jaccard(texts[keeper], texts[n]))
            assert similarity >= threshold


@pytest.mark.slow
def test_groups_are_components_with_the_smallest_as_keeper_in_any_order():
    rng = random.Random(9)
    chain = [of_words(rng, 100)]
    for _ in range(4):
        chain.append(edited(rng, chain[-1], 0.05))
    others = [of_words(rng, 100) for _ in range(20)]
    for seed in range(2):
        texts = chain + others
        random.Random(seed).shuffle(texts)
        members = sorted(map(texts.index, chain))
        dropped, evidence = decide(texts)
        assert {n: keeper for n, (keeper, _) in dropped.items()} == dict.fromkeys(members[1:], members[0])
        assert min(similarity for _, similarity in dropped.values()) < 0.8  # of the ends of the chain
        assert evidence["largest_group"] == 5


def test_equal_texts_are_copies_if_short_too_and_empty_ones_are_left_alone():
    texts = [
        "Ab",
        "  ab ",
        "abc",
        "",
        " ",
        None,
        "ＡＢ",
        "same text here",
        "Same  text here\u200b",
        "nothing in common",
    ]
    dropped, evidence = decide(texts)
    assert dropped == {1: (0, 1.0), 6: (0, 1.0), 8: (7, 1.0)}
    assert (evidence["empty"], evidence["too_short"], evidence["candidates"]) == (3, 2, 0)


@pytest.mark.slow
def test_a_corpus_of_nothing_or_of_one_text_is_decided():
    assert decide([None, ""])[0] == {}
    dropped, evidence = decide(["the same text"] * 500)
    assert dropped == dict.fromkeys(range(1, 500), (0, 1.0))
    assert evidence["texts"] == 1
    assert evidence["largest_group"] == 500


@pytest.mark.slow
def test_a_large_bucket_is_capped_and_reported_and_its_near_copies_are_found():
    rng = random.Random(10)
    page = of_words(rng, 300)
    texts = [f"{page} {of_words(rng, 2)}" for _ in range(60)]
    dropped, evidence = decide(texts, max_bucket=20)
    assert dropped.keys() == set(range(1, 60))
    assert {keeper for keeper, _ in dropped.values()} == {0}
    assert evidence["capped_buckets"] > 0
    assert evidence["largest_capped_buckets"][0] == {"texts": 60, "first": "00000"}
    assert evidence["candidates"] < 60 * 59 / 2 == decide(texts, max_bucket=60)[1]["candidates"]


def test_candidates_whose_signatures_hardly_agree_are_not_compared(monkeypatch):
    rng = random.Random(12)
    pages = [of_words(rng, 100) for _ in range(30)]
    texts = [" ".join((of_words(rng, 40), page)) for page in pages for _ in range(2)]  # pairs of 0.6
    copies = [edited(rng, text, 0.02) for text in texts[:5]]
    dropped, evidence = decide(texts + copies)
    assert {n: keeper for n, (keeper, _) in dropped.items()} == {60 + n: n for n in range(5)}
    assert 5 <= evidence["compared"] < evidence["candidates"]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "expected"), [("query", {1: (0, 1.0)}), ("passage", {2: (1, 1.0)}), ("both", {})])
def test_a_side_of_pairs_is_compared_or_both_as_one_text(side, expected):
    rng = random.Random(11)
    a, b, c, d = (of_words(rng, 30) for _ in range(4))
    assert decide([(a, b), (a, c), (d, c)], side=side)[0] == expected
    assert decide([(a, b), (a, b)], side=side)[0] == {1: (0, 1.0)}


def test_a_threshold_that_a_signature_is_too_short_for_is_refused():
    NearDedup(Settings(threshold=0.05, permutations=90), ("text",)).check()
    with pytest.raises(ConfigError, match="threshold 0.05 from 90 permutations on, and the job has 89"):
        NearDedup(Settings(threshold=0.05, permutations=89), ("text",)).check()


def test_another_threshold_needs_no_other_signatures():
    steps = [NearDedup(Settings(threshold=threshold), ("text",)) for threshold in (0.5, 0.9)]
    texts = [pa.array(["a text that has some words", None])]
    assert steps[0].measure(texts) == steps[1].measure(texts)
    assert steps[0].raw_settings() == steps[1].raw_settings() != NearDedup(Settings(n=4), ("text",)).raw_settings()
