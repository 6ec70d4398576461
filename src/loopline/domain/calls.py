"""What the steps of an execution are called with: references become values, and a call gets its cache key."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, cast

import msgspec
from msgspec import UNSET, Struct

from loopline.domain.pipelines import JobStep, Output, PipelineSpec
from loopline.domain.values import AssetRef, Condition, Join, Ref, Value
from loopline.errors import InvalidInput

Outputs = Mapping[str, Mapping[str, Output]]  # step -> name -> output
NOTHING: Mapping[str, str] = MappingProxyType({})


def select(value: Any, path: Sequence[str | int], what: str) -> Any:
    """The part of a JSON value at ``path``. Raises ``InvalidInput`` saying what is there instead."""
    for part in path:
        fits = isinstance(value, dict) if isinstance(part, str) else isinstance(value, list)
        try:
            if not fits:
                raise KeyError
            value = value[part]
        except (KeyError, IndexError):
            there = ", ".join(value) if isinstance(value, dict) else "no such part"
            raise InvalidInput(f"{what} has no [{part!r}]; there is {there or 'nothing'}") from None
    return value


def resolve_value(
    value: Value, parameters: Mapping[str, Any], outputs: Outputs, facts: Mapping[str, str] = NOTHING
) -> Any:
    """The JSON that a value stands for; ``facts``: of the execution, by the names of ``values.Variable``.

    Raises ``InvalidInput`` when it is not small JSON (an asset, a file, ...).
    """
    if value.value is not UNSET:
        return value.value
    if isinstance(value.items, tuple):
        return [resolve_value(item, parameters, outputs, facts) for item in value.items]
    if isinstance(value.entries, dict):
        return {key: resolve_value(item, parameters, outputs, facts) for key, item in value.entries.items()}
    if isinstance(value.join, Join):
        parts = (resolve_value(item, parameters, outputs, facts) for item in value.join.values)
        return value.join.on.join(map(as_text, parts))
    if isinstance(value.execution, str):
        return facts[value.execution]
    if not isinstance(value.ref, Ref):
        raise InvalidInput("the content of a data asset is known to steps only")
    if value.ref.parameter is not None:
        return parameters[value.ref.parameter]
    return _of_step(value.ref, outputs)


def _of_step(ref: Ref, outputs: Outputs) -> Any:
    output = _output(ref, outputs)
    if output.value is UNSET:
        small = "too large to be looked at outside a step" if output.format == "json" else f"{output.format}, not JSON"
        raise InvalidInput(f"{ref}: the output is {small}")
    return select(output.value, ref.path, f"{ref.step}.{ref.output}")


def as_text(value: Any) -> str:
    """A value within a text: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()


def _output(ref: Ref, outputs: Outputs) -> Output:
    try:
        return outputs[cast("str", ref.step)][cast("str", ref.output)]
    except KeyError:
        raise InvalidInput(f"{ref} is not there: the step did not give it") from None


def evaluate_condition(
    condition: Condition, parameters: Mapping[str, Any], outputs: Outputs, facts: Mapping[str, str] = NOTHING
) -> bool:
    """Whether a condition holds. Raises ``InvalidInput`` when its sides cannot be compared."""
    if condition.op == "not":
        return not evaluate_condition(condition.of[0], parameters, outputs, facts)
    if condition.op in ("and", "or"):
        answers = (evaluate_condition(part, parameters, outputs, facts) for part in condition.of)
        return all(answers) if condition.op == "and" else any(answers)
    left = resolve_value(cast("Value", condition.left), parameters, outputs, facts)
    right = resolve_value(cast("Value", condition.right), parameters, outputs, facts)
    return compare(condition.op, left, right)


def compare(op: str, left: Any, right: Any) -> bool:
    """A comparison of two JSON values; true and false are no numbers. Raises ``InvalidInput`` when there is none."""
    if op in ("eq", "ne"):
        return _equal(left, right) is (op == "eq")
    if op == "in":
        if not isinstance(right, list):
            raise InvalidInput(f"{right!r} is no list to look for {left!r} in")
        return any(_equal(left, item) for item in right)
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise InvalidInput(f"{left!r} and {right!r} have no order: compare two numbers or two texts")
    return bool({"lt": left < right, "le": left <= right, "gt": left > right, "ge": left >= right}[op])


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, bool) is isinstance(right, bool) and bool(left == right)


# -- calls and cache keys ---------------------------------------------------------------------------------------------


class Plain(Struct, frozen=True):
    """An argument that is JSON. ``given``: it was written in the pipeline or is a parameter, and is worth recording."""

    value: Any
    given: bool


class Input(Struct, frozen=True):
    """An argument that the job loads. ``source``: ``step.output`` or ``asset:version``; ``select``: a part of its JSON.

    ``format``: as of ``Output``; of an asset it is ``file`` or ``folder``. ``path``: as the manifest names it, so that
    the file keeps its own name where it is laid down.
    """

    source: str
    format: str
    sha256: str
    path: str
    select: tuple[str | int, ...] = ()
    is_asset: bool = False


class Asset(Struct, frozen=True):
    """A version of a data asset as the engine found it; ``kind``: file or folder; ``path``: its file's own name."""

    name: str
    version: int
    kind: Literal["file", "folder"]
    sha256: str
    path: str


Argument = Plain | Input | list["Argument"] | dict[str, "Argument"]


def resolve_arguments(
    step: JobStep,
    parameters: Mapping[str, Any],
    outputs: Outputs,
    assets: Mapping[tuple[str, int | None], Asset],
    facts: Mapping[str, str] = NOTHING,
) -> dict[str, Argument]:
    """What the step is called with. ``assets``: by (name, version as written). Raises ``InvalidInput``."""
    return {name: _argument(value, parameters, outputs, assets, facts) for name, value in step.arguments.items()}


def _argument(
    value: Value,
    parameters: Mapping[str, Any],
    outputs: Outputs,
    assets: Mapping[tuple[str, int | None], Asset],
    facts: Mapping[str, str],
) -> Argument:
    if isinstance(value.items, tuple):
        return [_argument(item, parameters, outputs, assets, facts) for item in value.items]
    if isinstance(value.entries, dict):
        return {key: _argument(item, parameters, outputs, assets, facts) for key, item in value.entries.items()}
    if isinstance(value.asset, AssetRef):
        found = assets[value.asset.name, value.asset.version]
        return Input(f"{found.name}:{found.version}", found.kind, found.sha256, found.path, is_asset=True)
    if isinstance(value.ref, Ref) and value.ref.step is not None:
        output = _output(value.ref, outputs)
        if output.value is UNSET:
            if value.ref.path and output.format != "json":
                raise InvalidInput(f"{value.ref}: the output is {output.format}, which has no parts")
            source = f"{value.ref.step}.{value.ref.output}"
            return Input(source, output.format, output.sha256, output.path, value.ref.path)
    given = all(leaf.value is not UNSET or _is_parameter(leaf) for leaf in value.leaves())
    return Plain(resolve_value(value, parameters, outputs, facts), given)


def _is_parameter(leaf: Value) -> bool:
    return isinstance(leaf.ref, Ref) and leaf.ref.parameter is not None


def call_arguments(arguments: Mapping[str, Argument], locate: Callable[[Input], str]) -> dict[str, Any]:
    """The ``arguments`` of a job's call. ``locate`` gives the absolute path at which an input was laid down."""

    def build(argument: Argument) -> dict[str, Any]:
        match argument:
            case Plain(value, given):
                return {"value": value} if given else {"value": value, "given": False}
            case Input():
                place = {"path": locate(argument), "format": "asset" if argument.is_asset else argument.format}
                return {"input": {**place, "select": list(argument.select)}}
            case list():
                return {"list": [build(item) for item in argument]}
        return {"dict": {key: build(item) for key, item in argument.items()}}

    return {name: build(argument) for name, argument in arguments.items()}


def step_call(spec: PipelineSpec, step: JobStep, tree: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The ``call`` of a job of kind ``step``. ``tree``: absolute path of the project's files; ``arguments``: as of
    ``call_arguments``."""
    return {
        "tree": tree,
        "file": spec.file,
        "function": step.function,
        "arguments": dict(arguments),
        "outputs": list(step.outputs),
        "baseline": step.baseline,
    }


def inputs_of(arguments: Mapping[str, Argument]) -> list[Input]:
    """Every input among the arguments, for lineage and for laying them down."""

    def walk(argument: Argument) -> list[Input]:
        if isinstance(argument, Input):
            return [argument]
        if isinstance(argument, Plain):
            return []
        inner = argument if isinstance(argument, list) else list(argument.values())
        return [found for item in inner for found in walk(item)]

    return [found for argument in arguments.values() for found in walk(argument)]


def cache_key(
    spec: PipelineSpec, step: JobStep, code_digest: str, environment_hash: str, arguments: Mapping[str, Argument]
) -> str:
    """SHA-256 (hex) over everything that a step's result may depend on.

    ``code_digest``: of ``digest_code``. ``environment_hash``: of the lock. An input counts by its digest and the part
    taken of it, not by where it came from, so that a renamed step or a new version of equal data is still known.
    Retries, limits and names of steps do not count.
    """

    def build(argument: Argument) -> Any:
        match argument:
            case Plain(value):
                return {"value": value}
            case Input():
                kind = "asset" if argument.is_asset else argument.format
                name = argument.path.rpartition("/")[2] if argument.format == "file" else ""
                return {"input": [kind, argument.sha256, list(argument.select), name]}
            case list():
                return {"list": [build(item) for item in argument]}
        return {"dict": {key: build(item) for key, item in argument.items()}}

    facts = {
        "version": spec.version,
        "file": spec.file,
        "function": step.function,
        "outputs": step.outputs,
        "baseline": step.baseline,
        "code": code_digest,
        "environment": environment_hash,
        "arguments": {name: build(argument) for name, argument in arguments.items()},
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def digest_code(files: Mapping[str, str], spec: PipelineSpec, step: JobStep) -> str:
    """SHA-256 (hex) over the project's files that the step depends on; ``files`` gives each path's digest.

    All files, or with ``code`` those that match one of the patterns (``*`` also matches ``/``) and the files that hold
    the pipeline and the function.
    """
    chosen = dict(files)
    if step.code is not None:
        module = step.function.partition(":")[0].replace(".", "/") if ":" in step.function else None
        own = {spec.file, f"{module}.py", f"{module}/__init__.py"}
        patterns = step.code
        chosen = {p: d for p, d in files.items() if p in own or any(fnmatchcase(p, pattern) for pattern in patterns)}
    return hashlib.sha256(msgspec.json.encode(chosen, order="deterministic")).hexdigest()
