"""What can be said about a project's Python files without running them."""

import ast
import builtins
import difflib
from collections.abc import Iterator, Sequence

from loopline.domain.loopfile import Problem

Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_pipeline(
    source: bytes, filename: str, name: str | None = None, parameters: Sequence[str] = ()
) -> list[Problem]:
    """Mistakes in a pipeline file: grammar, no (or which) ``@pipeline``, names that nothing defines, and parameters of
    loop.toml (``parameters``) that the pipeline does not take. ``name``: which pipeline, when loop.toml says."""
    tree = _parse(source, filename)
    if isinstance(tree, Problem):
        return [tree]
    pipelines = [node for node in tree.body if isinstance(node, Function) and _marked(node, "pipeline")]
    if not pipelines:
        cure = "write a function that calls steps, with `@pipeline` above it (from loopline import pipeline, step)"
        return [Problem(filename, 1, "", "there is no pipeline in this file", cure)]
    names = {_name_of(node): node for node in pipelines}
    if name is not None and name not in names:
        close = difflib.get_close_matches(name, names, 1)
        cure = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(names)}"
        return [Problem("loop.toml", 1, "pipeline.name", f"{filename} has no pipeline {name!r}", cure)]
    if name is None and len(names) > 1:
        cure = f'write [pipeline] name = "{next(iter(names))}" in loop.toml'
        return [Problem(filename, pipelines[1].lineno, "", f"there are several pipelines: {', '.join(names)}", cure)]
    chosen = names[name] if name is not None else pipelines[0]
    return [*_unknown_names(tree, filename), *_unknown_parameters(chosen, parameters)]


def check_predict(source: bytes, filename: str) -> list[Problem]:
    """Mistakes in predict.py: grammar, and ``load(model_dir)`` and ``predict(model, batch)`` that are not there."""
    tree = _parse(source, filename)
    if isinstance(tree, Problem):
        return [tree]
    problems = []
    for name, arguments in (("load", ["model_dir"]), ("predict", ["model", "batch"])):
        cure = f"write def {name}({', '.join(arguments)}):"
        found = [node for node in tree.body if isinstance(node, Function) and node.name == name]
        if not found:
            if name not in _bound_at_top(tree):
                problems.append(Problem(filename, 1, name, f"there is no function {name}", cure))
            continue
        given = found[-1].args
        takes = len(given.posonlyargs) + len(given.args)
        required = takes - len(given.defaults)
        if not (required <= len(arguments) and (takes >= len(arguments) or given.vararg)):
            message = f"{name} takes {takes} arguments, not {len(arguments)}"
            problems.append(Problem(filename, found[-1].lineno, name, message, cure))
    return problems


def _parse(source: bytes, filename: str) -> ast.Module | Problem:
    try:
        return ast.parse(source, filename)
    except SyntaxError as error:
        line = (error.text or "").strip()
        return Problem(filename, error.lineno or 1, "", f"not Python: {error.msg}: {line!r}", "")
    except (ValueError, RecursionError) as error:
        return Problem(filename, 1, "", f"not Python: {error}", "")


def _marked(node: Function, mark: str) -> bool:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)) == mark:
            return True
    return False


def _name_of(node: Function) -> str:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            for keyword in decorator.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    return node.name


def _unknown_parameters(pipeline: Function, parameters: Sequence[str]) -> Iterator[Problem]:
    arguments = pipeline.args
    known = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    for parameter in parameters:
        if parameter not in known:
            close = difflib.get_close_matches(parameter, known, 1)
            cure = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(known) or 'none'}"
            message = f"the pipeline {pipeline.name} has no parameter {parameter!r}"
            yield Problem("loop.toml", 1, f"pipeline.parameters.{parameter}", message, cure)


# -- names that nothing defines ---------------------------------------------------------------------------------------


def _bound_at_top(tree: ast.Module) -> set[str]:
    """Names that anything in the file binds; generous, so that nothing right is called wrong."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, Function | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
    return bound


def _unknown_names(tree: ast.Module, filename: str) -> Iterator[Problem]:
    bound = _bound_at_top(tree)
    if "*" in bound:
        return  # `from x import *`: anything may be defined
    known = bound | set(dir(builtins)) | {"__file__", "__name__", "__doc__"}
    seen: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known and node.id not in seen:
            seen.add(node.id)
            close = difflib.get_close_matches(node.id, bound, 1)
            cure = f"did you mean {close[0]!r}?" if close else "define or import it"
            yield Problem(filename, node.lineno, node.id, f"nothing in this file is called {node.id!r}", cure)
