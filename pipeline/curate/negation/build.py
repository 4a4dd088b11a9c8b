"""Builds a set of negations from entailment pairs: which rows get a negative, which are left out and why.

Called by `vectide negation`. The output is what `vectide evaluate --negation` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from actors import storage
from actors.errors import ConfigError, DataError, InvariantBroken
from actors.schema import CONTENT, ID
from pipeline.curate.negation.endpoint import Endpoint
from pipeline.curate.negation.rules import Negated, negate
from pipeline.curate.negation.wordnet import DEFAULT_FOLDER, Antonyms, read_antonyms
from pipeline.curate.negation.words import differ_by_negation, is_negated
from pipeline.curate.normalise import normalised
from pipeline.plan.rows import Columns, read_rows
from pipeline.search.questions import check_out

WAYS = ("rules", "antonyms", "endpoint")
_BLANK = ("null_text", "empty_text", "missing_text")
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "anchor", "entailment", "negative", "rule")])
_OPTIONS = {"source.uri": "PAIRS", "source.text": "--entailment", "source.keep": "--anchor"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Columns of the pairs, and how negatives are made.

    Attributes:
        anchor: Column of the first texts.
        entailment: Column of the texts that follow from them.
        ways: Some of `WAYS`, in the order in which they are tried.
        wordnet: Folder of WordNet's files; None: Debian's, if it is there.
        endpoint: Base URL of an OpenAI-compatible endpoint, and the model there.
    """

    anchor: str = "anchor"
    entailment: str = "entailment"
    ways: Sequence[str] = ("rules", "antonyms")
    wordnet: str | None = None
    endpoint: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A set of negations.

    Attributes:
        out: Its URL.
        rows_read: Pairs that were read.
        rows: Triplets.
        by_rule: Triplets by the rule that made the negative.
        left_out: Pairs without a triplet, by reason.
        examples: Some triplets, one of each rule: rule, entailment, negative.
        notes: Sentences about what was not done.
    """

    out: str
    rows_read: int
    rows: int
    by_rule: dict[str, int]
    left_out: dict[str, int]
    examples: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Pair:
    """Pair without a defect, and its negative once there is one."""

    id: str
    anchor: str
    entailment: str
    negative: Negated | None = None
    problem: str = ""


def build_negations(pairs: str, out: str, settings: Settings) -> Outcome:
    """Make a negative for each pair of texts of which the second follows from the first.

    The same pairs and settings give the same file, but for the answers of an endpoint.

    Args:
        pairs: URL of files (Parquet, CSV, JSON Lines; a folder or a glob) or of a Delta table.
        out: URL of the Parquet file to write: `id`, `anchor`, `entailment`, `negative`, `rule`.
        settings: Columns, and how negatives are made.

    Raises:
        ConfigError: a column is missing, `out` cannot be written, or WordNet or the endpoint cannot be used.
        DataError: a file cannot be read, or no pair has a negative.
        StorageError: the store or the endpoint failed.
    """
    check_out(out, pairs)
    antonyms, notes = _antonyms(settings)
    endpoint = None
    if settings.endpoint is not None:
        endpoint = Endpoint(*settings.endpoint, parts=f"{storage.absolute(out)}.answers")
    left_out: Counter[str] = Counter()
    good = list(_pairs(pairs, settings, left_out))
    rows_read = len(good) + left_out.total()
    for way in settings.ways:
        waiting = [pair for pair in good if pair.negative is None]
        if way == "rules":
            _try(waiting, negate)
        elif way == "antonyms" and antonyms is not None:
            _try(waiting, antonyms.replace)
        elif way == "endpoint" and endpoint is not None:
            _ask(waiting, endpoint, antonyms)
    made = [(pair, pair.negative) for pair in good if pair.negative is not None]
    left_out.update(pair.problem for pair in good if pair.negative is None)
    if rows_read != len(made) + left_out.total():
        raise InvariantBroken(f"{rows_read} pairs were read, but {len(made)} used and {left_out.total()} left out.")
    if not rows_read:
        raise DataError(f"{pairs!r} has no pair; of a curated table only the kept rows are read")
    if not made:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in left_out.most_common())
        raise DataError(
            f"none of the {rows_read:,} pairs of {pairs!r} has a negative ({reasons}). The rules are for single English "
            f"sentences; --endpoint asks a model for other texts"
        )
    columns = zip(*((pair.id, pair.anchor, pair.entailment, *negative) for pair, negative in made), strict=True)
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([pa.array(each, pa.string()) for each in columns], schema=_SCHEMA), sink, compression="zstd"
    )
    storage.put(storage.absolute(out), bytes(sink.getvalue()))
    if endpoint is not None:
        endpoint.forget()
    examples = {negative.rule: (negative.rule, pair.entailment, negative.text) for pair, negative in reversed(made)}
    return Outcome(
        storage.absolute(out),
        rows_read,
        len(made),
        dict(Counter(negative.rule for _, negative in made).most_common()),
        dict(left_out.most_common()),
        tuple(examples[rule] for rule in sorted(examples)),
        notes,
    )


def _antonyms(settings: Settings) -> tuple[Antonyms | None, tuple[str, ...]]:
    """Return the antonyms, where they are wanted and there, and a note where they are wanted and missing."""
    if settings.wordnet is None and "antonyms" not in settings.ways:
        return None, ()
    found = read_antonyms(settings.wordnet)
    note = f"no antonyms: WordNet is not in {DEFAULT_FOLDER} (apt-get install wordnet-base, or --wordnet DIR)"
    return found, () if found is not None else (note,)


def _pairs(pairs: str, settings: Settings, left_out: Counter[str]) -> Iterator[_Pair]:
    """Yield the pairs without a defect, and count the others."""
    if settings.anchor == settings.entailment:
        raise ConfigError(f"--anchor and --entailment both name {settings.anchor!r}; name two columns")
    columns = Columns((settings.entailment,), _OPTIONS, (settings.anchor,))
    seen: set[tuple[str, str]] = set()
    for part in read_rows(pairs, columns):
        for reason, count in part.bad.items():
            left_out["the entailment is blank" if reason in _BLANK else f"the entailment: {reason}"] += count
        texts = (part.rows[name].to_pylist() for name in (ID, settings.anchor, CONTENT))
        for name, anchor, entailment in zip(*texts, strict=True):
            key = (normalised(anchor), normalised(entailment))
            if not key[0]:
                problem = "the anchor is blank"
            elif key[0] == key[1]:
                problem = "anchor and entailment are the same"
            elif key in seen:
                problem = "a copy of another pair"
            elif is_negated(entailment):
                problem = "the entailment is negated already"
            elif is_negated(anchor):
                problem = "the anchor is negated already"
            else:
                seen.add(key)
                yield _Pair(name, anchor, entailment)
                continue
            left_out[problem] += 1


def _try(waiting: Sequence[_Pair], way: Callable[[str], Negated | str]) -> None:
    """Negate by rules or antonyms; the reason of the first way that was tried is kept."""
    for pair in waiting:
        found = way(pair.entailment)
        if isinstance(found, str):
            pair.problem = pair.problem or found
        else:
            pair.negative = found


def _ask(waiting: Sequence[_Pair], endpoint: Endpoint, antonyms: Antonyms | None) -> None:
    are_antonyms = None if antonyms is None else antonyms.are_antonyms

    def check(sentence: str, answer: str) -> str:
        if normalised(sentence) == normalised(answer):
            return "the answer is the entailment itself"
        return "" if differ_by_negation(sentence, answer, are_antonyms) else "the answer changes more than the negation"

    answers = endpoint.negate([pair.entailment for pair in waiting], check)
    for pair, answer in zip(waiting, answers, strict=True):
        pair.negative = Negated(answer.text, "endpoint") if answer.text else None
        pair.problem = f"endpoint: {answer.problem}"
