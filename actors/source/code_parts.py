"""Cuts a file of source code into parts: a function or method each, and what lies between them.

Used by the format `code` and by the evaluation of code search. A function begins with the comments, decorators and attributes
directly above it, and holds the functions inside it. A class without functions, or a struct, is one part. Every line with
text is in exactly one part. tree-sitter parses files with errors too: what it does not recognize lies between functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from itertools import groupby
from typing import TYPE_CHECKING

from actors.errors import ConfigError

if TYPE_CHECKING:
    from tree_sitter import Language, Node

# By the ending of a name: the language, and the module and function that have its grammar.
_JAVASCRIPT = ("javascript", "tree_sitter_javascript", "language")
_TYPESCRIPT = ("typescript", "tree_sitter_typescript", "language_typescript")
_C, _CPP = ("c", "tree_sitter_c", "language"), ("cpp", "tree_sitter_cpp", "language")
_GRAMMARS = {
    **dict.fromkeys((".py", ".pyi"), ("python", "tree_sitter_python", "language")),
    **dict.fromkeys((".js", ".jsx", ".mjs", ".cjs"), _JAVASCRIPT),
    **dict.fromkeys((".ts", ".mts", ".cts"), _TYPESCRIPT),
    ".tsx": ("typescript", "tree_sitter_typescript", "language_tsx"),
    ".go": ("go", "tree_sitter_go", "language"),
    ".rs": ("rust", "tree_sitter_rust", "language"),
    ".java": ("java", "tree_sitter_java", "language"),
    **dict.fromkeys((".c", ".h"), _C),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"), _CPP),
    ".rb": ("ruby", "tree_sitter_ruby", "language"),
}
ENDINGS = tuple(_GRAMMARS)
_IN_CPP = re.compile(rb"^\s*(?:class|namespace|template|public:|private:|using)\b", re.MULTILINE)

# Types of nodes, over all grammars.
_FUNCTIONS = frozenset((
    "compact_constructor_declaration", "constructor_declaration", "function_declaration", "function_definition",
    "function_item", "generator_function_declaration", "method", "method_declaration", "method_definition",
    "singleton_method",
))  # fmt: skip
_VALUES = frozenset(("arrow_function", "function_expression", "generator_function"))
_NAMED_VALUES = {
    "assignment_expression": ("left", "right"),
    "field_definition": ("property", "value"),
    "pair": ("key", "value"),
    "public_field_definition": ("name", "value"),
    "variable_declarator": ("name", "value"),
}
_CONTAINERS = frozenset((
    "abstract_class_declaration", "annotation_type_declaration", "class", "class_declaration", "class_definition",
    "class_specifier", "enum_declaration", "enum_item", "enum_specifier", "impl_item", "interface_declaration",
    "internal_module", "macro_definition", "mod_item", "module", "namespace_definition", "record_declaration",
    "struct_item", "struct_specifier", "trait_item", "type_declaration", "union_item", "union_specifier",
))  # fmt: skip
# They begin above what they hold.
_WRAPPERS = frozenset(("decorated_definition", "export_statement", "template_declaration"))
_COMMENTS = frozenset(("comment", "line_comment", "block_comment"))
_ATTRIBUTES = frozenset(("attribute_item", "decorator"))
_CLOSES = re.compile(rb"\s*(?:[})\]]|end\b|#\s*endif\b|$)")
_OPENS = re.compile(rb"[{:]\s*$|^\s*#\s*if")
_RECEIVER = re.compile(r"(\w+)(?:\[.*\])?\s*\)$")  # of a method in Go, as in (s *Server)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive lines of a file.

    Attributes:
        line: The first line, from 1.
        end_line: The last line.
        name: Name of the function, with those of the classes around it, or of the class; None outside of both.
        is_function: Whether it is a function or method.
        doc: First and last line of its documentation: a docstring in Python, else the comment above it. None without.
    """

    line: int
    end_line: int
    name: str | None
    is_function: bool = False
    doc: tuple[int, int] | None = None


def language_of(path: str, data: bytes = b"") -> str:
    """Return the language of a file by the ending of its name; of a header of C or C++ by its content."""
    return _grammar(path, data)[0]


def cut(path: str, data: bytes) -> list[Part]:
    """Return the parts of a file, in order.

    Args:
        path: Its path, whose ending is one of `ENDINGS`.
        data: Its bytes.
    """
    from tree_sitter import Parser

    lines = data.split(b"\n")
    found = _Found(lines)
    found.walk(Parser(_load(*_grammar(path, data)[1:])).parse(data).root_node)
    parts: list[Part] = []
    line = 1
    for part in (*found.definitions(), None):
        _add_between(lines, line, len(lines) if part is None else part.line - 1, found.owners, parts)
        if part is not None:
            line = part.end_line + 1
            _add(part, lines, parts)
    return parts


def need_grammars() -> None:
    """Raise ConfigError if tree-sitter or a grammar is missing."""
    try:
        for _, module, name in dict.fromkeys(_GRAMMARS.values()):
            _load(module, name)
    except ImportError as error:
        raise ConfigError(
            f"source.format: code needs tree-sitter and its grammars ({error}); install them with: pip install 'vectide[code]'"
        ) from None


def _grammar(path: str, data: bytes) -> tuple[str, str, str]:
    ending = path[path.rfind(".") :].lower()
    return _CPP if ending == ".h" and _IN_CPP.search(data) else _GRAMMARS[ending]


@lru_cache
def _load(module: str, name: str) -> Language:
    from tree_sitter import Language

    return Language(getattr(import_module(module), name)())


def _add_between(lines: list[bytes], first: int, last: int, owners: dict[int, str], parts: list[Part]) -> None:
    """Add the parts of lines without a function: of the same class each, without blank lines at their ends.

    Lines that only close what is above them are added to the last part.
    """
    for name, group in groupby(range(first, last + 1), owners.get):
        filled = [line for line in group if lines[line - 1].strip()]
        if parts and all(_CLOSES.match(lines[line - 1]) for line in filled):
            parts[-1] = replace(parts[-1], end_line=filled[-1] if filled else parts[-1].end_line)
        elif filled:
            _add(Part(filled[0], filled[-1], name), lines, parts)


def _add(part: Part, lines: list[bytes], parts: list[Part]) -> None:
    """Add a part, together with a line before it that only opens it, as `impl Point {`."""
    before = parts[-1] if parts else None
    is_line = before is not None and not before.is_function and before.line == before.end_line
    if before is not None and is_line and _OPENS.search(lines[before.line - 1]):
        parts.pop()
        part = replace(part, line=before.line)
    parts.append(part)


class _Found:
    """Functions, classes and comments of a file.

    Attributes:
        owners: Name of the innermost class of a line.
    """

    def __init__(self, lines: list[bytes]) -> None:
        self.owners: dict[int, str] = {}
        self._lines = lines
        self._parts: list[Part] = []
        self._containers: list[tuple[int, str]] = []
        self._comments: set[int] = set()
        self._attributes: set[int] = set()

    def walk(self, root: Node) -> None:
        """Visit all nodes outside of functions. Nodes may be nested deeper than Python can call."""
        waiting: list[tuple[Node, str | None, int, int | None]] = [(each, None, 0, None) for each in root.children]
        waiting.reverse()
        while waiting:
            node, scope, start, parts_before = waiting.pop()
            first, last = start or node.start_point.row + 1, _last_line(node)
            if parts_before is not None:  # a class, after what is in it
                if len(self._parts) == parts_before and last > first:
                    self._parts.append(Part(first, last, scope))
                continue
            if node.type in _COMMENTS or node.type in _ATTRIBUTES:
                self._add_lines(node, first, last)
                continue
            if (name := _function_name(node)) is not None:
                qualified = ".".join(filter(None, (scope, name))) or None
                self._parts.append(Part(first, last, qualified, is_function=True, doc=self._docstring(node)))
                continue
            if _is_container(node):
                scope = ".".join(filter(None, (scope, _container_name(node)))) or scope
                if scope is not None:
                    self.owners.update(dict.fromkeys(range(first, last + 1), scope))
                    self._containers.append((first, scope))
                waiting.append((node, scope, start, len(self._parts)))
            inner = first if node.type in _WRAPPERS else 0
            waiting += [(each, scope, inner if each.is_named else 0, None) for each in reversed(node.children)]
        for first, scope in self._containers:
            self.owners.update(dict.fromkeys(self._above(first), scope))

    def definitions(self) -> Iterator[Part]:
        """Yield functions and classes in order, with the comments above them; those that share a line as one."""
        end = 0
        waiting: Part | None = None
        for part in sorted(self._parts, key=lambda part: (part.line, -part.end_line)):
            if waiting is not None and part.line <= waiting.end_line:
                waiting = replace(waiting, end_line=max(waiting.end_line, part.end_line))
                continue
            if waiting is not None:
                end = waiting.end_line
                yield waiting
            waiting = self._with_lines_above(part, end if waiting is None else waiting.end_line)
        if waiting is not None:
            yield waiting

    def _with_lines_above(self, part: Part, end: int) -> Part:
        line, doc = min((line for line in self._above(part.line) if line > end), default=part.line), part.doc
        if doc is None and line in self._comments:
            last = line
            while last + 1 in self._comments and last + 1 < part.line:
                last += 1
            doc = (line, last)
        return replace(part, line=line, doc=doc)

    def _above(self, line: int) -> Iterator[int]:
        """Yield the lines of comments and attributes directly above a line, upwards."""
        while (line := line - 1) in self._comments or line in self._attributes:
            yield line

    def _add_lines(self, node: Node, first: int, last: int) -> None:
        """Add the lines of a comment or attribute that nothing else is on."""
        if self._is_alone(node, last):
            (self._comments if node.type in _COMMENTS else self._attributes).update(range(first, last + 1))

    def _is_alone(self, node: Node, last: int) -> bool:
        """Return whether there is nothing else on the lines of a node."""
        before = self._lines[node.start_point.row][: node.start_point.column]
        after = self._lines[last - 1][node.end_point.column :] if node.end_point.row == last - 1 else b""
        return not before.strip() and not after.strip()

    def _docstring(self, node: Node) -> tuple[int, int] | None:
        """Return the lines of a function's docstring in Python."""
        body = node.child_by_field_name("body")
        first = body.named_child(0) if body is not None and body.type == "block" and body.named_child_count else None
        if first is None or first.type != "expression_statement" or first.named_child_count != 1:
            return None
        text, last = first.named_children[0], _last_line(first)
        return (first.start_point.row + 1, last) if text.type == "string" and self._is_alone(first, last) else None


def _last_line(node: Node) -> int:
    """Return the last line of a node; some grammars count the newline after a comment to it."""
    row, column = node.end_point
    return row + 1 if column or row == node.start_point.row else row


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else " ".join(node.text.decode("utf-8", "replace").split())


def _function_name(node: Node) -> str | None:
    """Return the name of a function, "" if it has none; None if the node is no function."""
    if node.type in _FUNCTIONS:
        receiver = _RECEIVER.search(_text(node.child_by_field_name("receiver")))
        name = node.child_by_field_name("name") or _declared(node)
        return f"{receiver[1]}.{_text(name)}" if receiver else _text(name)
    if (fields := _NAMED_VALUES.get(node.type)) is not None:
        value = node.child_by_field_name(fields[1])
        return _text(node.child_by_field_name(fields[0])) if value is not None and value.type in _VALUES else None
    return None


def _declared(node: Node) -> Node | None:
    """Return the name in a declaration of C or C++, below pointers and parameters."""
    inner = node.child_by_field_name("declarator")
    while inner is not None:
        is_reference = inner.type == "reference_declarator" and inner.named_child_count
        deeper = inner.named_children[-1] if is_reference else inner.child_by_field_name("declarator")
        if deeper is None:
            break
        inner = deeper
    return inner


def _is_container(node: Node) -> bool:
    """Return whether a node defines a class or the like. A struct of C without a body only names one."""
    return (
        node.is_named
        and node.type in _CONTAINERS
        and (not node.type.endswith("_specifier") or node.child_by_field_name("body") is not None)
    )


def _container_name(node: Node) -> str:
    name = node.child_by_field_name("name") or node.child_by_field_name("type")
    if name is None and node.type == "type_declaration":  # of Go
        name = node.named_children[0].child_by_field_name("name") if node.named_child_count else None
    if name is None and node.parent is not None and node.parent.type == "type_definition":
        name = _declared(node.parent)
    return _text(name)
