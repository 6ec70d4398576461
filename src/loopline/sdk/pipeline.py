"""What a project's ``pipeline.py`` is written with: steps, the pipeline that joins them, and what a step may report.

A function marked ``@step`` stays a plain function wherever it is called, except while a ``@pipeline`` function is being
traced: there a call adds a step and returns a reference to what that step will give. The trace is plain JSON
(``Pipeline.compile``), so nothing of the user's code is needed to decide what runs next.

Standard library only, and nothing else of loopline: this module is loaded in every job, in the project's environment.
``typing`` and ``inspect`` cost more to import than a small step costs to run; they are imported only while tracing.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

__all__ = [
    "PipelineError",
    "asset",
    "fail",
    "log_artifact",
    "log_baseline",
    "log_metric",
    "log_metrics",
    "log_param",
    "log_params",
    "otherwise",
    "pipeline",
    "register",
    "set_tag",
    "step",
    "when",
]

FORMAT_VERSION = 1
RESERVED_OUTPUTS = ("artifacts", "baseline", "signature")
LIMITS = ("memory_mb", "cpu_seconds", "open_files", "disk_mb")
REGISTER_FIELDS = ("model", "model_name", "metrics", "status", "description", "tags")
STATUSES = ("PendingManualApproval", "Approved", "Rejected")
_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_RESERVED_PARAMETERS = ("assets", "folder")
_trace: ContextVar[Trace | None] = ContextVar("loopline_trace", default=None)


class PipelineError(ValueError):
    """A pipeline that cannot be: what is wrong, how to mend it, and where (``file``, ``line``; None when unknown)."""

    def __init__(self, message: str, location: tuple[str, int] | None = None) -> None:
        self.file = location[0] if location else None
        self.line = location[1] if location else None
        self.message = message
        super().__init__(f"{self.file}:{self.line}: {message}" if location else message)


def _here() -> tuple[str, int]:
    """File and line of the user's code that called into this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _mistake(message: str) -> PipelineError:
    return PipelineError(message, _here())


def _runtime(name: str) -> Any:
    """A module of ``runtime``, which is entered by path and never installed into an environment."""
    from importlib import import_module

    if "loopline_runtime" not in sys.modules:
        from importlib.machinery import SourceFileLoader
        from importlib.util import module_from_spec, spec_from_loader
        from pathlib import Path

        folder = Path(__file__).resolve().parent.parent / "runtime"
        spec = spec_from_loader("loopline_runtime", SourceFileLoader("loopline_runtime", str(folder / "__init__.py")))
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder} is missing: loopline is not installed whole")
        package = module_from_spec(spec)
        package.__path__ = [str(folder)]
        sys.modules["loopline_runtime"] = package
        spec.loader.exec_module(package)
    return import_module(f"loopline_runtime.{name}")


# -- references: values that will be there when the pipeline runs -----------------------------------------------------


class Condition:
    """A question that the platform answers while the pipeline runs: for ``when``, joined by ``&``, ``|`` and ``~``."""

    __slots__ = ("_expression",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expression: dict[str, Any]) -> None:
        self._expression = expression

    def __and__(self, other: Any) -> Condition:
        return Condition({"op": "and", "of": [self._expression, _condition(other)]})

    def __or__(self, other: Any) -> Condition:
        return Condition({"op": "or", "of": [self._expression, _condition(other)]})

    def __invert__(self) -> Condition:
        return Condition({"op": "not", "of": [self._expression]})

    def __bool__(self) -> bool:
        raise _mistake(
            "the answer to this comparison is not known until the pipeline runs; instead of `if` write "
            "`with when(...):`, instead of `and`, `or`, `not` write `&`, `|`, `~` with each side in parentheses, "
            "and instead of `a < b < c` write `(a < b) & (b < c)`"
        )


class Reference:
    """A parameter, or (a part of) what a step gives. It has no value while the pipeline is traced."""

    __slots__ = ("_node", "_path", "_source")
    __hash__ = object.__hash__

    def __init__(self, source: dict[str, str], node: Node | None = None, path: tuple[Any, ...] = ()) -> None:
        self._source, self._node, self._path = source, node, path

    def __repr__(self) -> str:
        name = self._source.get("parameter") or self._source["step"]
        return f"<{name}{''.join(f'[{part!r}]' for part in self._path)}>"

    def __getitem__(self, key: Any) -> Reference:
        if "parameter" in self._source:
            raise _mistake(f"the parameter {self!r} is a single value; it has no parts")
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _mistake(f"{self!r}[{key!r}]: a part is named by a string or a whole number")
        return Reference(self._source, self._node, (*self._path, key))

    def after(self, *others: Any) -> Reference:
        """Run this step only after ``others`` succeeded, although it takes nothing from them."""
        _order(self._node, others)
        return self

    def is_in(self, values: Any) -> Condition:
        """Whether the value is one of ``values`` (a list, or a reference to one)."""
        return Condition({"op": "in", "left": _encode(self), "right": _encode(values)})

    def __lt__(self, other: Any) -> Condition:
        return _compare("lt", self, other)

    def __le__(self, other: Any) -> Condition:
        return _compare("le", self, other)

    def __gt__(self, other: Any) -> Condition:
        return _compare("gt", self, other)

    def __ge__(self, other: Any) -> Condition:
        return _compare("ge", self, other)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return _compare("eq", self, other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return _compare("ne", self, other)

    def __and__(self, other: Any) -> Condition:
        return Condition.__and__(Condition(_condition(self)), other)

    def __or__(self, other: Any) -> Condition:
        return Condition.__or__(Condition(_condition(self)), other)

    def __invert__(self) -> Condition:
        return ~Condition(_condition(self))

    def __bool__(self) -> bool:
        raise _mistake(f"{self!r} is not known until the pipeline runs; instead of `if` write `with when(...):`")

    def __iter__(self) -> Iterator[Reference]:
        raise _mistake(
            f"{self!r} is not known until the pipeline runs, so it can be neither unpacked nor looped over; "
            "a step that gives several values says so: @step(outputs=['first', 'second'])"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _mistake(
            f"{self!r} is not known until the pipeline runs; use .{name} inside a step, or [{name!r}] for JSON"
        )


def _unknown(what: str) -> Callable[..., Any]:
    def refuse(self: Reference, *_: Any) -> Any:
        raise _mistake(f"{self!r} is not known until the pipeline runs; {what} inside a step and pass the value to it")

    return refuse


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "mod", "pow", "neg", "abs", "round"):
    setattr(Reference, f"__{_name}__", _unknown("calculate with it"))
for _name in ("str", "format"):
    setattr(Reference, f"__{_name}__", _unknown("put it into a text"))
for _name in ("int", "float", "index", "len", "contains"):
    setattr(Reference, f"__{_name}__", _unknown("look into it"))
setattr(Reference, "__call__", _unknown("call it"))  # noqa: B010


class Outputs:
    """What a step with several named outputs gives: unpack it, or take ``result["name"]``."""

    __slots__ = ("_names", "_node")

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        self._node, self._names = node, tuple(names)

    def __iter__(self) -> Iterator[Reference]:
        return (self[name] for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str | int) -> Reference:
        if isinstance(name, int) and -len(self._names) <= name < len(self._names):
            name = self._names[name]
        if name not in self._names:
            raise _mistake(f"{self._node.name} gives {', '.join(self._names)}; it has no {name!r}")
        return Reference({"step": self._node.name, "output": str(name)}, self._node)

    def after(self, *others: Any) -> Outputs:
        """Run this step only after ``others`` succeeded, although it takes nothing from them."""
        _order(self._node, others)
        return self


class Asset:
    """A data asset of the project, newest (``version`` None) or fixed."""

    __slots__ = ("name", "version")

    def __init__(self, name: str, version: int | None) -> None:
        self.name, self.version = name, version

    def __repr__(self) -> str:
        return f"asset({self.name if self.version is None else f'{self.name}:{self.version}'!r})"


def asset(reference: str) -> Asset:
    """The data asset ``"name"`` (its newest version when the pipeline starts) or ``"name:3"`` (always version 3)."""
    name, colon, version = reference.partition(":")
    if not name or (colon and version != "latest" and not (version.isdecimal() and int(version) > 0)):
        raise _mistake(f"asset({reference!r}): write asset('name') for the newest or asset('name:3') for version 3")
    return Asset(name, int(version) if version.isdecimal() else None)


def _compare(op: str, left: Any, right: Any) -> Condition:
    return Condition({"op": op, "left": _encode(left), "right": _encode(right)})


def _condition(value: Any) -> dict[str, Any]:
    if isinstance(value, Condition):
        return value._expression
    if isinstance(value, Reference):
        return {"op": "eq", "left": _encode(value), "right": {"value": True}}
    raise _mistake(
        f"{value!r} is no condition: compare a parameter or a step's output, as in report['accuracy'] >= 0.9"
    )


def _plain(value: Any) -> bool:
    """Whether ``value`` is JSON through and through."""
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | int)


def _encode(value: Any, what: str = "this value") -> dict[str, Any]:
    """An argument as the compiled pipeline has it: a literal, a reference, an asset, or a list or dict of them."""
    if isinstance(value, Reference):
        path = {"path": list(value._path)} if value._path else {}
        return {"ref": {**value._source, **path}}
    if isinstance(value, Asset):
        return {"asset": {"name": value.name, "version": value.version}}
    if isinstance(value, Outputs):
        raise _mistake(f"{value._node.name} gives {', '.join(value._names)}: pass one of them as {what}, not all")
    if _plain(value):
        return {"value": value}
    if isinstance(value, list | tuple):
        return {"list": [_encode(item, what) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, what) for key, item in value.items()}}
    raise _mistake(
        f"{what} is {type(value).__module__}.{type(value).__qualname__}, which is not JSON; a pipeline passes texts, "
        "numbers, true/false, lists, dicts, parameters, assets and what steps give: make anything else inside a step"
    )


# -- the trace --------------------------------------------------------------------------------------------------------


class Node:
    """A traced step: its compiled JSON, and the names of the steps it needs."""

    __slots__ = ("body", "trace")

    def __init__(self, trace: Trace, body: dict[str, Any]) -> None:
        self.trace, self.body = trace, body

    @property
    def name(self) -> str:
        return str(self.body["name"])

    def needs(self) -> set[str]:
        needed = {*self.body["after"], *(parent["step"] for parent in self.body["parents"])}
        return needed | {leaf["ref"]["step"] for leaf in self.leaves() if "step" in leaf.get("ref", ())}

    def leaves(self) -> Iterator[dict[str, Any]]:
        """The literals, references and assets that the step is given, wherever they stand."""
        body = self.body
        waiting = [*body.get("arguments", {}).values(), *body.get("message", ())]
        waiting += (body[name] for name in REGISTER_FIELDS if name in body)
        conditions = [body["condition"]] if "condition" in body else []
        while conditions:
            condition = conditions.pop()
            conditions += condition.get("of", ())
            waiting += (condition[side] for side in ("left", "right") if side in condition)
        while waiting:
            value = waiting.pop()
            if "list" in value:
                waiting += value["list"]
            elif "dict" in value:
                waiting += value["dict"].values()
            else:
                yield value


class Trace:
    """What calling the pipeline function has added so far."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.nodes: dict[str, Node] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.branches: list[dict[str, Any]] = []
        self.closed: tuple[int, int, str] | None = None  # depth, number of steps, condition of the `when` just left

    def add(self, kind: str, name: str, body: dict[str, Any], *, fixed: bool = False) -> Node:
        unique, number = name, 1
        while unique in self.nodes:
            if fixed:
                raise _mistake(f"there are two steps named {name!r}; give one of them another name")
            number += 1
            unique = f"{name}_{number}"
        common = {"name": unique, "kind": kind, "after": [], "parents": list(self.branches), "line": _here()[1]}
        node = self.nodes[unique] = Node(self, {**common, **body})
        return node

    def path(self, start: str, goal: str) -> list[str] | None:
        """The steps by which ``start`` comes to need ``goal``; None when it does not."""
        trails, seen = [[start]], {start}
        while trails:
            trail = trails.pop()
            if trail[-1] == goal:
                return trail
            for name in sorted(self.nodes[trail[-1]].needs() - seen):
                seen.add(name)
                trails.append([*trail, name])
        return None


def _tracing(what: str) -> Trace:
    trace = _trace.get()
    if trace is None:
        raise _mistake(f"{what} has a meaning only inside a @pipeline function")
    return trace


def _order(node: Node | None, others: Sequence[Any]) -> None:
    if node is None:
        raise _mistake("a parameter waits for nothing: use .after() on a step")
    for other in others:
        before = getattr(other, "_node", None)
        if before is None:
            raise _mistake(f".after({other!r}): give it what a step returned")
        if circle := node.trace.path(before.name, node.name):
            chain = " -> ".join([node.name, *circle])
            raise _mistake(
                f"{node.name} cannot run after {before.name}: that closes a circle, {chain} (each needs the next)"
            )
        if before.name not in node.body["after"]:
            node.body["after"].append(before.name)


class _Block:
    """The steps under ``with when(...)`` or ``with otherwise()``."""

    def __init__(self, trace: Trace, condition: str, branch: bool) -> None:
        self.trace, self.condition, self.branch = trace, condition, branch

    def __enter__(self) -> None:
        self.trace.closed = None
        self.trace.branches.append({"step": self.condition, "branch": self.branch})

    def __exit__(self, *_: object) -> None:
        self.trace.branches.pop()
        state = (len(self.trace.branches), len(self.trace.nodes), self.condition)
        self.trace.closed = state if self.branch else None


def when(condition: Any, name: str | None = None) -> _Block:
    """``with when(report["accuracy"] >= 0.9):`` - the steps under it run only if the condition holds."""
    trace = _tracing("when(...)")
    body = {"condition": _condition(condition)}
    return _Block(trace, trace.add("condition", name or "condition", body, fixed=name is not None).name, True)


def otherwise() -> _Block:
    """Directly after a ``with when(...)`` block: the steps under it run only if its condition does not hold."""
    trace = _tracing("otherwise()")
    if trace.closed is None or trace.closed[:2] != (len(trace.branches), len(trace.nodes)):
        raise _mistake("otherwise() must directly follow the block of a `with when(...):` at the same indentation")
    return _Block(trace, trace.closed[2], False)


def register(
    model: Any,
    name: str | None = None,
    *,
    metrics: Any = None,
    status: Any = None,
    description: Any = None,
    tags: Any = None,
) -> Reference:
    """Add a version of a model to the registry.

    ``model``: what a step gave (a fitted model, a file or a folder). ``name``: None = the model of ``loop.toml``.
    ``status``: None = what the project's approval policy says. Gives {"name", "version", "status"}.
    """
    trace = _tracing("register(...)")
    if not isinstance(model, Reference) or model._node is None:
        raise _mistake(f"register() takes what a step gave as the model; {model!r} is not that")
    if isinstance(status, str) and status not in STATUSES:
        raise _mistake(f"register(status={status!r}): a status is one of {', '.join(STATUSES)}")
    given = {"model_name": name, "metrics": metrics, "status": status, "description": description, "tags": tags}
    body = {key: _encode(value, f"register's {key}") for key, value in given.items() if value is not None}
    node = trace.add("register", "register", {"model": _encode(model), **body})
    return Reference({"step": node.name, "output": "version"}, node)


def fail(*message: Any) -> Reference:
    """End the execution as Failed, saying ``message`` (texts and references, joined by spaces)."""
    trace = _tracing("fail(...)")
    parts = [_encode(part, "fail's message") for part in message or ("the pipeline failed on purpose",)]
    node = trace.add("fail", "fail", {"message": parts})
    return Reference({"step": node.name, "output": "none"}, node)


# -- steps and pipelines ----------------------------------------------------------------------------------------------


class Step:
    """A function marked ``@step``. ``__wrapped__`` is the function, ``options`` what the mark says."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], name: str | None = None) -> None:
        self.__wrapped__, self.options, self.given_name = function, options, name
        self.__name__, self.__qualname__, self.__module__ = (
            function.__name__,
            function.__qualname__,
            function.__module__,
        )
        self.__doc__ = function.__doc__

    def __repr__(self) -> str:
        return f"<step {self.given_name or self.__name__}>"

    def named(self, name: str) -> Step:
        """The same step under a name of its own: ``prepare.named("prepare_eu")(...)``."""
        if not name.replace("_", "a").replace("-", "a").isalnum() or len(name) > 63:
            raise _mistake(f"{name!r} is no name for a step: use up to 63 letters, digits, '_' and '-'")
        return Step(self.__wrapped__, self.options, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = _trace.get()
        if trace is None:
            return self.__wrapped__(*args, **kwargs)
        arguments = {key: _encode(item, f"{self.__name__}'s {key}") for key, item in self._bind(args, kwargs).items()}
        here = self.__module__ == trace.module
        function = self.__qualname__ if here else f"{self.__module__}:{self.__qualname__}"
        trace.functions[function] = self.__wrapped__
        body = {"function": function, "arguments": arguments, **self.options}
        node = trace.add("job", self.given_name or self.__name__, body, fixed=self.given_name is not None)
        outputs = self.options["outputs"]
        if len(outputs) > 1:
            return Outputs(node, outputs)
        return Reference({"step": node.name, "output": outputs[0]}, node)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, with those defaults that are JSON, so that the compiled step shows what it ran with."""
        import inspect

        signature = inspect.signature(self.__wrapped__)
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            takes = ", ".join(kinds) or "nothing"
            unknown = [name for name in kwargs if name not in kinds]
            raise _mistake(f"{self.__name__}: {error}{_meant(unknown, kinds)}; it takes {takes}") from None
        named: dict[str, Any] = {}
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise _mistake(f"{self.__name__}: a step's arguments have names; {name!r} has none when it is called")
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= bound.get(name, {})
            elif name in bound:
                named[name] = bound[name]
            elif _plain(parameter.default):
                named[name] = parameter.default
        return named


def _meant(unknown: Sequence[str], known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(unknown[0], list(known), 1) if unknown else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def step(
    function: Callable[..., Any] | None = None,
    *,
    outputs: Sequence[str] = ("result",),
    retries: int = 0,
    backoff_seconds: float = 0.0,
    timeout_seconds: float | None = None,
    cache: bool = True,
    code: Sequence[str] | None = None,
    limits: Mapping[str, float] | None = None,
    baseline: bool = True,
) -> Any:
    """Mark a function as a step: it runs in a process of its own, and what it returns is kept.

    ``outputs``: names, for a dict with these keys or a tuple in this order. ``retries``: tries after the first one,
    each after ``backoff_seconds`` doubled each time. ``cache``: take an earlier result for the same code, environment
    and inputs. ``code``: file patterns that the result depends on besides the pipeline's file (None = all files).
    ``limits``: memory_mb, cpu_seconds, open_files, disk_mb. ``baseline``: take a drift baseline of the training table
    when the step returns a fitted model.
    """
    options = {
        "outputs": list(outputs),
        "retries": retries,
        "backoff_seconds": backoff_seconds,
        "timeout_seconds": timeout_seconds,
        "cache": cache,
        "code": None if code is None else list(code),
        "limits": dict(limits or {}),
        "baseline": baseline,
    }
    if isinstance(outputs, str) or isinstance(code, str):
        raise _mistake("outputs and code are lists: write outputs=['model'], code=['features.py']")
    _check_options(options)
    return (lambda marked: Step(marked, options)) if function is None else Step(function, options)


def _check_options(options: dict[str, Any]) -> None:
    outputs = options["outputs"]
    for name in outputs:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_OUTPUTS:
            raise _mistake(f"{name!r} is no name for an output; not allowed are also {', '.join(RESERVED_OUTPUTS)}")
    if not outputs or len(set(outputs)) != len(outputs):
        raise _mistake(f"outputs={outputs}: name each output once")
    for name in ("retries", "backoff_seconds"):
        if isinstance(options[name], bool) or not isinstance(options[name], int | float) or options[name] < 0:
            raise _mistake(f"{name}={options[name]!r}: it must be a number of at least 0")
    if not isinstance(options["retries"], int):
        raise _mistake(f"retries={options['retries']!r}: it must be a whole number")
    if options["timeout_seconds"] is not None and not options["timeout_seconds"] > 0:
        raise _mistake(f"timeout_seconds={options['timeout_seconds']!r}: it must be above 0, or None for no limit")
    for name, value in options["limits"].items():
        if name not in LIMITS or isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise _mistake(f"limits={{{name!r}: {value!r}}}: a limit is a number above 0 for {', '.join(LIMITS)}")


class Pipeline:
    """A function marked ``@pipeline``: its parameters and, once traced, its steps."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.__wrapped__, self.name = function, name or function.__name__
        self.__name__, self.__module__, self.__doc__ = function.__name__, function.__module__, function.__doc__
        self.file = function.__code__.co_filename
        self.line = function.__code__.co_firstlineno

    def __repr__(self) -> str:
        return f"<pipeline {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Inside another pipeline: add the steps of this one."""
        if _trace.get() is None:
            raise _mistake(f"run it with {self.__name__}.run(...); a plain call works only inside another @pipeline")
        return self.__wrapped__(*args, **kwargs)

    def parameters(self) -> list[dict[str, Any]]:
        """name, type (string, integer, number, boolean), default (absent = must be given) and choices of each."""
        import inspect
        import typing

        location = (self.file, self.line)
        try:
            hints = typing.get_type_hints(self.__wrapped__)
        except (NameError, TypeError) as error:
            raise PipelineError(f"{self.name}: a parameter's type cannot be read: {error}", location) from None
        found = []
        for name, given in inspect.signature(self.__wrapped__).parameters.items():
            if given.kind in (given.VAR_POSITIONAL, given.VAR_KEYWORD, given.POSITIONAL_ONLY):
                raise PipelineError(f"{self.name}: {given} cannot be a parameter; name each one", location)
            if name in _RESERVED_PARAMETERS:
                raise PipelineError(f"{self.name}: {name!r} is taken by run(); name the parameter otherwise", location)
            kind, choices = _type_of(hints.get(name, type(given.default)))
            if kind is None:
                cure = "annotate it with str, int, float, bool or Literal[...]"
                raise PipelineError(f"{self.name}: the parameter {name!r} has no type known here; {cure}", location)
            parameter: dict[str, Any] = {"name": name, "type": kind, "choices": choices}
            if given.default is not given.empty:
                parameter["default"] = parse_parameter(parameter, given.default, location=location)
            found.append(parameter)
        return found

    def trace(self) -> Trace:
        """Call the function with references in place of its parameters."""
        found = Trace(self.__module__)
        token = _trace.set(found)
        try:
            self.__wrapped__(**{item["name"]: Reference({"parameter": item["name"]}) for item in self.parameters()})
        finally:
            _trace.reset(token)
        if not found.nodes:
            raise PipelineError(f"{self.name} has no steps: call functions marked @step in it", (self.file, self.line))
        return found

    def compile(self, file: str, trace: Trace | None = None) -> dict[str, Any]:
        """The pipeline as plain JSON. ``file``: the path of its file inside the project, as jobs will import it."""
        nodes = (trace or self.trace()).nodes.values()
        return {
            "version": FORMAT_VERSION,
            "name": self.name,
            "description": (self.__doc__ or "").strip().partition("\n")[0],
            "file": file,
            "parameters": self.parameters(),
            "steps": [node.body for node in nodes],
        }

    def run(self, /, *, assets: Mapping[str, Any] | None = None, folder: Any = None, **parameters: Any) -> Any:
        """Run the pipeline here and now, one step after the other, each result saved as the platform saves it.

        ``assets``: paths by asset name (default: ``data/NAME.*`` beside the file). ``folder``: where results go
        (default: ``.loopline-local`` beside the file). Without any argument the command line is read:
        ``python pipeline.py --epochs 2 --asset patients=rows.csv``. Raises ``PipelineError`` when the run fails.
        """
        local = _runtime("local")
        if assets is None and folder is None and not parameters and self.__module__ == "__main__":
            return local.run_from_command_line(self, sys.argv[1:])
        return local.run(self, parameters, assets=assets or {}, folder=folder)


def pipeline(function: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Mark a function as a pipeline: it calls steps, and its typed arguments are the pipeline's parameters."""
    return (lambda marked: Pipeline(marked, name)) if function is None else Pipeline(function, name)


def _type_of(hint: Any) -> tuple[str | None, list[Any] | None]:
    import typing

    if typing.get_origin(hint) is typing.Literal:
        choices = list(typing.get_args(hint))
        kinds = {type(choice) for choice in choices}
        return (_TYPES.get(kinds.pop()) if len(kinds) == 1 else None), choices
    return _TYPES.get(hint), None


def parse_parameter(
    parameter: Mapping[str, Any], value: Any, *, text: bool = False, location: tuple[str, int] | None = None
) -> Any:
    """``value`` as this parameter takes it (``text``: from a command line); raises ``PipelineError`` naming both."""
    kind, name = parameter["type"], parameter["name"]
    parsed = _from_text(kind, value) if text and isinstance(value, str) else value
    if kind == "number" and isinstance(parsed, int) and not isinstance(parsed, bool):
        parsed = float(parsed)
    if _TYPES.get(type(parsed)) != kind or not _plain(parsed):
        raise PipelineError(f"the parameter {name!r} is of type {kind}; {value!r} is not", location)
    if parameter["choices"] is not None and parsed not in parameter["choices"]:
        choices = ", ".join(map(repr, parameter["choices"]))
        raise PipelineError(f"the parameter {name!r} is one of {choices}; {value!r} is not", location)
    return parsed


def _from_text(kind: str, value: str) -> Any:
    words: dict[str, Any] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    readers: dict[str, Callable[[str], Any]] = {"integer": int, "number": float}
    try:
        return words.get(value.lower(), value) if kind == "boolean" else readers.get(kind, str)(value)
    except ValueError:
        return value


# -- what a running step reports --------------------------------------------------------------------------------------


def log_metric(key: str, value: float, step: int | None = None) -> None:
    """Record a number; without ``step`` the values of a key are numbered 0, 1, 2, ... Nothing happens outside a job."""
    _runtime("tracking").log_metric(key, value, step)


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Record several numbers."""
    for key, value in metrics.items():
        log_metric(key, value, step)


def log_param(key: str, value: Any) -> None:
    """Record a setting. The plain arguments of a step are recorded without being told."""
    _runtime("tracking").log_param(key, value)


def log_params(params: Mapping[str, Any]) -> None:
    """Record several settings."""
    for key, value in params.items():
        log_param(key, value)


def set_tag(key: str, value: str) -> None:
    """Label the run."""
    _runtime("tracking").set_tag(key, value)


def log_artifact(path: Any, name: str | None = None) -> None:
    """Keep a copy of a file or folder with the run, under ``name`` (default: its own name)."""
    _runtime("tracking").log_artifact(path, name)


def log_baseline(table: Any, feature_names: Sequence[str] | None = None, score: Any = None) -> None:
    """Take the drift baseline of what the model was trained on, when it cannot be seen from outside.

    ``table``: the rows as the model sees them (a table, a 2-D array, dicts or lists). ``feature_names``: its columns.
    ``score``: the model's output for each row, a number or a class.
    """
    _runtime("baseline").log_baseline(table, feature_names, score)
