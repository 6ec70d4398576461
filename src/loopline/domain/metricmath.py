"""Expressions over metrics: ``100 * errors / requests``, ``FILL(m1, 0)``, ``SUM([m1, m2])``.

A part of CloudWatch's metric math: numbers, names of series, ``+ - * / ^``, and ABS, CEIL, FLOOR, FILL on one series,
SUM, AVG, MIN, MAX of a list of series at each time, or of one series over all times. Two series are joined at the times
that both have. Nothing is evaluated but these: an expression is read as a tree and walked.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping

from loopline.errors import InvalidInput

Series = dict[float, float]
_Value = float | Series
MAX_CHARACTERS, MAX_NODES = 1024, 200
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_ONE: Mapping[str, Callable[[float], float]] = {"ABS": abs, "CEIL": math.ceil, "FLOOR": math.floor}
_MANY: Mapping[str, Callable[[list[float]], float]] = {
    "SUM": math.fsum,
    "AVG": lambda values: math.fsum(values) / len(values),
    "MIN": min,
    "MAX": max,
}


def names(expression: str) -> list[str]:
    """The series that an expression needs, in order; raises ``InvalidInput`` for one that cannot be read."""
    functions = {*_ONE, *_MANY, "FILL", "REPEAT"}
    found = [node.id for node in ast.walk(_read(expression)) if isinstance(node, ast.Name)]
    return [name for name in dict.fromkeys(found) if name not in functions]


def evaluate(expression: str, series: Mapping[str, Series]) -> Series:
    """The series that an expression makes; raises ``InvalidInput``. A division by zero gives no value there."""
    times = sorted({at for each in series.values() for at in each})
    value = _value(_read(expression).body, series, times)
    return value if isinstance(value, dict) else dict.fromkeys(times, value)


def _read(expression: str) -> ast.Expression:
    if len(expression) > MAX_CHARACTERS:
        raise InvalidInput(f"an expression has at most {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InvalidInput(f"the expression {expression[:80]!r} cannot be read") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise InvalidInput(f"the expression {expression[:80]!r} is too long")
    return tree


def _value(node: ast.expr, series: Mapping[str, Series], times: list[float]) -> _Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in series:
        return series[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _join(operator.sub, 0.0, _value(node.operand, series, times))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, series, times), _value(node.right, series, times)
        return _join(_OPERATORS[type(node.op)], left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _called(node.func.id, node.args, series, times)
    raise InvalidInput(f"{ast.unparse(node)[:80]!r} in an expression is not supported, or no such metric is given")


def _join(apply: Callable[[float, float], float], left: _Value, right: _Value) -> _Value:
    if isinstance(left, dict):
        pairs = [(at, value, right.get(at) if isinstance(right, dict) else right) for at, value in left.items()]
    elif isinstance(right, dict):
        pairs = [(at, left, value) for at, value in right.items()]
    else:
        return _number(apply, left, right) or 0.0
    found = {at: _number(apply, one, other) for at, one, other in pairs if other is not None}
    return {at: value for at, value in found.items() if value is not None}


def _number(apply: Callable[[float, float], float], left: float, right: float) -> float | None:
    try:
        value = apply(left, right)
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _called(name: str, given: list[ast.expr], series: Mapping[str, Series], times: list[float]) -> _Value:
    if name == "FILL" and len(given) == 2:
        return _filled(_value(given[0], series, times), given[1], series, times)
    if name in _ONE and len(given) == 1:
        value = _value(given[0], series, times)
        one = _ONE[name]
        return {at: float(one(each)) for at, each in value.items()} if isinstance(value, dict) else float(one(value))
    if name in _MANY and len(given) == 1:
        many = _MANY[name]
        if isinstance(given[0], ast.List):
            members = [_value(each, series, times) for each in given[0].elts]
            columns = {at: [m[at] for m in members if isinstance(m, dict) and at in m] for at in times}
            return {at: many(values) for at, values in columns.items() if values}
        value = _value(given[0], series, times)
        return many(list(value.values())) if isinstance(value, dict) and value else 0.0
    raise InvalidInput(f"the function {name} with {len(given)} arguments is not supported")


def _filled(value: _Value, by: ast.expr, series: Mapping[str, Series], times: list[float]) -> _Value:
    if not isinstance(value, dict):
        return value
    if isinstance(by, ast.Name) and by.id == "REPEAT":
        found: Series = {}
        last: float | None = None
        for at in times:
            last = value.get(at, last)
            if last is not None:
                found[at] = last
        return found
    fill = _value(by, series, times)
    if isinstance(fill, dict):
        return {at: value.get(at, fill.get(at, math.nan)) for at in times if at in value or at in fill}
    return {at: value.get(at, fill) for at in times}
