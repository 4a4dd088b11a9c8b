"""EasyNegation and HardNegation of a model on negations of example sentences.

The sentences are those of WordNet (Debian's wordnet-base). The anchor is the sentence with one word replaced by a synonym of
its sense, so that the sentence follows from it; the negative is made by `vectide negation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.encoders import load_encoder
from benchmarks.wordnet import synsets
from pipeline.curate.negation.build import Outcome, Settings, build_negations
from pipeline.evaluate.result import Evaluation
from pipeline.evaluate.texts import Subject, evaluate_texts
from pipeline.job.load import load_job

_EXAMPLE = re.compile(r'"([^"]+)"')
_LEAST_WORDS = 4


def wordnet_pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (anchor, entailment): a sentence with a synonym, and the sentence."""
    for synset in synsets(folder):
        simple = [lemma for lemma in synset.lemmas if lemma.isalpha() and lemma.islower()]
        for sentence in _EXAMPLE.findall(synset.gloss):
            if len(sentence.split()) >= _LEAST_WORDS and (pair := _swapped(sentence, simple)) is not None:
                yield pair


def _swapped(sentence: str, lemmas: list[str]) -> tuple[str, str] | None:
    """Return the sentence with the first lemma of its sense replaced by another one, and the sentence."""
    for lemma in lemmas:
        found = re.search(rf"\b{lemma}\b", sentence)
        other = next((each for each in lemmas if each != lemma and (each[0] in "aeiou") == (lemma[0] in "aeiou")), None)
        if found is not None and other is not None:
            text = sentence[: found.start()] + other + sentence[found.end() :]
            return tuple(each[0].upper() + each[1:].strip() for each in (text, sentence))  # type: ignore[return-value]
    return None


def write_pairs(wordnet: Path, work: Path) -> str:
    """Write the pairs of WordNet's files to a Parquet file in the folder `work`; return its path."""
    work.mkdir(parents=True, exist_ok=True)
    anchors, entailments = zip(*wordnet_pairs(wordnet), strict=True)
    pq.write_table(pa.table({"anchor": anchors, "entailment": entailments}), work / "pairs.parquet")
    return str(work / "pairs.parquet")


def measure(work: Path, wordnet: Path, model: Path, *, pairs: str | None) -> list[tuple[Outcome, Evaluation]]:
    """Make a set by rules and one by antonyms, and evaluate the model on both.

    Args:
        work: Folder for the sets.
        wordnet: Folder of WordNet's files.
        model: Folder of the model.
        pairs: URL of other pairs, with the columns `anchor` and `entailment`; None: those of WordNet.
    """
    pairs = pairs or write_pairs(wordnet, work)
    job = load_job(None, defaults={"source.uri": "none", "table.uri": "none", "encoder.model": str(model)})
    subject = Subject("all-MiniLM-L6-v2", load_encoder(job.encoder.settings()))
    found = []
    for way in ("rules", "antonyms"):
        made = build_negations(pairs, str(work / f"{way}.parquet"), Settings(ways=(way,), wordnet=str(wordnet)))
        found.append((made, evaluate_texts("negation", made.out, [subject]).result()))
    return found


def markdown(found: list[tuple[Outcome, Evaluation]], *, pairs: str | None, command: str, date: str) -> str:
    """Return the page of a measurement."""
    what = (
        "example sentences of WordNet 3.0. The anchor has a synonym of the same sense in place of one word"
        if pairs is None
        else f"of {pairs}"
    )
    lines = [f"# What a small model sees of a negation ({date})", "", f"    {command}", ""]
    lines += [f"{found[0][0].rows_read:,} pairs, {what};"]
    lines += ["`vectide negation` made the negatives. Words in common: the share of words in place of the cosine.", ""]
    lines += ["| negatives by | triplets | | EasyNegation | HardNegation |", "|---|---:|---|---|---|"]
    for way, (made, evaluation) in zip(("rules", "antonyms"), found, strict=True):
        for row in evaluation.rows:
            scores = " | ".join(str(row.scores[name]) for name in ("EasyNegation", "HardNegation"))
            lines.append(f"| {way} | {made.rows:,} | {row.label} | {scores} |")
    lines += [
        "",
        "EasyNegation is the share of triplets in which the anchor is nearer to the sentence than to its negative,",
        "HardNegation that in which the sentence is nearer to the anchor than to its negative",
        "([evaluation](../evaluation.md)). In brackets: 95 % intervals.",
        "",
        "| rule | triplets | sentence | negative |",
        "|---|---:|---|---|",
    ]
    for made, _ in found:
        lines += [
            f"| {rule} | {made.by_rule[rule]:,} | {text} | {negative} |" for rule, text, negative in made.examples
        ]
    lines += ["", "| pairs left out | by rules | by antonyms |", "|---|---:|---:|"]
    first, second = (made.left_out for made, _ in found)
    lines += [
        f"| {reason} | {first.get(reason, 0):,} | {second.get(reason, 0):,} |"
        for reason in dict.fromkeys([*first, *second])
    ]
    return "\n".join([*lines, ""])
