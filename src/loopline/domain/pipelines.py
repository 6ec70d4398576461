"""Compiled pipelines: what they may contain, and what their parameters take.

Everything here is a pure function of the spec. A spec is indexed once (``Index``); after that a decision about an
execution (``domain.decisions``) is one pass over its steps.
"""

import math
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from loopline.domain import scripts
from loopline.domain.names import check_name
from loopline.domain.states import VersionStatus
from loopline.domain.values import Condition, Part, Ref, Value
from loopline.errors import InvalidInput

MAX_STEPS = 2_000
ParameterType = Literal["string", "integer", "number", "boolean"]
_LIMITS = frozenset({"memory_mb", "cpu_seconds", "open_files", "disk_mb"})
_PYTHON_TYPES: dict[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}


# -- the compiled form ------------------------------------------------------------------------------------------------


class Parameter(Part, frozen=True):
    """A pipeline's parameter; without a default it must be given. ``choices`` None = any value of the type."""

    name: str
    type: ParameterType
    choices: tuple[Any, ...] | None = None
    default: Any = UNSET


class Parent(Part, frozen=True):
    """The branch of a condition step under which a step stands."""

    step: str
    branch: bool


class _Step(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    name: str
    after: tuple[str, ...] = ()
    parents: tuple[Parent, ...] = ()
    line: int = 0

    def values(self) -> list[Value]:
        """What the step is given."""
        return []

    @property
    def gives(self) -> tuple[str, ...]:
        """The names of the step's outputs."""
        return ()


class JobStep(_Step, frozen=True, tag_field="kind", tag="job", kw_only=True):
    """A call of a user's function in a job. ``function``: a name in the pipeline's file, or ``module:name``.

    ``retries``: attempts after the first; attempt n + 1 begins ``backoff_seconds`` * 2 ** (n - 1) after the end of n.
    """

    function: str
    arguments: dict[str, Value] = {}
    outputs: tuple[str, ...] = ("result",)
    retries: int = 0
    backoff_seconds: float = 0.0
    timeout_seconds: float | None = None
    cache: bool = True
    code: tuple[str, ...] | None = None
    limits: dict[str, float] = {}
    baseline: bool = True

    def values(self) -> list[Value]:
        return list(self.arguments.values())

    @property
    def gives(self) -> tuple[str, ...]:
        return self.outputs


class RegisterStep(_Step, frozen=True, tag_field="kind", tag="register", kw_only=True):
    """Makes a model version. ``model_name`` None = the project's model. Gives ``version`` = {name, version, status}."""

    model: Value
    model_name: Value | None = None
    metrics: Value | None = None
    status: Value | None = None
    description: Value | None = None
    tags: Value | None = None

    def values(self) -> list[Value]:
        given = (self.model, self.model_name, self.metrics, self.status, self.description, self.tags)
        return [value for value in given if value is not None]

    @property
    def gives(self) -> tuple[str, ...]:
        return ("version",)


class ConditionStep(_Step, frozen=True, tag_field="kind", tag="condition", kw_only=True):
    """Decides which branch is taken. Gives ``result``: true or false."""

    condition: Condition

    def values(self) -> list[Value]:
        return self.condition.values()

    @property
    def gives(self) -> tuple[str, ...]:
        return ("result",)


class ActionStep(_Step, frozen=True, tag_field="kind", tag="action", kw_only=True):
    """What control itself does, once for each execution and step. ``action``: one of ``control.actions``.

    Gives ``result``: what the action says about what it made.
    """

    action: str
    arguments: dict[str, Value] = {}

    def values(self) -> list[Value]:
        return list(self.arguments.values())

    @property
    def gives(self) -> tuple[str, ...]:
        return ("result",)


class FailStep(_Step, frozen=True, tag_field="kind", tag="fail", kw_only=True):
    """Ends as Failed, with ``message`` joined by spaces as the reason."""

    message: tuple[Value, ...]

    def values(self) -> list[Value]:
        return list(self.message)


class Report(Part, frozen=True):
    """A JSON file that a script leaves: ``path``, relative, below the folder of its output ``output``."""

    output: str
    path: str


class Retry(Part, frozen=True):
    """Which tries are followed by another, and when: the wait grows by ``rate`` each time, and none begins later than
    ``seconds`` after the first. ``only``: "faults" are those that are not the program's own, such as a signal."""

    rate: float = 2.0
    seconds: float | None = None
    only: Literal["all", "faults"] = "all"


class ScriptStep(_Step, frozen=True, tag_field="kind", tag="script", kw_only=True):
    """Runs a program by the contract of training or processing containers: folders, files, variables, no container.

    ``settings``: a dict in the form of ``domain.scripts.Script``, whose parts may be references at any depth; it is
    resolved and checked when the step starts. A dict that is all literal is checked with the pipeline. ``given``: what
    the author wrote in a language of theirs, kept with the job for whoever describes it in that language.

    Gives ``result``: {"name" of the job, "contract", "model" and "output" (URIs; training), "outputs" {name: URI}
    (processing), "metrics" {name: last value}, "message"}; and for each of ``reports`` the JSON of that file.

    ``retries`` and ``backoff_seconds``: as of a job step; ``retry``: more about them. ``cache``: a result with the same
    program, environment, channels (by content) and settings is taken again, with the addresses that it was put at, if
    it is at most ``cache_seconds`` old (None: however old). The job's name and its destinations do not count.
    """

    settings: Value
    given: Value | None = None
    reports: dict[str, Report] = {}
    retries: int = 0
    backoff_seconds: float = 0.0
    retry: Retry | None = None
    cache: bool = False
    cache_seconds: float | None = None

    def values(self) -> list[Value]:
        return [self.settings, *([self.given] if self.given is not None else [])]

    @property
    def gives(self) -> tuple[str, ...]:
        return ("result", *self.reports)


Step = JobStep | RegisterStep | ActionStep | ConditionStep | FailStep | ScriptStep


class PipelineSpec(Part, frozen=True):
    """A compiled pipeline. ``file``: the path inside the project that jobs import; empty where no step needs one."""

    version: Literal[1]
    name: str
    file: str = ""
    parameters: tuple[Parameter, ...] = ()
    steps: tuple[Step, ...] = ()
    description: str = ""


class OutputFile(Part, frozen=True):
    """A file of a folder; ``path`` is relative to the folder, with ``/``."""

    path: str
    size_bytes: int
    sha256: str
    mode_x: bool = False


class Output(Part, frozen=True):
    """What a step gave under one name, as its job's manifest says.

    ``path`` is relative to the attempt's folder. ``value`` is the JSON itself when it is small. A folder's ``sha256``
    is that of the manifest which the blob store makes of its ``files``. ``executable``: opening it may run code.
    """

    format: Literal["json", "npy", "parquet", "file", "folder", "joblib"]
    path: str
    size_bytes: int
    sha256: str
    executable: bool = False
    value: Any = UNSET
    files: tuple[OutputFile, ...] | None = None


def parse_spec(data: bytes | Mapping[str, Any]) -> PipelineSpec:
    """A compiled pipeline, checked. Raises ``InvalidInput``; the cycle of a cyclic one is listed."""
    try:
        if isinstance(data, bytes):
            spec = msgspec.json.decode(data, type=PipelineSpec)
        else:
            spec = msgspec.convert(data, PipelineSpec)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the compiled pipeline is not valid: {error}") from None
    Index(spec)
    return spec


def parse_outputs(data: bytes) -> dict[str, Output]:
    """A job's ``outputs.json``. Raises ``InvalidInput``."""
    try:
        return msgspec.json.decode(data, type=dict[str, Output])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the manifest of outputs is not valid: {error}") from None


def dump_spec(spec: PipelineSpec) -> bytes:
    """The canonical JSON of a spec: equal specs give equal bytes."""
    return msgspec.json.encode(spec, order="deterministic")


# -- the index and its checks -----------------------------------------------------------------------------------------


class Index:
    """A spec with its order and dependencies worked out. Raises ``InvalidInput`` when the spec cannot run."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec
        self.parameters = {parameter.name: parameter for parameter in spec.parameters}
        self.steps: dict[str, Step] = {step.name: step for step in spec.steps}
        _check_head(self)
        self.needs = {step.name: self._needs(step) for step in spec.steps}
        try:
            self.order = tuple(TopologicalSorter(self.needs).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise InvalidInput(f"these steps wait for one another: {circle} (each needs the next)") from None
        # What a decision reads, in the order of the steps: one tuple each, no attribute look-ups.
        self.rows = tuple(
            (name, self.needs[name], tuple((parent.step, parent.branch) for parent in self.steps[name].parents))
            for name in self.order
        )

    def _needs(self, step: Step) -> tuple[str, ...]:
        needed = dict.fromkeys(parent.step for parent in step.parents)
        needed |= dict.fromkeys(step.after)
        for leaf in (leaf for value in step.values() for leaf in value.leaves()):
            if leaf.ref is not UNSET:
                self._check_ref(step, leaf.ref)
                if leaf.ref.step is not None:
                    needed[leaf.ref.step] = None
        for name in needed:
            if name not in self.steps:
                raise InvalidInput(f"the step {step.name!r} needs {name!r}, which is no step of this pipeline")
        for parent in step.parents:
            if not isinstance(self.steps[parent.step], ConditionStep):
                raise InvalidInput(f"the step {step.name!r} stands under {parent.step!r}, which is no condition")
        return tuple(needed)

    def _check_ref(self, step: Step, ref: Ref) -> None:
        if ref.parameter is not None:
            if ref.parameter not in self.parameters:
                raise InvalidInput(
                    f"the step {step.name!r} uses the parameter {ref.parameter!r}, which is not declared"
                )
        elif (source := self.steps.get(ref.step or "")) and ref.output not in source.gives:
            gives = ", ".join(source.gives) or "nothing"
            raise InvalidInput(f"the step {step.name!r} uses {ref}; {ref.step!r} gives {gives}")


def _check_head(index: Index) -> None:
    spec = index.spec
    check_name(spec.name, "a pipeline")
    for what, names in (("steps", [s.name for s in spec.steps]), ("parameters", [p.name for p in spec.parameters])):
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise InvalidInput(f"two {what} are named {twice!r}")
    if not 0 < len(spec.steps) <= MAX_STEPS:
        raise InvalidInput(f"a pipeline has 1 to {MAX_STEPS} steps; this one has {len(spec.steps)}")
    needed = bool(spec.file) or any(isinstance(step, JobStep) for step in spec.steps)
    if needed and (spec.file.startswith("/") or ".." in spec.file.split("/") or not spec.file.endswith(".py")):
        raise InvalidInput(f"{spec.file!r} is not the path of a Python file inside the project")
    for parameter in spec.parameters:
        if parameter.default is not UNSET:
            check_parameter(parameter, parameter.default)
    for step in spec.steps:
        check_name(step.name, "a step")
        check = _CHECKS.get(type(step))
        if check is not None:
            check(step)


def _check_job(step: JobStep) -> None:
    wrong = None
    if step.retries < 0 or step.backoff_seconds < 0 or (step.timeout_seconds is not None and step.timeout_seconds <= 0):
        wrong = "retries and backoff_seconds are at least 0, timeout_seconds is above 0"
    elif not set(step.limits) <= _LIMITS or any(limit <= 0 for limit in step.limits.values()):
        wrong = f"limits are numbers above 0 for {', '.join(sorted(_LIMITS))}"
    elif not step.outputs or len(set(step.outputs)) < len(step.outputs):
        wrong = "each output is named once, and there is at least one"
    elif not all(output.isidentifier() for output in step.outputs):
        wrong = "an output's name is a Python identifier"
    elif not all(part.isidentifier() for part in step.function.replace(":", ".", 1).split(".")):
        wrong = f"{step.function!r} is not the name of a function"
    if wrong:
        raise InvalidInput(f"the step {step.name!r}: {wrong}")


def _check_register(step: RegisterStep) -> None:
    if step.model.ref is UNSET or step.model.ref.step is None:
        raise InvalidInput(f"the step {step.name!r} registers what no step gave")
    if step.status is not None and isinstance(step.status.value, str):
        check_version_status(step.status.value)


def _check_script(step: ScriptStep) -> None:
    wrong = None
    rule = step.retry or Retry()
    if rule.rate < 1 or (rule.seconds is not None and rule.seconds < 0):
        wrong = "the rate of retries is at least 1, their time at least 0"
    elif step.retries < 0 or step.backoff_seconds < 0 or (step.cache_seconds is not None and step.cache_seconds < 0):
        wrong = "retries, backoff_seconds and cache_seconds are at least 0"
    elif "result" in step.reports:
        wrong = "a report is not named 'result'"
    elif any(leaf.asset is not UNSET for value in step.values() for leaf in value.leaves()):
        wrong = "a script takes objects, not data assets"
    elif step.settings.value is not UNSET:
        scripts.parse_script(step.settings.value)
    if wrong:
        raise InvalidInput(f"the step {step.name!r}: {wrong}")


_CHECKS: dict[type, Any] = {JobStep: _check_job, RegisterStep: _check_register, ScriptStep: _check_script}


def check_version_status(status: Any) -> VersionStatus:
    """``status`` as a version may begin with it. Raises ``InvalidInput``."""
    try:
        return VersionStatus(status)
    except ValueError:
        raise InvalidInput(f"{status!r} is no status of a version: use {', '.join(VersionStatus)}") from None


# -- parameters -------------------------------------------------------------------------------------------------------


def check_parameter(parameter: Parameter, given: Any, *, from_text: bool = False) -> Any:
    """``given`` as the parameter's type. Raises ``InvalidInput`` naming the parameter, its type and what was given.

    A whole number is taken for a ``number``; with ``from_text`` a text is read as the type.
    """
    value = _read_text(parameter.type, given) if from_text and isinstance(given, str) else given
    if parameter.type == "number" and type(value) is int:
        value = float(value)
    if type(value) is not _PYTHON_TYPES[parameter.type] or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidInput(
            f"the parameter {parameter.name!r} is of type {parameter.type}; {given!r} is not", parameter=parameter.name
        )
    if parameter.choices is not None and value not in parameter.choices:
        choices = ", ".join(map(repr, parameter.choices))
        raise InvalidInput(
            f"the parameter {parameter.name!r} is one of {choices}; {given!r} is not", parameter=parameter.name
        )
    return value


def _read_text(kind: ParameterType, text: str) -> Any:
    try:
        if kind == "boolean":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return _PYTHON_TYPES[kind](text)
    except (ValueError, KeyError):
        return text


def resolve_parameters(
    spec: PipelineSpec, given: Mapping[str, Any], *, from_text: bool = False, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Every parameter's value: given, else of ``defaults`` (the project's file), else of the code.

    Raises ``InvalidInput`` for an unknown name, a wrong type, or one that nothing gives.
    """
    known = {parameter.name: parameter for parameter in spec.parameters}
    wanted = {**(defaults or {}), **given}
    for name in wanted:
        if name not in known:
            described = ", ".join(f"{p.name} ({p.type})" for p in spec.parameters) or "none"
            raise InvalidInput(f"{spec.name} has no parameter {name!r}; it takes {described}", parameter=name)
    values = {}
    for name, parameter in known.items():
        if name in wanted:
            values[name] = check_parameter(parameter, wanted[name], from_text=from_text)
        elif parameter.default is UNSET:
            raise InvalidInput(f"{spec.name} needs the parameter {name!r} ({parameter.type})", parameter=name)
        else:
            values[name] = check_parameter(parameter, parameter.default)
    return values


# As in projects.py: the types are worked out while one thread imports this module, not when two threads first use them.
msgspec.json.Decoder(PipelineSpec)
msgspec.json.Decoder(dict[str, Output])
