"""Scripts: programs written for a training or processing container, which run here without one. Values and rules.

The contract is that of SageMaker's containers: what lies below ``/opt/ml``, the ``SM_`` variables, and the files that
a program leaves. Sources: botocore's shapes CreateTrainingJob and CreateProcessingJob, and ENVIRONMENT_VARIABLES.md of
aws/sagemaker-training-toolkit.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from loopline.domain.names import check_name
from loopline.domain.values import Part
from loopline.errors import InvalidInput

ROOT = "/opt/ml"
MAX_HOSTS = 8
DEFAULT_TIMEOUT_SECONDS = 86400.0
GRACE_SECONDS = 120.0  # between SIGTERM and SIGKILL
TRANSFORM_INPUT, TRANSFORM_OUTPUT = "input", "output"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_GPU = re.compile(r"ml\.(p|g)\d")


class Channel(Part, frozen=True):
    """Objects that lie in a folder of the program's when it begins.

    ``uri``: one object, or all below a prefix. ``path``: the folder, below ``/opt/ml``; empty is
    ``/opt/ml/input/data/NAME``. ``sharded``: each host gets its share of the objects. ``source``: "prefix" is the only
    way in which objects are named; "mode" File and FastFile both mean that the objects are there as files.
    """

    uri: str
    path: str = ""
    sharded: bool = False
    content_type: str = ""
    source: Literal["S3Prefix"] = "S3Prefix"
    mode: Literal["File", "FastFile"] = "File"
    compression: Literal["None"] = "None"
    record_wrapper: str = "None"


class Target(Part, frozen=True):
    """A folder of the program's (``path``, below ``/opt/ml``) whose files become objects below ``uri``."""

    uri: str
    path: str = ""


class Transform(Part, frozen=True):
    """How objects are asked of a model, and what becomes of the answers.

    ``split``: an object is one record, or each of its lines is one; ``strategy``: one record a request, or as many as
    ``max_payload_mb`` holds (0: any number). ``assemble``: what ends an answer in the output. Filters are JSONPaths: of
    the record that is sent, and of the answer that is kept, to which the whole record is joined before if ``join``.
    """

    content_type: str = ""
    accept: str = ""
    split: Literal["None", "Line"] = "None"
    strategy: Literal["MultiRecord", "SingleRecord"] = "MultiRecord"
    max_payload_mb: int = 6
    assemble: Literal["None", "Line"] = "None"
    input_filter: str = "$"
    output_filter: str = "$"
    join: Literal["None", "Input"] = "None"


class MetricDefinition(Part, frozen=True):
    """A metric read from what the program prints: ``regex`` has one group, the number."""

    name: str
    regex: str


class Script(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One job of a user's program.

    ``image`` chooses the environment (``domain.images``). The program is a file of the code, run as the image's
    language wants it (``program``), or argument words that are run as they are (``entrypoint`` and ``arguments``).
    The code is a stored folder (``tree``: its digest) or an object (``code``: a tar.gz, or one file). ``output_uri``:
    training's model and output data go below ``output_uri/NAME/output``. ``hosts``: so many processes, which know of
    each other. ``machine``: the kind of machine the author had in mind; only whether it has a GPU is looked at.
    ``timeout_seconds``: SIGTERM then, and SIGKILL ``GRACE_SECONDS`` later. ``name``: of the job; empty is made up.
    ``role``: the name of the role (``control.role_aliases``) that decides what the program may ask of this installation
    itself; empty: nothing. Only what stands behind the last slash of it counts.

    Of the contract transform there is no program: a ``servable`` (its name) answers the objects of the channel
    ``input``, and the answers go to the output ``output``, each by its object's name with ``.out``.
    """

    contract: Literal["training", "processing", "transform"]
    image: str = ""
    name: str = ""
    tree: str = ""
    code: str = ""
    program: str = ""
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    hyperparameters: dict[str, str] = {}
    channels: dict[str, Channel] = {}
    outputs: dict[str, Target] = {}
    output_uri: str = ""
    environment: dict[str, str] = {}
    metrics: tuple[MetricDefinition, ...] = ()
    hosts: int = 1
    machine: str = ""
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    network: bool = True
    servable: str = ""
    transform: Transform | None = None
    role: str = ""


def parse_script(plain: Any) -> Script:
    """Settings as they stand in JSON, checked. Numbers where texts belong become texts. Raises ``InvalidInput``."""
    if not isinstance(plain, dict):
        raise InvalidInput("the settings of a script are a dict")
    wanted = {name: value for name, value in plain.items() if value is not None}
    for name in ("hyperparameters", "environment"):
        if isinstance(wanted.get(name), dict):
            wanted[name] = {key: as_text(value) for key, value in wanted[name].items()}
    for name in ("entrypoint", "arguments"):
        if isinstance(wanted.get(name), list):
            wanted[name] = [as_text(value) for value in wanted[name]]
    try:
        script = msgspec.convert(wanted, Script, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the settings of the script are not valid: {error}") from None
    script = msgspec.structs.replace(_with_reserved(script), role=script.role.rpartition("/")[2])
    _check(script)
    return script


def as_text(value: Any) -> str:
    """A value as hyperparameters and variables hold it: a text stays, anything else is written as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _with_reserved(script: Script) -> Script:
    """The program and its code where only the hyperparameters or variables of script mode name them."""
    given = {name: _unquoted(value) for name, value in script.hyperparameters.items() if name.startswith("sagemaker_")}
    known = script.environment
    program = script.program or given.get("sagemaker_program") or known.get("SAGEMAKER_PROGRAM", "")
    code = script.code
    if not code and not script.tree:
        code = given.get("sagemaker_submit_directory") or known.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    return msgspec.structs.replace(script, program=program, code=code if code.startswith("s3://") else "")


def _unquoted(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _check(script: Script) -> None:
    if script.name:
        check_name(script.name, "a job")
    if script.timeout_seconds <= 0:
        raise InvalidInput("timeout_seconds is above 0")
    if script.contract == "transform":
        _check_transform(script)
        return
    if not script.image:
        raise InvalidInput("a script names the image whose environment it runs in")
    if not 1 <= script.hosts <= MAX_HOSTS:
        raise InvalidInput(f"a script runs on 1 to {MAX_HOSTS} hosts here, not {script.hosts}")
    _check_program(script)
    for name, channel in script.channels.items():
        _check_file_name(name, "a channel")
        if channel.path:
            below_root(channel.path)
    for name, target in script.outputs.items():
        _check_file_name(name, "an output")
        below_root(target.path)
    for metric in script.metrics:
        _check_regex(metric)


def _check_transform(script: Script) -> None:
    if not script.servable or script.transform is None:
        raise InvalidInput("a transform names a servable, and says how objects are asked (transform)")
    if set(script.channels) != {TRANSFORM_INPUT} or set(script.outputs) != {TRANSFORM_OUTPUT}:
        raise InvalidInput(f"a transform has the channel {TRANSFORM_INPUT!r} and the output {TRANSFORM_OUTPUT!r}")
    if script.transform.max_payload_mb < 0:
        raise InvalidInput("max_payload_mb is at least 0")


def _check_program(script: Script) -> None:
    if not script.program and not script.entrypoint:
        raise InvalidInput(
            f"nothing says what to run: the program inside the image {script.image} would need a container. Name a "
            "program and its code (script mode), or the words of an entrypoint"
        )
    if script.program and not script.entrypoint and not (script.code or script.tree or "code" in script.channels):
        raise InvalidInput(f"the code that holds {script.program!r} is not named")
    if script.program and any(part in ("", ".", "..") for part in script.program.split("/")):
        raise InvalidInput(f"{script.program!r} is not the path of a file within the code")


def _check_regex(metric: MetricDefinition) -> None:
    try:
        re.compile(metric.regex)
    except re.error as error:
        wrong = f"{metric.regex!r} is no regular expression: {error}"
        raise InvalidInput(f"the metric {metric.name!r}: {wrong}") from None


def _check_file_name(name: str, what: str) -> None:
    if not _FILE_NAME.fullmatch(name) or name.endswith("."):
        raise InvalidInput(f"{name!r} is not a name for {what}: use letters, digits, '-', '_' or '.'")


def below_root(path: str) -> str:
    """``path`` relative to ``/opt/ml``; raises ``InvalidInput`` when it lies elsewhere."""
    parts = path.rstrip("/").split("/")
    if parts[:3] != ["", "opt", "ml"] or len(parts) < 4 or any(part in ("", ".", "..") for part in parts[3:]):
        raise InvalidInput(f"{path!r}: a program's folders lie below {ROOT}")
    return "/".join(parts[3:])


def own_hyperparameters(script: Script) -> dict[str, Any]:
    """The author's hyperparameters, without those of script mode; what is written as JSON is read as such."""
    found = {}
    for name, text in script.hyperparameters.items():
        if not name.startswith(("sagemaker_", "_tuning_")):
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
    return found


def wants_gpu(machine: str) -> bool:
    """Whether that kind of machine has a GPU."""
    return bool(_GPU.match(machine))


def made_name(execution: str, step: str, attempt: str) -> str:
    """The name of a step's job whose author gave none; ``execution``, ``attempt``: ids, whose ends tell them apart."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", step).strip("-") or "step"
    return f"pipelines-{execution[-12:]}-{plain[:28]}-{attempt[-10:]}"


# -- what the program's own calls are signed with ---------------------------------------------------------------------

HIDDEN = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def has_own_key(variables: Mapping[str, str]) -> bool:
    """Whether the author gave the program a key of another place, which then is the one it uses."""
    return "AWS_ACCESS_KEY_ID" in variables or "AWS_PROFILE" in variables


def client_variables(key: Mapping[str, str], *, url: str, region: str, authority: str | None) -> dict[str, str]:
    """The variables by which AWS's SDKs find an installation and sign with a temporary key ("id", "secret_key",
    "token"). ``authority``: the path of the certificate to trust, where it is no public one."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_ACCESS_KEY_ID": key["id"],
        "AWS_SECRET_ACCESS_KEY": key["secret_key"],
        "AWS_SESSION_TOKEN": key["token"],
        "AWS_EC2_METADATA_DISABLED": "true",
        **({"AWS_CA_BUNDLE": authority} if authority else {}),
    }


# -- objects and what they become -------------------------------------------------------------------------------------


def relative_keys(prefix: str, keys: Sequence[str]) -> dict[str, str]:
    """The file name of each object of a channel, by key. ``prefix``: the key part of its URI; ``keys``: all that begin
    with it.

    The object of exactly that name stands alone, under its last part; else what lies below it as a folder; else what
    begins like it. Objects that end in ``/`` only mark a folder.
    """
    if prefix in keys and not prefix.endswith("/"):
        return {prefix: prefix.rpartition("/")[2]}
    files = [key for key in keys if not key.endswith("/")]
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    below = [key for key in files if key.startswith(folder)]
    start = len(folder) if below else prefix.rfind("/") + 1
    return {key: key[start:] for key in below or files}


def shares(keys: Sequence[str], hosts: int) -> list[list[str]]:
    """Which host gets which of the keys, when they are shared out."""
    ordered = sorted(keys)
    return [ordered[host::hosts] for host in range(hosts)]


def input_config(script: Script) -> dict[str, Any]:
    """The content of ``inputdataconfig.json``."""
    found = {}
    for name, channel in script.channels.items():
        found[name] = {
            "TrainingInputMode": "File",
            "S3DistributionType": "ShardedByS3Key" if channel.sharded else "FullyReplicated",
            "RecordWrapperType": channel.record_wrapper,
        }
        if channel.content_type:
            found[name]["ContentType"] = channel.content_type
    return found


def processing_config(script: Script) -> dict[str, Any]:
    """The content of ``processingjobconfig.json``."""
    return {
        "ProcessingJobName": script.name,
        "Environment": script.environment,
        "AppSpecification": {
            "ImageUri": script.image,
            "ContainerEntrypoint": list(script.entrypoint) or None,
            "ContainerArguments": list(script.arguments) or None,
        },
        "ProcessingInputs": [
            {
                "InputName": name,
                "S3Input": {
                    "LocalPath": channel.path or f"{ROOT}/input/data/{name}",
                    "S3Uri": channel.uri,
                    "S3DataType": channel.source,
                    "S3InputMode": "File",
                    "S3DataDistributionType": "ShardedByS3Key" if channel.sharded else "FullyReplicated",
                    "S3CompressionType": "None",
                },
            }
            for name, channel in script.channels.items()
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": name,
                    "S3Output": {"LocalPath": target.path, "S3Uri": target.uri, "S3UploadMode": "EndOfJob"},
                }
                for name, target in script.outputs.items()
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": script.hosts, "InstanceType": script.machine, "VolumeSizeInGB": 30}
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": int(script.timeout_seconds)},
    }


def cache_facts(script: Script, tree: str, environment: str, channels: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a script's result may depend on, channels by content. The job's name is left out, and where its
    results go: addresses that hold an execution's id would make every result one of a kind."""
    plain: dict[str, Any] = msgspec.to_builtins(script)
    for name in ("name", "code", "tree", "timeout_seconds", "output_uri", "role"):
        plain.pop(name, None)
    plain["outputs"] = {name: target.path for name, target in script.outputs.items()}
    plain["channels"] = {
        name: {**{key: value for key, value in channel.items() if key != "uri"}, "content": channels[name]}
        for name, channel in (plain.get("channels") or {}).items()
    }
    return {"script": plain, "tree": tree, "environment": environment}
