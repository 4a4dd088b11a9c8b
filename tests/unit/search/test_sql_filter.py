"""SQL conditions of a search: the rows that they select, and the texts that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.errors import ConfigError
from pipeline.search.sql_filter import parse_where

ROWS = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "lang": ["de", "fr", None, "pt-BR"],
        "title": ["50% off", "it's", 'say "x"', "a_b"],
        "tokens": pa.array([5, 10, 20, None], pa.int32()),
        "score": pa.array([0.1, -1.5, 3.0, None], pa.float32()),
        "price": pa.array([Decimal("1.50"), Decimal("2.00"), None, Decimal("-3.25")], pa.decimal128(6, 2)),
        "fresh": [True, False, None, True],
        "day": [date(2026, 1, 31), date(2026, 2, 1), None, date(2025, 12, 24)],
        "at": pa.array([datetime(2026, 1, 31, 12, tzinfo=UTC), None, None, None], pa.timestamp("us", "UTC")),
        "seen": pa.array([1_800_000_000_000_000, None, None, None], pa.timestamp("us")),
        "site": pa.array(["x", "y", None, "x"]).dictionary_encode(),
        "order by": [1, 2, 3, 4],
        "embedding": [[0.0], [0.0], [0.0], [0.0]],
        "raw": [b"", b"", b"", b""],
    }
)


def selected(sql: str) -> str:
    return "".join(ROWS.filter(parse_where(sql, ROWS.schema))["id"].to_pylist())


@pytest.mark.parametrize(
    ("sql", "ids"),
    [
        ("lang = 'de'", "a"),
        ("'de' = lang", "a"),
        ("lang <> 'de'", "bd"),
        ("lang != 'de'", "bd"),
        ("tokens > 10", "c"),
        ("tokens >= 10", "bc"),
        ("10 >= tokens", "ab"),
        ("10 < tokens", "c"),
        ("tokens < 1e1", "a"),
        ("score = 0.1", "a"),
        ("score = -1.5", "b"),
        ("score < 0", "b"),
        ("price <= 1.5", "ad"),
        ("fresh", "ad"),
        ("NOT fresh", "b"),
        ("fresh = FALSE", "b"),
        ("day > '2026-01-30'", "ab"),
        ("day = DATE '2026-02-01'", "b"),
        ("at > '2026-01-01T00:00:00Z'", "a"),
        ("site = 'x'", "ad"),
        ("site IN ('y')", "b"),
        ('"order by" = 3', "c"),
        ("title = 'it''s'", "b"),
        ("title = 'say \"x\"'", "c"),
        ("lang = 'de' AND tokens = 5", "a"),
        ("lang = 'de' OR tokens = 20", "ac"),
        ("lang = 'fr' OR lang = 'de' AND tokens = 99", "b"),
        ("(lang = 'fr' OR lang = 'de') AND tokens = 10", "b"),
        ("tokens BETWEEN 5 AND 10", "ab"),
        ("tokens NOT BETWEEN 5 AND 10", "c"),
        ("title LIKE '50%'", "a"),
        ("title LIKE '%\\%%'", "a"),
        ("title LIKE 'a_b'", "d"),
        ("title NOT LIKE '%o%'", "bcd"),
        ("lang LIKE 'PT%'", ""),
        ("lang ILIKE 'PT%'", "d"),
        ("lang NOT ILIKE 'PT%'", "ab"),
        ("NOT title NOT LIKE '%o%'", "a"),
        ("((tokens = 5))", "a"),
        ("lang = 'de' -- the rest is a comment", "a"),
    ],
)
def test_a_condition_selects_its_rows(sql: str, ids: str):
    assert selected(sql) == ids


@pytest.mark.parametrize(
    ("sql", "ids"),
    [
        ("lang IS NULL", "c"),
        ("lang IS NOT NULL", "abd"),
        ("embedding IS NOT NULL", "abcd"),
        ("NOT lang = 'de'", "bd"),
        ("lang IN ('de', 'fr')", "ab"),
        ("lang NOT IN ('de', 'fr')", "d"),
        ("NOT (lang IN ('de') OR tokens = 10)", ""),
        ("NOT (NOT (lang IN ('de')))", "a"),
        ("lang = 'de' OR tokens > 0", "abc"),
    ],
)
def test_a_null_is_neither_true_nor_false(sql: str, ids: str):
    assert selected(sql) == ids


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "is not an SQL condition"),
        ("lang =", "is not an SQL condition"),
        ("lang = 'de", "is not an SQL condition"),
        ("lang = = 'de'", "look near '='"),
        ("lnag = 'de'", "column 'lnag', which does not exist; did you mean lang"),
        ("Lang = 'de'", "did you mean lang"),
        ("t.lang = 'de'", "uses 't.lang'"),
        ("tokens", "without a comparison, which is int32"),
        ("lang = de", "compares with de, a column"),
        ("lang = 5", "write the value in single quotes"),
        ("tokens = '5'", "write a number without quotes"),
        ("tokens = 5.5", "does not fit its column of int32"),
        ("tokens = 5000000000", "does not fit its column of int32"),
        ("tokens = 1e999999999", "does not fit its column of int32"),
        ("price = 1.234", "does not fit its column of decimal.*write at most 2 digits after the point"),
        ("at < '2026-01-01'", "give a time zone, as in '2026-01-31T00:00:00Z'"),
        ("seen < '2026-01-01T00:00:00Z'", "write the time without a time zone"),
        ("fresh = 1", "column of bool"),
        ("fresh = 'maybe'", "does not fit its column of bool"),
        ("day = 'yesterday'", "does not fit its column of date32"),
        ("lang = NULL", "use IS NULL"),
        ("lang IN ('de', NULL)", "use IS NULL"),
        ("tokens LIKE '5'", "without quotes"),
        ("fresh LIKE 'x'", "does not fit"),
        ("day LIKE '2026-01-01'", "is date32.* and not text"),
        ("embedding = 1", "only columns of single values"),
        ("raw = 'x'", "only columns of single values"),
        ("lang IS TRUE", "uses 'lang IS TRUE'"),
        ("lang LIKE 'a!%' ESCAPE '!'", "ESCAPE"),
        ("tokens BETWEEN SYMMETRIC 10 AND 5", "BETWEEN SYMMETRIC"),
        ("lang LIKE ANY ('a', 'b')", "ANY"),
        ("tokens + 1 = 2", r"uses 'tokens \+ 1'"),
        ("lower(lang) = 'de'", r"uses .LOWER\("),
        ("lang = lower('DE')", r"uses .LOWER\("),
        ("day = CAST('5' AS INT)", r"uses .CAST\("),
        ("CASE WHEN fresh THEN fresh END", "uses 'CASE"),
        ("1", "uses '1'"),
        ("TRUE", "uses 'TRUE'"),
        ("*", "uses '\\*'"),
        ("lang = ?", r"uses '\?'"),
        ("lang = :name", "uses ':name'"),
    ],
)
def test_unsupported_conditions_are_refused_with_value_and_fix(sql: str, message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        parse_where(sql, ROWS.schema)
    assert sql in str(refused.value)


@pytest.mark.parametrize(
    "sql",
    [
        "lang = 'de'; DROP TABLE corpus",
        "lang = 'de' OR 1 = 1",
        "lang = '' OR ''=''",
        "lang = 'de' UNION SELECT * FROM secrets",
        "lang = 'de' LIMIT 1",
        "SELECT 1",
        "lang IN (SELECT lang FROM secrets)",
        "EXISTS (SELECT 1)",
        "lang = ALL (SELECT lang FROM secrets)",
        "lang = (SELECT 'de')",
        "read_text('/etc/passwd') = ''",
        "lang = getenv('AWS_SECRET_ACCESS_KEY')",
        "lang = 'de' AND sleep(10) = 0",
        "lang = @@version",
        "ATTACH 'x'",
        "COPY (SELECT 1) TO 'x'",
        "__class__ = 'x'",
        "lang.__class__ = 'x'",
        "lang['x'] = 'de'",
        "lang IN UNNEST(['de'])",
        "lang = X'41'",
        "{{ lang }} = 'de'",
    ],
)
def test_statements_and_functions_are_refused(sql: str):
    with pytest.raises(ConfigError, match="where "):
        parse_where(sql, ROWS.schema)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql", ["(" * 10_000 + "fresh" + ")" * 10_000, "NOT " * 10_000 + "fresh", "tokens = " + "- " * 10_000 + "1"]
)
def test_deep_nesting_is_refused_and_does_not_end_the_process(sql: str):
    with pytest.raises(ConfigError, match="nested more than 50 levels"):
        parse_where(sql, ROWS.schema)


@pytest.mark.slow
def test_a_long_chain_of_conditions_is_allowed():
    chain = " OR ".join(f"tokens = {number}" for number in range(2_000))
    assert selected(chain) == "abc"


def test_a_long_condition_is_shortened_in_the_message():
    with pytest.raises(ConfigError, match="write the value in single quotes") as refused:
        parse_where(f"lang IN ({', '.join(['1'] * 1_000)})", ROWS.schema)
    assert len(str(refused.value)) < 500


WORDS = """lang tokens score price fresh day at site embedding nosuch = <> < >= AND OR NOT IN BETWEEN LIKE ILIKE IS NULL
    TRUE ( ) , 'de' '2026-01-31' '%' '\\' '[' '' 5 -1 1e400 1e5 0.5 99999999999999999999 DATE CAST AS INT SELECT FROM ;
    -- /* */ " . * :: @ ? { } [ ]"""
PARTS = st.sampled_from(WORDS.split())


@given(st.one_of(st.text(), st.lists(PARTS, max_size=15).map(" ".join)))
@example("lang LIKE '\\'")
@example("lang = '\ud800'")
@example("score = 1e400")
@example("at = '2026-01-01'")
def test_any_text_is_a_condition_or_a_config_error(sql: str):
    try:
        condition = parse_where(sql, ROWS.schema)
    except ConfigError:
        return
    assert isinstance(condition, pc.Expression)
    assert ROWS.filter(condition).num_rows <= ROWS.num_rows


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_quoted_text_matches_only_itself(value: str):
    table = pa.table({"text": [value, value + "x", None]})
    quoted = value.replace("'", "''")
    assert table.filter(parse_where(f"text = '{quoted}'", table.schema)).num_rows == 1


NUMBERS, LANGUAGES = st.integers(-1, 21).map(str), st.sampled_from(["'de'", "'fr'", "'pt-BR'", "'en'", "''"])
LEAVES = st.one_of(
    st.tuples(st.just("tokens"), st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), NUMBERS),
    st.tuples(LANGUAGES, st.sampled_from(["=", "<>", "<", ">="]), st.just("lang")),
    st.tuples(st.sampled_from(["tokens BETWEEN", "tokens NOT BETWEEN"]), NUMBERS, st.just("AND"), NUMBERS),
    st.tuples(
        st.sampled_from(["lang IN (", "lang NOT IN ("]), st.lists(LANGUAGES, min_size=1).map(", ".join), st.just(")")
    ),
    st.tuples(
        st.sampled_from(["lang LIKE", "lang NOT LIKE", "lang ILIKE"]), st.sampled_from(["'%r%'", "'_e'", "'PT%'"])
    ),
    st.tuples(st.sampled_from(["lang", "tokens"]), st.sampled_from(["IS NULL", "IS NOT NULL"])),
    st.just(("fresh",)),
).map(" ".join)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map("NOT {}".format),
        inner.map("({})".format),
        st.lists(inner, min_size=2, max_size=4).map(" AND ".join),
        st.lists(inner, min_size=2, max_size=4).map(" OR ".join),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("corpus", ROWS.select(["id", "lang", "tokens", "fresh"]))
        yield connection


@given(sql=CONDITIONS)
def test_a_database_selects_the_same_rows(sql: str, database: duckdb.DuckDBPyConnection):
    expected = database.sql(f"SELECT id FROM corpus WHERE {sql} ORDER BY id").fetchall()
    assert selected(sql) == "".join(row[0] for row in expected)
