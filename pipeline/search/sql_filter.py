r"""Turns an SQL condition into an Arrow filter.

Called by the search. A parser reads the text, and each node of the result must be on the short list below, else the
condition is refused. So no text can execute anything. The trade-off: functions, arithmetic and comparisons of two
columns are refused too.

    comparison   column = | <> | < | <= | > | >= value, in either order; a boolean column may be alone
    set, range   column [NOT] IN (values), column [NOT] BETWEEN value AND value
    pattern      column [NOT] LIKE 'a%', ILIKE ignores case; % is any text, _ any character, \% a percent sign
    null         column IS [NOT] NULL
    joined by    AND, OR, NOT and brackets

A value has the type of its column: numbers without quotes, text in single quotes, dates and times in single quotes as
ISO 8601. Null is neither true nor false, as in SQL, so `NOT lang = 'de'` excludes rows without a language.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError

from actors.errors import ConfigError

DEEPEST = 50  # levels of brackets and NOT; each is a level of recursion in this module, the parser and Arrow

_DATE_TYPES = ("date", "time", "datetime", "timestamp", "timestamptz")
_COMPARE: dict[type[exp.Expr], Callable[[pc.Expression, pa.Scalar], pc.Expression]] = {
    exp.EQ: lambda column, value: column == value,
    exp.NEQ: lambda column, value: column != value,
    exp.LT: lambda column, value: column < value,
    exp.LTE: lambda column, value: column <= value,
    exp.GT: lambda column, value: column > value,
    exp.GTE: lambda column, value: column >= value,
}
_MIRROR: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.EQ: exp.EQ,
    exp.NEQ: exp.NEQ,
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
}

# Arguments of a node that this module reads; for all other nodes `this` and `expression`.
_PARTS: dict[type[exp.Expr], set[str]] = {
    exp.In: {"this", "expressions"},
    exp.Between: {"this", "low", "high"},
    exp.Like: {"this", "expression", "negate"},
    exp.ILike: {"this", "expression", "negate"},
    exp.Literal: {"this", "is_string"},
    exp.Identifier: {"this", "quoted"},
}


def parse_where(sql: str, schema: pa.Schema) -> pc.Expression:
    """Return `sql` as a filter for a dataset or a table of `schema`.

    Args:
        sql: A condition such as `lang IN ('de', 'fr') AND tokens > 10`, without the word WHERE.
        schema: Columns of the table.

    Raises:
        ConfigError: the condition is not supported, a column does not exist, or a value does not fit its column.
    """
    return _Where(sql, schema).expression()


class _Where:
    """Translates one condition; keeps its text and the schema for error messages."""

    def __init__(self, sql: str, schema: pa.Schema) -> None:
        self._sql = sql
        self._schema = schema

    def expression(self) -> pc.Expression:
        """Return the filter. It is run on an empty table first, so that an invalid one does not fail during a scan."""
        try:
            condition = self._condition(self._parse(), 0)
            self._schema.empty_table().filter(condition)
        except (pa.ArrowException, UnicodeError) as error:
            self._refuse(f"cannot be run on this table: {_first_line(error)}")
        return condition

    def _parse(self) -> exp.Expr:
        try:
            parsed = sqlglot.parse_one(self._sql, into=exp.Condition)
        except RecursionError:
            self._too_deep()
        except SqlglotError as error:
            near = error.errors[0].get("highlight") if isinstance(error, ParseError) and error.errors else None
            self._refuse(f"is not an SQL condition: look near {near!r}" if near else "is not an SQL condition")
        return parsed

    def _condition(self, node: exp.Expr, depth: int) -> pc.Expression:
        if depth > DEEPEST:
            self._too_deep()
        node = node.unnest()
        self._check_parts(node)
        if isinstance(node, exp.And | exp.Or):
            # The parser makes a chain of n ORs a tree of n levels: flatten it, then build a balanced tree.
            parts = [self._condition(part, depth + 1) for part in node.flatten()]
            return _balanced(parts, (lambda a, b: a & b) if isinstance(node, exp.And) else (lambda a, b: a | b))
        if isinstance(node, exp.Not):
            return ~self._condition(node.this, depth + 1)
        if isinstance(node, exp.Is):
            return self._is_null(node)
        if isinstance(node, exp.In):
            return self._in(node)
        if isinstance(node, exp.Between):
            column, kind = self._column(node.this)
            return (column >= self._value(node.args["low"], kind)) & (column <= self._value(node.args["high"], kind))
        if isinstance(node, exp.Like | exp.ILike):
            return self._like(node)
        if isinstance(node, exp.Column):
            column, kind = self._column(node)
            if not pa.types.is_boolean(kind):
                self._refuse(
                    f"has {node.sql()} without a comparison, which is {kind} and not boolean: compare it with a value"
                )
            return column
        return self._comparison(node)

    def _check_parts(self, node: exp.Expr) -> None:
        """Refuse a node with an argument that is not read here: an ignored modifier could invert the result."""
        read = _PARTS.get(type(node), {"this", "expression"})
        if any(value for name, value in node.args.items() if name not in read):
            self._refuse_node(node)

    def _comparison(self, node: exp.Expr) -> pc.Expression:
        kind_of_node = type(node)
        if kind_of_node not in _COMPARE:
            self._refuse_node(node)
        left, right = node.this, node.expression
        if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
            left, right, kind_of_node = right, left, _MIRROR[kind_of_node]
        if not isinstance(left, exp.Column):
            self._refuse_node(node if isinstance(left, exp.Literal) else left)
        column, kind = self._column(left)
        return _COMPARE[kind_of_node](column, self._value(right, kind))

    def _is_null(self, node: exp.Is) -> pc.Expression:
        if not isinstance(node.expression, exp.Null):
            self._refuse_node(node)
        column, _ = self._column(node.this, any_type=True)
        return column.is_null()

    def _in(self, node: exp.In) -> pc.Expression:
        column, kind = self._column(node.this)
        values = pa.array([self._value(value, kind).as_py() for value in node.expressions], kind)
        is_in = column.isin(values)
        if node.find_ancestor(exp.Not) is None:
            return is_in
        # For a null, Arrow's result is false and SQL's is unknown. Below a NOT they select different rows.
        return pc.if_else(column.is_valid(), is_in, pa.scalar(None, pa.bool_()))

    def _like(self, node: exp.Like | exp.ILike) -> pc.Expression:
        column, kind = self._column(node.this)
        pattern = self._value(node.expression, kind)
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            self._refuse(f"matches {node.this.sql()} with a pattern, but that column is {kind} and not text")
        matches = pc.match_like(column, pattern.as_py(), ignore_case=isinstance(node, exp.ILike))
        return ~matches if node.args.get("negate") else matches  # NOT LIKE; other negations are inside a Not

    def _column(self, node: exp.Expr, *, any_type: bool = False) -> tuple[pc.Expression, pa.DataType]:
        """Return a column as a field expression, and the type of its values."""
        if not isinstance(node, exp.Column) or len(node.parts) != 1 or not isinstance(node.this, exp.Identifier):
            self._refuse_node(node)
        self._check_parts(node)
        self._check_parts(node.this)
        name = node.name
        if name not in self._schema.names:
            nearest = difflib.get_close_matches(name, self._schema.names, n=3, cutoff=0.5) or self._schema.names
            self._refuse(f"names the column {name!r}, which does not exist; did you mean {', '.join(nearest[:12])}?")
        column, kind = pc.field(name), self._schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        if not any_type and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
            self._refuse(f"compares {name!r}, which is {kind}: only columns of single values can be compared")
        return column, kind

    def _value(self, node: exp.Expr, kind: pa.DataType) -> pa.Scalar:
        """Return a literal as a scalar of its column's type."""
        node = node.unnest()
        if isinstance(node, exp.Null):
            self._refuse("compares with NULL, which is never true: use IS NULL or IS NOT NULL")
        if isinstance(node, exp.Column):
            self._refuse(f"compares with {node.sql()}, a column: compare a column with a value (text in single quotes)")
        sign = ""
        if isinstance(node, exp.Neg):
            sign, node = "-", node.this
        if isinstance(node, exp.Cast) and node.is_type(*_DATE_TYPES) and pa.types.is_temporal(kind):
            # The parser turns DATE '2026-01-31' into a cast of the text.
            node = node.this
        if isinstance(node, exp.Boolean) and pa.types.is_boolean(kind) and not sign:
            return pa.scalar(bool(node.this))
        if not isinstance(node, exp.Literal) or (node.is_string and sign):
            self._refuse_node(node)
        text = sign + str(node.this)
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if numeric and node.is_string:
            self._refuse(f"has {node.sql()} for a column of {kind}: write a number without quotes")
        if not numeric and not node.is_string:
            self._refuse(f"has {text} for a column of {kind}: write the value in single quotes")
        try:
            return _number(text, kind) if numeric else pa.scalar(text).cast(kind)
        except (pa.ArrowException, ArithmeticError, ValueError) as error:
            self._refuse(
                f"has a value that does not fit its column of {kind}: {text[:60]} ({_reason(error, text, kind)})"
            )

    def _refuse_node(self, node: exp.Expr) -> NoReturn:
        try:
            text = node.sql()
        except (SqlglotError, RecursionError, ValueError):
            text = type(node).__name__
        self._refuse(
            f"uses {text[:60]!r}; a condition may have comparisons of a column with a value, IN, BETWEEN, LIKE and "
            f"IS NULL, joined by AND, OR and NOT"
        )

    def _too_deep(self) -> NoReturn:
        self._refuse(f"is nested more than {DEEPEST} levels deep: remove brackets")

    def _refuse(self, problem: str) -> NoReturn:
        shown = self._sql if len(self._sql) <= 200 else self._sql[:200] + "..."
        raise ConfigError(f"where {shown!r} {problem}") from None


def _balanced(
    parts: list[pc.Expression], join: Callable[[pc.Expression, pc.Expression], pc.Expression]
) -> pc.Expression:
    while len(parts) > 1:
        pairs = [join(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


def _number(text: str, kind: pa.DataType) -> pa.Scalar:
    """Return the exact number as a scalar of `kind`: `1e3` fits an integer type, `0.5` does not."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("not a number") from None
    if pa.types.is_floating(kind):
        return pa.scalar(float(number), pa.float64()).cast(kind)
    if pa.types.is_decimal(kind):
        return pa.scalar(number, kind)
    if not number.is_finite() or number.adjusted() > 20 or number != number.to_integral_value():
        raise ValueError("not an integer of 64 bits")
    return pa.scalar(int(number), kind)


def _reason(error: Exception, text: str, kind: pa.DataType) -> str:
    """Return a reason with a fix, or the first line of an error."""
    if pa.types.is_decimal(kind) and abs(Decimal(text).as_tuple().exponent) > kind.scale:  # type: ignore[arg-type]
        return f"write at most {kind.scale} digits after the point"
    if pa.types.is_timestamp(kind) and "zone offset" in str(error):
        return "give a time zone, as in '2026-01-31T00:00:00Z'" if kind.tz else "write the time without a time zone"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
