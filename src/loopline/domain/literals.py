"""What a script writes down as it stands: values told from its text alone, without running any of it.

Constants, lists, dicts, f-strings, names that were given such a value before, subscripts, ``.get`` and arithmetic are
followed, and loops over such lists; everything else is a `Raw`, which knows its text only.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

MAX_ROUNDS = 200  # of a loop, and of all loops within it together
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Raw:
    """What cannot be told; it is shown as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Found(NamedTuple):
    """A call of a method: the line it begins on, and its keywords as far as they can be told."""

    line: int
    keywords: dict[str, Any]


def calls(tree: ast.Module, method: str) -> Iterator[Found]:
    """The calls of ``something.METHOD(...)``, in the order of the text; one in a loop comes once for each round."""
    reader = _Reader(method)
    reader.read(tree.body, {})
    yield from reader.found


class _Reader:
    def __init__(self, method: str) -> None:
        self.found: list[Found] = []
        self._method = method
        self._rounds = 0

    def read(self, body: list[ast.stmt], known: dict[str, Any]) -> None:
        for statement in body:
            self._statement(statement, known)

    def _statement(self, statement: ast.stmt, known: dict[str, Any]) -> None:
        if isinstance(statement, ast.For):
            self._loop(statement, known)
            return
        parts = [getattr(statement, name, None) for name in ("body", "orelse", "finalbody")]
        nested = [part for part in parts if isinstance(part, list)]
        if nested:
            inner = dict(known) if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) else known
            for part in nested:
                self.read(part, inner)
            return
        self._collect(statement, known)
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                known[target.id] = value_of(statement.value, known)

    def _loop(self, loop: ast.For, known: dict[str, Any]) -> None:
        members = value_of(loop.iter, known)
        if not isinstance(members, list | tuple) or not isinstance(loop.target, ast.Name):
            self.read(loop.body, known)
            return
        for member in members:
            self._rounds += 1
            if self._rounds > MAX_ROUNDS:
                return
            self.read(loop.body, {**known, loop.target.id: member})

    def _collect(self, statement: ast.stmt, known: dict[str, Any]) -> None:
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr != self._method:
                continue
            keywords: dict[str, Any] = {}
            for word in node.keywords:
                value = value_of(word.value, known)
                if word.arg is not None:
                    keywords[word.arg] = value
                elif isinstance(value, dict):
                    keywords.update(value)
            self.found.append(Found(node.lineno, keywords))


def value_of(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of an expression, or what of it cannot be told as `Raw`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, Raw(node.id))
    if isinstance(node, ast.List | ast.Tuple):
        return [value_of(each, known) for each in node.elts]
    if isinstance(node, ast.Dict):
        return _dict(node, known)
    if isinstance(node, ast.JoinedStr):
        return _text(node, known)
    found = _made(node, known)
    return Raw(ast.unparse(node)) if found is None else found


def _dict(node: ast.Dict, known: Mapping[str, Any]) -> Any:
    found: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        name = value_of(key, known) if key is not None else None
        if not isinstance(name, str | int | float):
            return Raw(ast.unparse(node))
        found[name] = value_of(value, known)
    return found


def _text(node: ast.JoinedStr, known: Mapping[str, Any]) -> Any:
    parts = []
    for part in node.values:
        inner = part.value if isinstance(part, ast.FormattedValue) else part
        value = value_of(inner, known)
        if not isinstance(value, str | int | float):
            return Raw(ast.unparse(node))
        parts.append(str(value))
    return "".join(parts)


def _made(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of what works on other values; None where it cannot be told."""
    try:
        if isinstance(node, ast.Subscript):
            return value_of(node.value, known)[value_of(node.slice, known)]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value_of(node.operand, known)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value_of(node.left, known), value_of(node.right, known)
            if all(isinstance(each, int | float) and abs(each) < 1e15 for each in (left, right)):
                return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            table, given = value_of(node.func.value, known), [value_of(each, known) for each in node.args]
            return table.get(*given) if isinstance(table, dict) else None
    except (TypeError, KeyError, IndexError, ZeroDivisionError, AttributeError):
        return None
    return None
