"""What stands in a pipeline's definition in place of a value: Get, Std:Join and Std:JsonGet, as native values.

Source: sagemaker SDK 2.257 (``workflow/entities.py``, ``functions.py``, ``properties.py``) and the JSON schema of
pipeline definitions, 2020-12-01.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from loopline.domain.values import Join, Ref, Value
from loopline.errors import InvalidInput

GET, JOIN, JSON_GET = "Get", "Std:Join", "Std:JsonGet"
FUNCTIONS = (GET, JOIN, JSON_GET)
_TOKEN = re.compile(r"""([^.\[\]]+)|\[(?:'([^']*)'|"([^"]*)"|(\d+))\]""")
_KEYS = ("OutputName", "InputName", "ChannelName", "MetricName", "Name")  # what a list's members are found by
EACH = "[*]"

Path = tuple[str | int, ...]


class Source(NamedTuple):
    """A step as others refer to it: its type, and the request as it was written."""

    type: str
    arguments: Mapping[str, Any]


def is_expression(node: Any) -> bool:
    """Whether a node stands for a value."""
    return isinstance(node, dict) and len(node) == 1 and next(iter(node)) in FUNCTIONS


def split_path(text: str, what: str) -> Path:
    """``a.b['c'][0]``, with ``$.`` before it or not, as its parts. Raises ``InvalidInput``."""
    rest = text.removeprefix("$").lstrip(".")
    parts: list[str | int] = []
    place = 0
    while place < len(rest):
        found = _TOKEN.match(rest, place)
        if found is None:
            raise InvalidInput(f"{what}: {text!r} is not a path; write it like a.b['c'][0]")
        name, single, double, number = found.groups()
        parts.append(int(number) if number is not None else next(p for p in (name, single, double) if p is not None))
        place = found.end()
        if rest[place : place + 1] == "." and place + 1 < len(rest):
            place += 1
    if not parts:
        raise InvalidInput(f"{what}: {text!r} is not a path; write it like a.b['c'][0]")
    return tuple(parts)


class Expressions:
    """Reads the expressions of one definition. ``arn``: makes an ARN of a resource such as ``training-job/x``."""

    def __init__(self, name: str, sources: Mapping[str, Source], arn: Callable[[str], str]) -> None:
        self._name, self._sources, self._arn = name, sources, arn
        self.needed: set[str] = set()  # steps whose requests were looked into, beside those that values refer to

    def value(self, node: Any) -> Value:
        """A value: of an expression, or the literal itself. Raises ``InvalidInput``."""
        if not is_expression(node):
            return Value(value=node)
        function, given = next(iter(node.items()))
        if function == GET:
            return self._get(given)
        return self._join(given) if function == JOIN else self._json(given)

    def _join(self, given: Any) -> Value:
        if not isinstance(given, dict) or not isinstance(given.get("Values"), list):
            raise InvalidInput(f"{JOIN} takes On and Values")
        on = given.get("On", "")
        if not isinstance(on, str):
            raise InvalidInput(f"{JOIN}: On is a text, not {on!r}")
        return Value(join=Join(on=on, values=tuple(self.value(item) for item in given["Values"])))

    def _json(self, given: Any) -> Value:
        if not isinstance(given, dict) or not isinstance(given.get("Path"), str):
            raise InvalidInput(f"{JSON_GET} takes PropertyFile and Path")
        place = given.get("PropertyFile")
        if not (isinstance(place, dict) and is_expression(place) and isinstance(place.get(GET), str)):
            raise InvalidInput(f"{JSON_GET} reads a property file of a step: give PropertyFile as a Get of one")
        path = split_path(place[GET], GET)
        if len(path) != 4 or path[0] != "Steps" or path[2] != "PropertyFiles":
            raise InvalidInput(f"{JSON_GET}: {place[GET]!r} is not Steps.NAME.PropertyFiles.NAME")
        self._source(str(path[1]), place[GET])
        return Value(ref=Ref(step=str(path[1]), output=str(path[3]), path=split_path(given["Path"], JSON_GET)))

    def _get(self, given: Any) -> Value:
        if not isinstance(given, str):
            raise InvalidInput(f"{GET} takes a text, not {given!r}")
        root, _, rest = given.partition(".")
        if root == "Parameters" and rest:
            return Value(ref=Ref(parameter=rest))
        if root == "Execution":
            return self._execution(rest)
        path = split_path(given, GET)
        if root != "Steps" or len(path) < 3:
            raise InvalidInput(
                f"{given!r} is not a reference: write Parameters.NAME, Execution.NAME or Steps.NAME.PATH"
            )
        return self._property(str(path[1]), path[2:], given)

    def _execution(self, name: str) -> Value:
        if name == "PipelineName":
            return Value(value=self._name)
        if name == "PipelineArn":
            return Value(value=self._arn(f"pipeline/{self._name}"))
        if name == "PipelineExecutionArn":
            before = Value(value=self._arn(f"pipeline/{self._name}/execution/"))
            return Value(join=Join(on="", values=(before, Value(execution="id"))))
        variables = {"PipelineExecutionId": "id", "StartDateTime": "started_at", "CurrentDateTime": "now"}
        if name not in variables:
            known = ", ".join(("PipelineName", "PipelineArn", "PipelineExecutionArn", *variables))
            raise InvalidInput(f"there is no execution variable {name!r}; there are: {known}")
        return msgspec.convert({"execution": variables[name]}, Value)

    # -- properties of steps

    def _source(self, step: str, said: str) -> Source:
        if step not in self._sources:
            raise InvalidInput(f"{said!r}: there is no step {step!r}")
        return self._sources[step]

    def _property(self, step: str, path: Path, said: str) -> Value:
        """What a step gave, by the name that its Describe operation has for it; else a part of its request."""
        source = self._source(step, said)
        shape = ".".join("[*]" if place and _is_key(path, place) else str(part) for place, part in enumerate(path))
        known = PROPERTIES.get(source.type, {}).get(shape.replace(".[*]", EACH))
        if known is not None:
            keys = [part for place, part in enumerate(path) if place and _is_key(path, place)]
            return self._given(step, known, keys, said)
        self.needed.add(step)
        return self.value(_look_up(source.arguments, path, f"{said!r}: a step of type {source.type}"))

    def _given(self, step: str, known: "Property", keys: list[str | int], said: str) -> Value:
        if known.literal is not None:
            self.needed.add(step)
            return Value(value=known.literal)
        if any(isinstance(key, int) for key in keys):
            raise InvalidInput(f"{said!r}: say which by its name, not by a number")
        path: Path = tuple(keys.pop(0) if part == EACH else part for part in known.path)
        value = Value(ref=Ref(step=step, output="result", path=path))
        if not known.arn:
            return value
        parts: list[Value] = [Value(value=self._arn(known.arn)), value]
        for more in known.more:
            parts += [Value(value="/"), Value(ref=Ref(step=step, output="result", path=(more,)))]
        return Value(join=Join(on="", values=tuple(parts)))


_LISTS = frozenset(("Outputs", "ProcessingInputs", "FinalMetricDataList", "InputDataConfig"))


def _is_key(path: Path, place: int) -> bool:
    """Whether a part says which member of a list or map is meant."""
    return isinstance(path[place], int) or path[place - 1] in _LISTS


def _look_up(node: Any, path: Path, what: str) -> Any:
    for part in path:
        if is_expression(node):
            break
        if isinstance(node, list) and isinstance(part, str):
            node = next((each for each in node if isinstance(each, dict) and _called(each, part)), None)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            raise InvalidInput(f"{what} has no property {'.'.join(map(str, path))} that can be referred to here")
    if isinstance(node, dict | list) and not is_expression(node):
        raise InvalidInput(f"{what}: {'.'.join(map(str, path))} is not a single value")
    return node


def _called(member: dict[str, Any], name: str) -> bool:
    return any(member.get(key) == name for key in _KEYS)


class Property(NamedTuple):
    """Where a step's ``result`` has what a property names; ``arn``: the resource that the value, and ``more`` after
    it, is the name of; or a ``literal`` that every step which succeeded has."""

    path: Path = ()
    arn: str = ""
    more: tuple[str, ...] = ()
    literal: str | None = None


_NAME = ("name",)
_MODEL = {"ModelName": Property(_NAME), "ModelArn": Property(_NAME, "model/")}
PROPERTIES: Mapping[str, Mapping[str, Property]] = {
    "Training": {
        "TrainingJobName": Property(_NAME),
        "TrainingJobArn": Property(_NAME, "training-job/"),
        "TrainingJobStatus": Property(literal="Completed"),
        "ModelArtifacts.S3ModelArtifacts": Property(("model",)),
        f"FinalMetricDataList{EACH}.Value": Property(("metrics", EACH)),
    },
    "Processing": {
        "ProcessingJobName": Property(_NAME),
        "ProcessingJobArn": Property(_NAME, "processing-job/"),
        "ProcessingJobStatus": Property(literal="Completed"),
        "ExitMessage": Property(("message",)),
        f"ProcessingOutputConfig.Outputs{EACH}.S3Output.S3Uri": Property(("outputs", EACH)),
    },
    "Transform": {
        "TransformJobName": Property(_NAME),
        "TransformJobArn": Property(_NAME, "transform-job/"),
        "TransformJobStatus": Property(literal="Completed"),
        "TransformOutput.S3OutputPath": Property(("outputs", "output")),
    },
    "Model": _MODEL,
    "RegisterModel": {
        "ModelPackageName": Property(_NAME),
        "ModelPackageGroupName": Property(_NAME),
        "ModelPackageVersion": Property(("version",)),
        "ModelPackageArn": Property(_NAME, "model-package/", ("version",)),
        "ModelApprovalStatus": Property(("status",)),
    },
    "EndpointConfig": {
        "EndpointConfigName": Property(_NAME),
        "EndpointConfigArn": Property(_NAME, "endpoint-config/"),
    },
    "Endpoint": {
        "EndpointName": Property(_NAME),
        "EndpointArn": Property(_NAME, "endpoint/"),
        "EndpointStatus": Property(literal="InService"),
    },
}
