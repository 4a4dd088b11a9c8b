"""Finds out how the fields of a delimited shard are written, from its first bytes.

Called when a run is planned, once for each shard; what is decided goes into the plan, so that no reader decides again. Each
dialect that a job allows reads the same first bytes, and counts the lines that it cannot read or that its writer would not have
written. The least count wins; among equals the plain dialect does: quotes doubled in CSV, no quotes in TSV. The trade-off:
quotes that come only behind those bytes are read as the first ones are, and rows that do not fit then are broken lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

from actors.errors import ConfigError
from actors.schema import Dialect, Shard
from actors.source.formats.base import reading
from actors.source.formats.grammar import Grammar, grammar
from actors.source.formats.lines import BOM, delimiter_of, open_lines

SAMPLE_BYTES = 2 << 20
_THREADS = 16

_RFC, _SPARK = Dialect('"', "double"), Dialect('"', "backslash")
_PLAIN, _COPY = Dialect("none", "none"), Dialect("none", "backslash")
_SINGLE, _SINGLE_SPARK = Dialect("'", "double"), Dialect("'", "backslash")
_OF_CSV = (_RFC, _SPARK, _COPY, _SINGLE, _SINGLE_SPARK, _PLAIN)
_OF_TSV = (_PLAIN, _COPY, _RFC, _SPARK, _SINGLE, _SINGLE_SPARK)
_OTHERS = (Dialect('"', "none"), Dialect("'", "none"))

_VALID_ESCAPE = re.compile(rb"\\(?:[bfnrtv0NZ.\\'\"\t,\n]|\r\n)")
_DRIVE = re.compile(rb"(?<![A-Za-z])[A-Za-z]:\\(?!\\)")
_WORDS = {
    _RFC: "quotes around fields, doubled inside of them (RFC 4180)",
    _SPARK: "quotes around fields, escaped by a backslash inside of them (as Spark writes)",
    _PLAIN: "no quotes and no escapes: a quote is a character like any other (IANA TSV)",
    _COPY: "no quotes, backslash escapes and \\N for null (as text exports of MySQL and PostgreSQL)",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for a shard.

    Attributes:
        dialect: The dialect.
        ambiguous: Another dialect that reads the first bytes as well but finds other rows or values; None where none does.
    """

    dialect: Dialect
    ambiguous: Dialect | None = None


def plain_dialect(path: str) -> Dialect:
    """The dialect that a file is expected to have by its name."""
    return _PLAIN if delimiter_of(path) == "\t" else _RFC


def words(dialect: Dialect) -> str:
    """A dialect for a person."""
    known = _WORDS.get(dialect, "")
    return f"quote {dialect.quote}, escape {dialect.escape}" + (f": {known}" if known else "")


def check_keys(quote: str, escape: str) -> None:
    """Raise ConfigError where `source.quote` and `source.escape` cannot go together."""
    if quote == "none" and escape == "double":
        raise ConfigError(
            "source.escape double writes a quote twice inside of quotes, and source.quote is none. Set source.escape to "
            "backslash, none or auto, or name the quote"
        )


@lru_cache(maxsize=4096)
def choose(shard: Shard, quote: str = "auto", escape: str = "auto") -> Choice:
    """The dialect of a shard.

    Args:
        shard: A delimited file.
        quote: What `source.quote` says.
        escape: What `source.escape` says.

    Raises:
        DataError: the shard cannot be read.
    """
    check_keys(quote, escape)
    order = _OF_TSV if delimiter_of(shard.path) == "\t" else _OF_CSV
    allowed = [each for each in (*order, *_OTHERS) if quote in ("auto", each.quote) and escape in ("auto", each.escape)]
    if escape == "auto":
        allowed = [each for each in allowed if each not in _OTHERS]
    elif escape == "none" and quote == "auto":
        allowed = [each for each in allowed if each.quote != "'"]
    if len(allowed) == 1:
        return Choice(allowed[0])
    with reading(shard, "CSV"), open_lines(shard) as file:
        data: bytes = file.read(SAMPLE_BYTES)
    whole = len(data) < SAMPLE_BYTES
    data = data.removeprefix(BOM)
    if not whole:
        data = data[: data.rfind(b"\n") + 1]
    return _choose(data, allowed, delimiter_of(shard.path), whole=whole)


@dataclass(frozen=True, slots=True)
class DialectUse:
    """Shards that have one dialect.

    Attributes:
        quote: As in `source.quote`.
        escape: As in `source.escape`.
        shards: How many.
        first: The path of the first one.
        plain: It is the dialect that their names lead to expect.
        ambiguous: How many of them another dialect reads as well, with other rows or values.
        other: That other dialect of the first such shard, for a person.
    """

    quote: str
    escape: str
    shards: int
    first: str
    plain: bool
    ambiguous: int
    other: str

    @property
    def worth_saying(self) -> bool:
        """Whether a person should know."""
        return not self.plain or self.ambiguous > 0

    def sentence(self) -> str:
        """What is read how, in words."""
        text = f"{self.first!r}" + (f" and {self.shards - 1:,} more" if self.shards > 1 else "")
        text += f": {words(Dialect(self.quote, self.escape))}"
        if self.ambiguous:
            text += f"; {self.ambiguous:,} could also be read with {self.other}: set source.quote and source.escape"
        return text


def settle(
    shards: Sequence[Shard], source_format: str, quote: str, escape: str
) -> tuple[tuple[Shard, ...], tuple[DialectUse, ...]]:
    """The shards, each with its dialect; and which dialects they have. Shards of another format stay as they are.

    Args:
        shards: As they were listed.
        source_format: Name of their format, never "auto".
        quote: What `source.quote` says.
        escape: What `source.escape` says.

    Raises:
        ConfigError: the keys cannot go together, or the format has no dialects.
        DataError: a shard cannot be read.
    """
    if source_format != "csv":
        if (quote, escape) != ("auto", "auto"):
            raise ConfigError(
                f"source.quote and source.escape are for CSV and TSV, and this source is {source_format}. Leave them out"
            )
        return tuple(shards), ()
    check_keys(quote, escape)
    with ThreadPoolExecutor(_THREADS) as pool:
        choices = list(pool.map(lambda shard: choose(shard, quote, escape), shards))
    asked = "auto" not in (quote, escape)
    groups: dict[tuple[Dialect, bool], list[tuple[Shard, Choice]]] = {}
    for shard, choice in zip(shards, choices, strict=True):
        plain = asked or choice.dialect == plain_dialect(shard.path)
        groups.setdefault((choice.dialect, plain), []).append((shard, choice))
    uses = []
    for (dialect, plain), members in groups.items():
        others = [choice.ambiguous for _, choice in members if choice.ambiguous is not None]
        other = f"quote {others[0].quote}, escape {others[0].escape}" if others else ""
        first = members[0][0].path
        uses.append(DialectUse(dialect.quote, dialect.escape, len(members), first, plain, len(others), other))
    settled = (replace(shard, dialect=choice.dialect) for shard, choice in zip(shards, choices, strict=True))
    return tuple(settled), tuple(uses)


@dataclass(frozen=True, slots=True)
class _Score:
    """How well a dialect reads the first bytes.

    Attributes:
        cost: Lines that it cannot read, or that its writer would not have written.
        fields: All fields of all good rows, as one hash: two dialects with the same read the same.
        lines_inside: Lines of good rows over several lines.
    """

    cost: int
    fields: int
    lines_inside: int


def _choose(data: bytes, allowed: list[Dialect], delimiter: str, *, whole: bool) -> Choice:
    tsv = delimiter == "\t"
    marks = b'"' in data, b"'" in data, b"\\" in data
    if not marks[0] and not marks[2] and (tsv or not marks[1]):
        return Choice(allowed[0])
    escapes = marks[2] and _has_escapes(data, delimiter)
    scores: dict[Dialect, _Score] = {}
    for dialect in allowed:
        if dialect.escape == "backslash" and not marks[2]:
            continue
        if dialect == _SPARK and not marks[0] and _COPY in allowed:
            continue
        if dialect.quote == "'" and len(allowed) > 1 and not _quotes_fields(data, delimiter):
            continue
        score = _score(data, grammar(dialect, delimiter), whole=whole, tsv=tsv)
        if (dialect.quote == "none" and not tsv) or dialect.quote == "'":
            score = replace(score, cost=score.cost + _quoted_lines(data, delimiter, needed=False, but=dialect.quote))
        if tsv and dialect == _COPY and not escapes:
            score = replace(score, cost=score.cost + 1)  # some backslash is no escape of such a writer
        if escapes and dialect.escape != "backslash":
            score = replace(score, cost=score.cost + escapes)
        scores[dialect] = score
        if score.cost == 0 and not tsv:
            break
    if tsv and _PLAIN in scores and _RFC in scores:
        # Rows over several lines and quotes that are doubled are what only a writer with quotes would have written.
        more = _quoted_lines(data, delimiter, needed=True)
        if scores[_RFC].cost == 0 or more:
            more += scores[_RFC].lines_inside
        for dialect in (_PLAIN, _COPY):
            if dialect in scores:
                scores[dialect] = replace(scores[dialect], cost=scores[dialect].cost + more)
    if not scores:
        return Choice(allowed[0])
    best = min(scores, key=lambda each: scores[each].cost)
    equals = [
        each
        for each, score in scores.items()
        if score.cost == scores[best].cost and score.fields != scores[best].fields
    ]
    return Choice(best, equals[0] if equals else None)


def _score(data: bytes, of: Grammar, *, whole: bool, tsv: bool) -> _Score:
    at, cost, inside, summed = 0, 0, 0, 0
    count: int | None = None
    mark = of.delimiter.encode()
    while at < len(data):
        end = of.row_end(data, at, closed=whole)
        if end is None:
            # A row that reaches beyond the first bytes: its lines are looked at as if each were one.
            lines = data[at:].split(b"\n")
            cost += sum(line.count(mark) == (count or 0) - 1 for line in lines) if len(lines) > 1 else 0
            break
        line_end = data.find(b"\n", at) + 1 or len(data)
        good = isinstance(end, int)
        row_end = end if isinstance(end, int) else line_end
        row = data[at:row_end].rstrip(b"\r\n") if good else b""
        if good and row:
            several = row_end > line_end
            if (
                several
                and count is not None
                and (isinstance(of.fields_over_lines(row, count), str) or (tsv and _all_rows(row, mark, count)))
            ):
                good = False
            else:
                fields = of.fields(row.decode("utf-8", "replace"))
                good = not isinstance(fields, str) and (count is None or len(fields) == count)
                if good and count is None:
                    count = len(fields)
                if good:
                    summed ^= hash((at, tuple(fields)))
                    inside += data.count(b"\n", at, row_end - 1) + 1 if several else 0
            row_end = row_end if good else line_end
        cost += not good
        at = row_end
    return _Score(cost, summed, inside)


def _all_rows(row: bytes, mark: bytes, count: int) -> bool:
    """Whether each line of a row over several lines has as many fields as the header, none of them empty."""
    return count > 1 and all(line.count(mark) == count - 1 and all(line.split(mark)) for line in row.split(b"\n"))


def _has_escapes(data: bytes, delimiter: str) -> int:
    """Lines with what only a writer that escapes by backslashes writes; 0 where some backslash is no escape.

    A field of a backslash and N alone is a null. Others count where every backslash begins an escape that such writers know.
    """
    d = re.escape(delimiter.encode())
    nulls = len(re.findall(rb"(?:(?<=[\n%s])|\A)\\N(?=[%s\r\n]|\Z)" % (d, d), data))
    if nulls or delimiter != "\t":
        return nulls
    if data.count(b"\\") == 0 or _DRIVE.search(data):
        return 0
    escapes = _VALID_ESCAPE.findall(data)
    rest = _VALID_ESCAPE.sub(b"", data)
    return len(escapes) if b"\\" not in rest else 0


@lru_cache(maxsize=8)
def _quoted(delimiter: str, quote: str) -> re.Pattern[bytes]:
    d = re.escape(delimiter)
    text = rf"(?:^|(?<={d})){quote}((?:[^{quote}\n]++|{quote}{quote}|(?<=\\){quote})*+){quote}(?={d}|\r?$)"
    return re.compile(text.encode(), re.MULTILINE)


def _quotes_fields(data: bytes, delimiter: str) -> bool:
    """Whether single quotes stand around some field."""
    return _quoted(delimiter, "'").search(data) is not None


def _quoted_lines(data: bytes, delimiter: str, *, needed: bool, but: str = "") -> int:
    """Lines with a field in well-formed quotes; all lines, where the header has one.

    Args:
        data: The first bytes.
        delimiter: One character.
        needed: Count only fields that need their quotes: with a doubled quote, a delimiter or a carriage return inside;
            and those with nothing inside, which is how Spark and Polars write an empty text.
        but: Quotes of this kind do not count.
    """
    pattern = _quoted(delimiter, '"')
    if but == '"':
        return 0
    header = data[: data.find(b"\n") + 1 or len(data)].rstrip(b"\r\n")
    if (found := pattern.search(header)) is not None and found[1] != b"":
        return data.count(b"\n") + 1
    inner = re.compile(b'""|\r|' + re.escape(delimiter.encode()))
    return sum(not needed or not found[1] or inner.search(found[1]) is not None for found in pattern.finditer(data))
