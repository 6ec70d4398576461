"""Pipeline definitions, JSON of the version 2020-12-01, as loopline's compiled pipelines.

A step's Arguments are the request of the operation that its type stands for. They are translated by the functions that
translate the operation itself, with markers in place of what is known later (``late``).

Source: the JSON schema of pipeline definitions, and what the sagemaker SDK 2.257 writes (``workflow/steps.py``,
``retry.py``, ``conditions.py``).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from loopline.domain.pipelines import (
    ActionStep,
    ConditionStep,
    FailStep,
    Parameter,
    Parent,
    PipelineSpec,
    Report,
    Retry,
    ScriptStep,
    Step,
    parse_spec,
)
from loopline.domain.values import Condition, Value
from loopline.errors import AwsError, InvalidInput
from loopline.fronts.aws import checks, models
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.expressions import Expressions, Source, is_expression
from loopline.fronts.aws.late import Late

VERSION = "2020-12-01"
PARTLY = (
    "steps of the types Training, Processing, Transform, Model, RegisterModel, EndpointConfig, Endpoint, Condition, "
    "Fail; retry policies apply to faults of a job's process, not to capacity: a job waits until there is room"
)
MAX_DEPTH = 20
MAX_NESTING = 100
REFUSED = (
    "Tuning",
    "Lambda",
    "Callback",
    "QualityCheck",
    "ClarifyCheck",
    "EMR",
    "EMRServerless",
    "AutoML",
    "InferenceComponent",
    "Lineage",
    "Job",
    "NotebookJob",
    "ForEach",
    "Athena",
    "Cleanup",
)
_TYPES = {"String": "string", "Integer": "integer", "Float": "number", "Boolean": "boolean"}
_COMPARISONS = {
    "Equals": "eq",
    "GreaterThan": "gt",
    "GreaterThanOrEqualTo": "ge",
    "LessThan": "lt",
    "LessThanOrEqualTo": "le",
}
_FAULTS = (
    "SageMaker.JOB_INTERNAL_ERROR",
    "Step.SERVICE_FAULT",
    "Step.THROTTLING",
    "SageMaker.CAPACITY_ERROR",
    "SageMaker.RESOURCE_LIMIT",
)
_RETRIED = _FAULTS[:2]  # what happens here, first what happens to jobs; a job that finds no room waits until it does
_NAMED = ("CreateEndpoint", "CreateEndpointConfig", "CreateModelPackage")  # by names of their own; others by prefixes
USUAL_RETRIES = 5
MAX_RETRIES = 1000
_DURATION = re.compile(
    r"P?(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.IGNORECASE
)
_SECONDS = (365 * 86400, 30 * 86400, 7 * 86400, 86400, 3600, 60, 1)


class Kind(NamedTuple):
    """How steps of one type are translated: by ``translate``, the request of ``operation``, of which a pipeline leaves
    the ``made`` members out; ``action``: of control, or "" for a program."""

    operation: str
    translate: Callable[[Call, Mapping[str, Any]], dict[str, Any]]
    made: str
    action: str = ""


def compile_(text: str, name: str, call: Call, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The compiled pipeline, as JSON. ``name``: the pipeline's. Raises ``InvalidInput`` that says what is wrong."""
    try:
        return _Definition(parse(text), name, call, kinds).compiled()
    except (AwsError, InvalidInput) as error:
        raise InvalidInput(f"Unable to parse pipeline definition. {error.message}") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(f"Unable to parse pipeline definition. {error}") from None


def parse(text: str) -> dict[str, Any]:
    """The definition as JSON. Raises ``InvalidInput``."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidInput(f"It is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("Version") != VERSION:
        raise InvalidInput(f"It is not a JSON object whose Version is {VERSION!r}")
    if _is_deep(found):
        raise InvalidInput(f"It is nested more than {MAX_NESTING} deep")
    return found


def _is_deep(node: Any) -> bool:
    level = [node]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def dump(spec: dict[str, Any]) -> str:
    """A compiled pipeline that nobody wrote in this language, as text."""
    return msgspec.json.encode(spec).decode()


def steps_of(definition: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every step as it was written, those within conditions after the condition."""
    yield from _walk(definition.get("Steps"), 0)


def _walk(steps: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"Conditions stand within one another more than {MAX_DEPTH} deep")
    for step in _list(steps, "Steps"):
        if not isinstance(step, dict):
            raise InvalidInput(f"A step is an object, not {step!r}")
        yield step
        if step.get("Type") == "Condition" and isinstance(step.get("Arguments"), dict):
            for branch in ("IfSteps", "ElseSteps"):
                yield from _walk(step["Arguments"].get(branch), depth + 1)


def _list(given: Any, what: str) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidInput(f"{what} is a list, not {given!r}")
    return given


class _Definition:
    def __init__(self, given: dict[str, Any], name: str, call: Call, kinds: Mapping[str, Kind]) -> None:
        self._given, self._name, self._call, self._kinds = given, name, call, kinds
        self._sources = {
            str(step.get("Name")): Source(str(step.get("Type")), step.get("Arguments") or {})
            for step in steps_of(given)
        }
        self._expressions = Expressions(name, self._sources, lambda resource: call.arn("sagemaker", resource))

    def compiled(self) -> dict[str, Any]:
        spec = PipelineSpec(
            version=1,
            name=self._name,
            parameters=tuple(self._parameter(each) for each in _list(self._given.get("Parameters"), "Parameters")),
            steps=tuple(self._steps(self._given.get("Steps"), ())),
        )
        plain: dict[str, Any] = msgspec.to_builtins(spec)
        parse_spec(plain)
        return plain

    def _parameter(self, given: Any) -> Parameter:
        if not isinstance(given, dict) or not isinstance(given.get("Name"), str) or given.get("Type") not in _TYPES:
            raise InvalidInput(f"A parameter has a Name and a Type ({', '.join(_TYPES)}), not {given!r}")
        choices = given.get("EnumValues")
        return msgspec.convert(
            {
                "name": given["Name"],
                "type": _TYPES[given["Type"]],
                **({"default": given["DefaultValue"]} if given.get("DefaultValue") is not None else {}),
                **({"choices": choices} if choices else {}),
            },
            Parameter,
        )

    # -- steps

    def _steps(self, given: Any, parents: tuple[Parent, ...]) -> list[Step]:
        found: list[Step] = []
        for raw in _list(given, "Steps"):
            name = raw.get("Name")
            if not isinstance(name, str) or not isinstance(raw.get("Arguments"), dict):
                raise InvalidInput(f"A step has a Name, a Type and Arguments, not {raw!r}")
            try:
                found += self._step(raw, name, parents)
            except (AwsError, InvalidInput) as error:
                inner = error.message
                raise InvalidInput(inner if inner.startswith("Step ") else f"Step {name!r}: {inner}") from None
        return found

    def _step(self, raw: Mapping[str, Any], name: str, parents: tuple[Parent, ...]) -> list[Step]:
        kind, given = raw.get("Type"), raw["Arguments"]
        self._expressions.needed = set()
        after = [each for each in _list(raw.get("DependsOn"), "DependsOn") if isinstance(each, str)]
        if kind == "Condition":
            conditions = [self._condition(each) for each in _list(given.get("Conditions"), "Conditions")]
            if not conditions:
                raise InvalidInput("it has no Conditions")
            condition = conditions[0] if len(conditions) == 1 else Condition(op="and", of=tuple(conditions))
            own = ConditionStep(name=name, after=self._after(after), parents=parents, condition=condition)
            branches = ((True, given.get("IfSteps")), (False, given.get("ElseSteps")))
            return [own, *(s for on, inner in branches for s in self._steps(inner, (Parent(step=name, branch=on),)))]
        if kind == "Fail":
            message = (self._expressions.value(given.get("ErrorMessage", "")),)
            return [FailStep(name=name, after=self._after(after), parents=parents, message=message)]
        return [self._work(raw, name, after, parents)]

    def _work(self, raw: Mapping[str, Any], name: str, after: list[str], parents: tuple[Parent, ...]) -> Step:
        kind = self._kinds.get(str(raw.get("Type")))
        if kind is None:
            known = ", ".join((*self._kinds, "Condition", "Fail"))
            why = "is not supported by loopline" if raw.get("Type") in REFUSED else "is not a type of steps"
            raise InvalidInput(f"the type {raw.get('Type')!r} {why}; types: {known}")
        late = Late()
        wire = models.service("sagemaker").wire(kind.operation)
        assert wire is not None
        request = self._hidden(raw["Arguments"], wire.input, late)
        request = self._named(request, kind, late)
        checks.check(wire.input, {**request, kind.made: request[kind.made] or name}, strict=False)
        native = kind.translate(self._call, request)
        if kind.action:
            arguments = {key: late.restore(value) for key, value in native.items() if value is not None}
            return ActionStep(
                name=name, after=self._after(after), parents=parents, action=kind.action, arguments=arguments
            )
        retries = _retries(raw.get("RetryPolicies"))
        seconds = _cache_seconds(raw.get("CacheConfig"))
        return ScriptStep(
            name=name,
            after=self._after(after),
            parents=parents,
            settings=late.restore({**native, "name": request[kind.made]} if request[kind.made] else native),
            given=late.restore(request),
            reports=_reports(raw.get("PropertyFiles")),
            cache=seconds is not None,
            cache_seconds=seconds or None,
            **retries,
        )

    def _named(self, request: dict[str, Any], kind: Kind, late: Late) -> dict[str, Any]:
        """With the name of what is made: of a step's own, where its author gave but the beginning of one, or none."""
        given = request.get(kind.made)
        if not given or kind.operation in _NAMED:
            return {kind.made: "", **request}
        return {**request, kind.made: f"{given}-{late.hide(Value(execution='id'), None)}"}

    def _after(self, after: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*after, *sorted(self._expressions.needed))))

    def _hidden(self, node: Any, shape: Any, late: Late) -> Any:
        """A part of a request with markers in place of expressions."""
        if is_expression(node):
            return late.hide(self._expressions.value(node), shape)
        kind = None if shape is None else shape.type_name
        if isinstance(node, dict):
            members = shape.members if kind == "structure" else {}
            value = shape.value if kind == "map" else None
            return {key: self._hidden(item, members.get(key, value), late) for key, item in node.items()}
        if isinstance(node, list):
            return [self._hidden(item, shape.member if kind == "list" else None, late) for item in node]
        return node

    # -- conditions

    def _condition(self, given: Any) -> Condition:
        kind = given.get("Type") if isinstance(given, dict) else None
        if kind in _COMPARISONS and "LeftValue" in given and "RightValue" in given:
            sides = {"left": self._side(given["LeftValue"]), "right": self._side(given["RightValue"])}
            return Condition(op=_COMPARISONS[kind], **sides)  # type: ignore[arg-type]
        if kind == "In" and "QueryValue" in given:
            values = Value(items=tuple(self._side(each) for each in _list(given.get("Values"), "Values")))
            return Condition(op="in", left=self._side(given["QueryValue"]), right=values)
        if kind == "Not" and ("Condition" in given or "Expression" in given):
            return Condition(op="not", of=(self._condition(given.get("Condition", given.get("Expression"))),))
        if kind == "Or" and given.get("Conditions"):
            return Condition(op="or", of=tuple(self._condition(each) for each in _list(given["Conditions"], "Or")))
        known = ", ".join((*_COMPARISONS, "In", "Not", "Or"))
        raise InvalidInput(f"{given!r} is no condition; types: {known}, each with its values")

    def _side(self, node: Any) -> Value:
        return self._expressions.value(node)


# -- what else a step says --------------------------------------------------------------------------------------------


def _reports(given: Any) -> dict[str, Report]:
    found = {}
    for each in _list(given, "PropertyFiles"):
        names = [each.get(key) if isinstance(each, dict) else None for key in _REPORT]
        if not all(isinstance(name, str) and name for name in names):
            raise InvalidInput(f"a property file has {', '.join(_REPORT)}, not {each!r}")
        found[str(names[0])] = Report(output=str(names[1]), path=str(names[2]).lstrip("/"))
    return found


_REPORT = ("PropertyFileName", "OutputName", "FilePath")


def _cache_seconds(given: Any) -> float | None:
    """How old a result may be that is taken again: 0.0 for however old; None when none is."""
    if given is None or not (isinstance(given, dict) and given.get("Enabled")):
        return None
    return duration(given["ExpireAfter"]) if given.get("ExpireAfter") else 0.0


def duration(text: Any) -> float:
    """Seconds of an ISO 8601 duration such as ``P30D`` or ``PT1H``; a year has 365 days, a month 30."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None or not any(found.groups()):
        raise InvalidInput(f"{text!r} is no duration; write it as ISO 8601 does, such as P30D or PT1H")
    return float(sum(int(part or 0) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True)))


def _retries(given: Any) -> dict[str, Any]:
    """The native rule for the failures that AWS retries: those that are not the program's own."""
    policies = [(_exceptions(policy), policy) for policy in _list(given, "RetryPolicies")]
    for kind in _RETRIED:
        for named, policy in policies:
            if kind in named:
                return _rule(policy)
    return {}


def _exceptions(policy: Any) -> list[Any]:
    kinds = policy.get("ExceptionType") if isinstance(policy, dict) else None
    named = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(named, list) or not named or any(kind not in _FAULTS for kind in named):
        raise InvalidInput(f"a retry policy has ExceptionType, some of {', '.join(_FAULTS)}, not {kinds!r}")
    return named


class RetryPolicy(Struct):
    """One of RetryPolicies; its members have AWS's names."""

    ExceptionType: list[str] | str
    IntervalSeconds: int = 1
    BackoffRate: float = 2.0
    MaxAttempts: int | None = None
    ExpireAfterMin: int | None = None


def _rule(policy: dict[str, Any]) -> dict[str, Any]:
    given = msgspec.convert(policy, RetryPolicy)
    minutes, usual = given.ExpireAfterMin, USUAL_RETRIES if given.ExpireAfterMin is None else MAX_RETRIES
    seconds = None if minutes is None else minutes * 60.0
    return {
        "retries": usual if given.MaxAttempts is None else given.MaxAttempts,
        "backoff_seconds": float(given.IntervalSeconds),
        "retry": Retry(rate=given.BackoffRate, seconds=seconds, only="faults"),
    }
