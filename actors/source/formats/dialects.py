"""Detects the dialect (quotes and escapes) of a delimited shard from its first bytes.

Called once per shard when a run is planned; the plan stores the dialect for the readers. Each dialect that the job allows
parses the same first bytes and counts the lines that it cannot parse or that its writer would not write. The lowest count
wins, then the plain dialect: doubled quotes in CSV, no quotes in TSV. The trade-off: quotes that first occur after these
bytes have no influence, and rows that do not fit the dialect become broken lines.
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
    """Dialect that was detected for a shard.

    Attributes:
        dialect: The dialect.
        ambiguous: Another dialect that parses the first bytes equally well into other rows or values, or None.
    """

    dialect: Dialect
    ambiguous: Dialect | None = None


def plain_dialect(path: str) -> Dialect:
    """Return the usual dialect of a file with this ending."""
    return _PLAIN if delimiter_of(path) == "\t" else _RFC


def words(dialect: Dialect) -> str:
    """Return the description of a dialect."""
    known = _WORDS.get(dialect, "")
    return f"quote {dialect.quote}, escape {dialect.escape}" + (f": {known}" if known else "")


def check_keys(quote: str, escape: str) -> None:
    """Raise ConfigError if `source.quote` and `source.escape` contradict each other."""
    if quote == "none" and escape == "double":
        raise ConfigError(
            "source.escape double means a quote written twice inside quotes, and source.quote is none. Set source.escape to "
            "backslash, none or auto, or name the quote"
        )


@lru_cache(maxsize=4096)
def choose(shard: Shard, quote: str = "auto", escape: str = "auto") -> Choice:
    """Return the dialect of a shard.

    Args:
        shard: A delimited file.
        quote: Value of `source.quote`.
        escape: Value of `source.escape`.

    Raises:
        DataError: The shard cannot be read.
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
    """Shards with the same dialect.

    Attributes:
        quote: As in `source.quote`.
        escape: As in `source.escape`.
        shards: Number of shards.
        first: The path of the first one.
        plain: Whether it is the usual dialect for the endings of their names.
        ambiguous: Number of shards that another dialect parses equally well into other rows or values.
        other: Description of that other dialect, for the first such shard.
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
        """True for an unusual or ambiguous dialect, which a report should include."""
        return not self.plain or self.ambiguous > 0

    def sentence(self) -> str:
        """Return a sentence with the shards and their dialect."""
        text = f"{self.first!r}" + (f" and {self.shards - 1:,} more" if self.shards > 1 else "")
        text += f": {words(Dialect(self.quote, self.escape))}"
        if self.ambiguous:
            text += f"; {self.ambiguous:,} could also be read with {self.other}: set source.quote and source.escape"
        return text


def settle(
    shards: Sequence[Shard], source_format: str, quote: str, escape: str
) -> tuple[tuple[Shard, ...], tuple[DialectUse, ...]]:
    """Return the shards with their dialects, and the groups of shards by dialect. Other formats are left unchanged.

    Args:
        shards: The listed shards.
        source_format: Name of their format, never "auto".
        quote: Value of `source.quote`.
        escape: Value of `source.escape`.

    Raises:
        ConfigError: The keys contradict each other, or the format has no dialects.
        DataError: A shard cannot be read.
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
    chosen_by_job = "auto" not in (quote, escape)
    groups: dict[tuple[Dialect, bool], list[tuple[Shard, Choice]]] = {}
    for shard, choice in zip(shards, choices, strict=True):
        plain = chosen_by_job or choice.dialect == plain_dialect(shard.path)
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
    """Score of a dialect on the first bytes.

    Attributes:
        cost: Lines that it cannot parse, or that its writer would not write.
        fields: Hash of all fields of all valid rows: equal if two dialects parse the same values.
        lines_inside: Number of lines of valid multi-line rows.
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
            score = replace(score, cost=score.cost + 1)  # some backslash is no escape of this dialect
        if escapes and dialect.escape != "backslash":
            score = replace(score, cost=score.cost + escapes)
        scores[dialect] = score
        if score.cost == 0 and not tsv:
            break
    if tsv and _PLAIN in scores and _RFC in scores:
        # Only a writer with quotes writes multi-line rows and doubled quotes.
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
            # The row ends after the first bytes: check its lines as if each were a row.
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
    """Return whether each line of a multi-line row has as many fields as the header, none of them empty."""
    return count > 1 and all(line.count(mark) == count - 1 and all(line.split(mark)) for line in row.split(b"\n"))


def _has_escapes(data: bytes, delimiter: str) -> int:
    """Count the escapes that only a writer with backslash escapes writes; 0 if some backslash is no escape.

    A field of a backslash and N alone is a null. Other escapes count only if every backslash begins a known escape.
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
    """Return whether some field is in single quotes."""
    return _quoted(delimiter, "'").search(data) is not None


def _quoted_lines(data: bytes, delimiter: str, *, needed: bool, but: str = "") -> int:
    """Count the fields in well-formed quotes; all lines if the header has such a field.

    Args:
        data: The first bytes.
        delimiter: One character.
        needed: Count only fields that need their quotes (with a doubled quote, a delimiter or a carriage return inside)
            and empty ones, as Spark and Polars write an empty text.
        but: A quote character that does not count.
    """
    pattern = _quoted(delimiter, '"')
    if but == '"':
        return 0
    header = data[: data.find(b"\n") + 1 or len(data)].rstrip(b"\r\n")
    if (found := pattern.search(header)) is not None and found[1] != b"":
        return data.count(b"\n") + 1
    inner = re.compile(b'""|\r|' + re.escape(delimiter.encode()))
    return sum(not needed or not found[1] or inner.search(found[1]) is not None for found in pattern.finditer(data))
