"""The pairs of the training benchmark: glosses and lemmas of WordNet, signatures, and entries held out by their source."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from benchmarks.reverse_dictionary import Entry, glosses, signatures, split, write

NOUNS = """\
  1 This is the licence of WordNet, which is no entry.
00000001 03 n 02 dump_routine 0 dumper 0 000 | a program that writes from a store; "the dumper ran"; used rarely
00000002 03 n 01 wood 0 000 | the hard fibrous matter of trees
00000003 03 n 01 hardwood(a) 0 000 | the wood of some trees, with broad leaves
00000004 03 n 01 lawyer 0 000 | a person who is a lawyer
00000005 03 n 01 lumber 0 000 | The hard fibrous matter of trees
00000006 03 n 01 Wood 0 000 | an English conductor of concerts
00000007 03 n 01 thing 0 000 | an object
"""


@pytest.fixture
def wordnet(tmp_path):
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(NOUNS if part == "noun" else "")
    return tmp_path


def test_a_gloss_without_its_examples_finds_the_words_of_its_synset(wordnet):
    found = {entry.id: (entry.query, entry.passage) for entry in glosses(wordnet)}
    assert found == {
        "noun-00000001": ("a program that writes from a store", "dump routine, dumper"),
        "noun-00000002": ("the hard fibrous matter of trees", "wood"),
        "noun-00000003": ("the wood of some trees, with broad leaves", "hardwood"),
    }  # 4 contains its word, 5 has the gloss of 2, 6 the word of 2, 7 is too short


def test_entries_are_held_out_with_all_others_of_their_source():
    entries = [Entry(f"{number}", f"module{number % 10}", f"q{number}", f"p{number}") for number in range(100)]
    train, held_out = split(entries, 25, 60, seed=3)
    assert (len(train), len(held_out)) == (60, 25)
    assert not {entry.source for entry in train} & {entry.source for entry in held_out}
    assert split(entries[::-1], 25, 60, seed=3) == (train, held_out)
    with pytest.raises(ValueError, match="100 entries are too few for 25 held-out ones and 80 to train on"):
        split(entries, 25, 80)


def test_files_hold_the_pairs_and_the_judged_queries(tmp_path):
    train, held_out = [Entry("a", "a", "ask a", "say a")], [Entry("b", "b", "ask b", "say b")]
    files = write(tmp_path / "new", train, held_out)
    read = {name: pq.read_table(getattr(files, name)).to_pylist() for name in files.__dataclass_fields__}
    assert read == {
        "pairs": [{"id": "a", "query": "ask a", "passage": "say a"}],
        "documents": [{"id": "a", "text": "say a"}],
        "corpus": [{"id": "b", "text": "say b"}],
        "queries": [{"id": "b", "text": "ask b"}],
        "judgements": [{"query": "b", "doc": "b"}],
    }


def test_signatures_are_those_of_documented_functions(monkeypatch, tmp_path):
    code = '"""Module."""\ndef read(path, *, mode="r"):\n    """Read a whole file. More.\n\n    Args."""\n'
    code += "class Store:\n    def put(self, key: str) -> None:\n        'Write one object of a store'\n    def _own(self):\n        'Not for users at all'\n"
    (tmp_path / "module.py").write_text(code)
    monkeypatch.setattr(
        "benchmarks.reverse_dictionary.sources", lambda _, tops: [] if tops else [("module", tmp_path / "module.py")]
    )
    assert [(entry.id, entry.query, entry.passage) for entry in signatures()] == [
        ("module:read", "Read a whole file.", "read(path, *, mode='r')"),
        ("module:Store.put", "Write one object of a store", "Store.put(self, key: str)"),
    ]
