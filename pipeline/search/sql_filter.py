r"""An SQL condition, as a person types it, made into a filter that Arrow runs.

Called by the search, and by everything that narrows a table by its columns. The text goes through a parser and each
node that comes out is either on the short list below or refused, so there is no text that could reach a database: the
trade-off is that a function, a sum or a second column in a comparison is refused too.

    comparison   column = | <> | < | <= | > | >= value, either way round; a boolean column may stand alone
    set, range   column [NOT] IN (values), column [NOT] BETWEEN value AND value
    pattern      column [NOT] LIKE 'a%', ILIKE for either case; % is any text, _ any character, \% a percent sign
    null         column IS [NOT] NULL
    joined by    AND, OR, NOT and brackets

Values are typed by their column: numbers bare, text in single quotes, days and times in single quotes as ISO 8601.
A null is neither true nor false, as in SQL, so that `NOT lang = 'de'` leaves out the rows without a language.
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

DEEPEST = 50  # levels of brackets and NOT; every level is a level of recursion here, in the parser and in Arrow

_WHEN = ("date", "time", "datetime", "timestamp", "timestamptz")
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

# The parts of a node that are read; of all others `this` and `expression`.
_PARTS: dict[type[exp.Expr], set[str]] = {
    exp.In: {"this", "expressions"},
    exp.Between: {"this", "low", "high"},
    exp.Like: {"this", "expression", "negate"},
    exp.ILike: {"this", "expression", "negate"},
    exp.Literal: {"this", "is_string"},
    exp.Identifier: {"this", "quoted"},
}


def parse_where(sql: str, schema: pa.Schema) -> pc.Expression:
    """`sql` as a filter for a dataset or a table of `schema`.

    Args:
        sql: A condition such as `lang IN ('de', 'fr') AND tokens > 10`, without the word WHERE.
        schema: The columns that there are.

    Raises:
        ConfigError: it is no such condition, names no such column, or a value does not fit its column.
    """
    return _Where(sql, schema).expression()


class _Where:
    """One condition on its way from text to filter; holds what an error message needs."""

    def __init__(self, sql: str, schema: pa.Schema) -> None:
        self._sql = sql
        self._schema = schema

    def expression(self) -> pc.Expression:
        """The filter, tried on no rows so that a wrong one fails here and not in the middle of a scan."""
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
            # A chain of a thousand ORs comes as a tree of a thousand levels: make it flat, then as shallow as can be.
            parts = [self._condition(part, depth + 1) for part in node.flatten()]
            return _joined(parts, (lambda a, b: a & b) if isinstance(node, exp.And) else (lambda a, b: a | b))
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
                    f"has {node.sql()} standing alone, which is {kind} and not boolean: compare it with a value"
                )
            return column
        return self._comparison(node)

    def _check_parts(self, node: exp.Expr) -> None:
        """Refuse a node with a part that is not read here: a modifier that is passed over would turn the answer round."""
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
        found = column.isin(values)
        if node.find_ancestor(exp.Not) is None:
            return found
        # Arrow calls a null "not in the set", and SQL "unknown": below a NOT that is the difference between in and out.
        return pc.if_else(column.is_valid(), found, pa.scalar(None, pa.bool_()))

    def _like(self, node: exp.Like | exp.ILike) -> pc.Expression:
        column, kind = self._column(node.this)
        pattern = self._value(node.expression, kind)
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            self._refuse(f"matches {node.this.sql()} with a pattern, but that column is {kind} and not text")
        found = pc.match_like(column, pattern.as_py(), ignore_case=isinstance(node, exp.ILike))
        return ~found if node.args.get("negate") else found  # NOT LIKE; the others come inside a Not

    def _column(self, node: exp.Expr, *, any_type: bool = False) -> tuple[pc.Expression, pa.DataType]:
        """A column as a field, and the type that its values have."""
        if not isinstance(node, exp.Column) or len(node.parts) != 1 or not isinstance(node.this, exp.Identifier):
            self._refuse_node(node)
        self._check_parts(node)
        self._check_parts(node.this)
        name = node.name
        if name not in self._schema.names:
            nearest = difflib.get_close_matches(name, self._schema.names, n=3, cutoff=0.5) or self._schema.names
            self._refuse(f"names the column {name!r}, which is not there; did you mean {', '.join(nearest[:12])}?")
        column, kind = pc.field(name), self._schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        if not any_type and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
            self._refuse(f"compares {name!r}, which is {kind}: only columns of single values can be compared")
        return column, kind

    def _value(self, node: exp.Expr, kind: pa.DataType) -> pa.Scalar:
        """A literal as a scalar of its column's type."""
        node = node.unnest()
        if isinstance(node, exp.Null):
            self._refuse("compares with NULL, which is never true: use IS NULL or IS NOT NULL")
        if isinstance(node, exp.Column):
            self._refuse(f"compares with {node.sql()}, a column: compare a column with a value (text in single quotes)")
        sign = ""
        if isinstance(node, exp.Neg):
            sign, node = "-", node.this
        if isinstance(node, exp.Cast) and node.is_type(*_WHEN) and pa.types.is_temporal(kind):
            # DATE '2026-01-31' comes as a cast of the text.
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
            self._refuse(f"has a value that does not fit its column of {kind}: {text[:60]} ({_first_line(error)})")

    def _refuse_node(self, node: exp.Expr) -> NoReturn:
        try:
            text = node.sql()
        except (SqlglotError, RecursionError, ValueError):
            text = type(node).__name__
        self._refuse(
            f"uses {text[:60]!r}; a condition has comparisons of a column with a value, IN, BETWEEN, LIKE and "
            f"IS NULL, joined by AND, OR and NOT"
        )

    def _too_deep(self) -> NoReturn:
        self._refuse(f"is nested more than {DEEPEST} levels deep: take out brackets")

    def _refuse(self, what: str) -> NoReturn:
        shown = self._sql if len(self._sql) <= 200 else self._sql[:200] + "..."
        raise ConfigError(f"where {shown!r} {what}") from None


def _joined(parts: list[pc.Expression], join: Callable[[pc.Expression, pc.Expression], pc.Expression]) -> pc.Expression:
    while len(parts) > 1:
        pairs = [join(*parts[at : at + 2]) for at in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


def _number(text: str, kind: pa.DataType) -> pa.Scalar:
    """Exactly, where the type can hold it: `1e3` is an integer, `0.5` is not."""
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


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
