"""``loop.toml`` as values: what a project's loop consists of.

The names below are the file's keys. Every table may be left out except ``[project]`` and ``[model]``; a default is
what a newcomer would expect, and nothing retrains by itself until ``[retrain] enabled = true``.
"""

from typing import Any, Literal

import msgspec

COMPILE_TOLERANCE = 1e-6


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of loop.toml: unknown keys are mistakes."""


class Project(_Table, frozen=True):
    """``[project]``"""

    name: str
    description: str = ""


class Checks(_Table, frozen=True):
    """``[checks]``: commands that run on every push before anything else; argument lists are split as a shell would."""

    commands: tuple[str, ...] = ()
    timeout_seconds: float = 600


class PipelineTable(_Table, frozen=True):
    """``[pipeline]``"""

    file: str = "pipeline.py"
    name: str | None = None  # needed only when the file holds several pipelines
    max_parallel: int = 4
    parameters: dict[str, Any] = {}  # instead of the defaults in the code
    cache: bool = True


class EnvironmentTable(_Table, frozen=True):
    """``[environment]``"""

    requirements: str = "requirements.txt"
    preload: tuple[str, ...] = ()  # imported once in the forkserver, so that jobs start at once


class Data(_Table, frozen=True):
    """``[data.NAME]``: a data asset that comes with the project."""

    path: str


class Branch(_Table, frozen=True):
    """``[branches."PATTERN"]``: what a push to a branch moves. ``*`` matches any text and stands for {branch}."""

    model: str | None = None
    endpoint: str | None = None  # "" deploys nothing
    parameters: dict[str, Any] = {}


class Model(_Table, frozen=True):
    """``[model]``"""

    name: str
    handler: Literal["predict", "joblib", "onnx"] = "predict"
    compile: Literal["", "onnx"] = ""  # "" serves the model as it is
    compile_tolerance: float = COMPILE_TOLERANCE  # how far a number of the compiled form may be from the original's
    description: str = ""


class Gate(_Table, frozen=True):
    """``[gate]``: what a version must show before it may be approved or deployed."""

    mode: Literal["enforce", "advisory", "off"] = "enforce"
    test: str = ""  # the fixed test asset, NAME or NAME:VERSION
    label: str = ""  # its column with the truth
    positive: Any = None  # the positive class of a binary problem
    metric: str = "accuracy"
    better_than_champion: Literal["required", "not_worse", "off"] = "not_worse"
    alpha: float = 0.05
    thresholds: dict[str, float] = {}
    margin: dict[str, float] = {}
    slices: dict[str, dict[str, float]] = {}  # "column=value" -> thresholds
    min_rows: int = 30


class Approval(_Table, frozen=True):
    """``[approval]``"""

    policy: Literal["manual", "auto"] = "manual"  # auto: approved by policy when the gate passes
    four_eyes: bool = False  # the approver must not be the one who asked


class EndpointTable(_Table, frozen=True):
    """``[endpoint]``"""

    name: str
    deploy_on_approval: bool = True
    instances: int = 1
    capture: float = 1.0  # share of requests whose body and answer are kept
    auth: bool = True
    timeout_seconds: float = 30
    max_concurrent: int = 256  # of each version; more wait
    queue_seconds: float = 1.0  # how long a request may wait for its turn
    keep_warm_seconds: float = 3600
    memory_mb: int | None = None  # of each server; the platform's job_memory_mb by default
    threads: int = 1  # of numeric libraries in each server
    sticky: str = ""  # a header; requests with the same value of it are answered by the same variant


class ScalingTable(_Table, frozen=True):
    """``[scaling]``: how many servers each version gets that takes traffic. Without it their number is fixed."""

    min: int = 1  # 0: the last one stops when nobody asks, and the next request starts it
    max: int = 1
    target_in_flight: float | None = None  # requests in flight per server, on average
    target_latency_ms: float | None = None  # p95
    target_per_minute: float | None = None  # requests a minute per server
    scale_out_cooldown_seconds: float = 15
    scale_in_cooldown_seconds: float = 120
    idle_seconds: float = 300  # with min = 0
    cold_start_seconds: float = 30  # how long a request waits for a server that starts


class MultiModelTable(_Table, frozen=True):
    """The setting ``multi_model`` of an endpoint: it serves many models, each request names its own."""

    memory_mb: int  # of all its servers together
    follow: tuple[str, ...] = ()  # patterns of model names whose newest Approved version is served by itself
    idle_seconds: float = 3600  # a model that nobody asked for so long is put down
    cold_start_seconds: float = 30  # how long a request waits for its model


class MultiModelEndpoint(MultiModelTable, frozen=True, kw_only=True):
    """``[[multi_model]]``: an endpoint of the project that serves many models."""

    name: str
    capture: float = 1.0
    auth: bool = True
    timeout_seconds: float = 30
    max_concurrent: int = 256  # of each model; more wait
    queue_seconds: float = 1.0
    threads: int = 1  # of numeric libraries in each server


class RolloutTable(_Table, frozen=True):
    """``[rollout]``: how traffic moves, and the built-in alarms that turn it back."""

    strategy: Literal["canary", "linear", "rolling", "blue-green", "all-at-once"] = "canary"
    steps: tuple[float, ...] = (5.0, 50.0)  # canary: percent; 100 follows
    step_percent: float = 10  # linear
    batch: int = 1  # rolling: so many servers are replaced at a time
    bake_seconds: float = 60
    min_requests: int = 0  # of the new version in each step before it may go on
    max_error_rate: float = 0.05  # 5xx share of the new version
    max_latency_ratio: float = 2.0  # its p99 against the predecessor's
    max_p99_ms: float | None = None
    start_timeout_seconds: float = 120
    max_seconds: float | None = None  # of the whole rollout; one that is not over by then turns back


class ComparisonTable(_Table, frozen=True):
    """``[comparison]``: at its first step a rollout waits until one of two versions is shown to be better."""

    metric: Literal["", "error_rate", "latency", "accuracy", "label_rate", "mae"] = ""  # empty: no comparison
    alpha: float = 0.05  # how often, at most, a verdict is wrong, however long it is waited for
    min_effect: float = 0.0  # a difference that does not matter, in the metric's unit
    slow_ms: float = 100  # latency: the share of requests that take longer is compared
    max_seconds: float = 86400
    on_better: Literal["promote", "continue"] = "promote"  # all traffic at once, or the next step
    on_undecided: Literal["back", "continue"] = "back"  # after max_seconds


class CaseTable(_Table, frozen=True):
    """``[[tests.cases]]``, or a line of a file of cases: a request and the answer that is expected."""

    request: Any  # text is sent as it is, anything else as JSON
    expected: Any  # a list alone stands for the predictions
    name: str = ""
    content_type: str = ""  # text needs it; JSON is application/json


class CallTable(_Table, frozen=True):
    """``[[tests.calls]]``: a request, and what must hold of its answer."""

    body: Any = None
    content_type: str = ""
    path: str = ""  # /functions/NAME; empty is the endpoint itself
    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    headers: dict[str, str] = {}
    status: int = 200
    max_ms: float | None = None
    json: dict[str, Any] = {}  # "predictions[0].score" -> a value, or {min = ..., max = ...}
    answer_headers: dict[str, str] = {}  # name -> value; * matches any text


class EndpointTest(_Table, frozen=True):
    """``[[tests]]``: what a version has to show behind the endpoint before traffic moves to it."""

    name: str
    kind: Literal["golden", "call", "load"]
    when: Literal["staging", "every"] | None = None  # every step, or (load) only before the first
    timeout_seconds: float = 60  # for the whole test
    # golden
    cases: tuple[CaseTable, ...] = ()
    file: str = ""  # of the project: one case a line
    absolute: float = 0.0  # how far a number may be off; the larger of the two counts
    relative: float = 1e-6
    ignore: tuple[str, ...] = ()  # parts of the answer that do not matter: "predictions[].time"
    min_share: float = 1.0  # of the cases that must come out as expected
    # call
    calls: tuple[CallTable, ...] = ()
    # load
    body: Any = None
    content_type: str = ""
    rate: float = 0.0  # requests/s, whatever the answers take; 0: each connection asks again when it is answered
    connections: int = 8
    seconds: float = 5.0
    max_p50_ms: float | None = None
    max_p99_ms: float | None = None
    max_error_share: float = 0.0
    min_rate: float | None = None  # good answers/s


class FunctionTable(_Table, frozen=True):
    """``[[functions]]``: ``handler(event, context)`` of a file, behind ``/functions/NAME``."""

    name: str
    file: str
    handler: str = "handler"
    code: tuple[str, ...] | None = None  # patterns of files that it sees beside its own; all but loop.toml
    endpoints: tuple[str, ...] = ()  # those that it may ask
    timeout_seconds: float = 30
    auth: bool = True
    instances: int = 1  # each answers one request at a time
    memory_mb: int | None = None
    network: bool = False
    capture: float = 1.0


class MonitorTable(_Table, frozen=True):
    """``[monitor]``: drift and quality."""

    window_seconds: float = 3600
    rule: str = "default"  # or e.g. "psi > 0.1", taken literally
    psi: float = 0.1  # materiality of the default rule, bias-corrected
    alpha: float = 0.001
    min_rows: int = 100
    features: tuple[str, ...] = ()  # empty: all
    score: bool = True
    every_seconds: float = 60


class AlarmTable(_Table, frozen=True):
    """``[[alarms]]``"""

    name: str
    metric: str  # requests, errors_4xx, errors_5xx, error_rate, latency_ms, drift, psi.FEATURE, accuracy, ...
    threshold: float
    statistic: str = "Average"
    period_seconds: int = 60
    evaluation_periods: int = 1
    datapoints_to_alarm: int | None = None
    comparison: Literal[">", ">=", "<", "<="] = ">"
    missing: Literal["missing", "breaching", "not_breaching", "ignore"] = "missing"
    actions: tuple[Literal["notify", "rollback", "retrain"], ...] = ("notify",)


class Retrain(_Table, frozen=True):
    """``[retrain]``"""

    enabled: bool = False
    cooldown_seconds: float = 86400
    budget: int = 4  # retrainings in budget_window_seconds
    budget_window_seconds: float = 604800
    captured: bool = True  # train on captured rows whose labels have arrived, beside the asset
    asset: str = ""  # the training asset that captured rows extend
    min_rows: int = 100
    parameters: dict[str, Any] = {}


class TriggerTable(_Table, frozen=True):
    """``[[triggers]]``"""

    kind: Literal["cron", "data", "object"]
    name: str = ""
    cron: str = ""  # five fields, UTC
    asset: str = ""
    bucket: str = ""  # object: where, and which keys
    prefix: str = ""
    suffix: str = ""
    every: int = 1  # data, object: after so many new ones
    parameters: dict[str, Any] = {}


class Notification(_Table, frozen=True):
    """``[[notifications]]``"""

    kind: Literal["webhook", "slack", "email"]
    url: str  # the address, of an email
    secret: str = ""  # name of a stored secret that signs; made when absent
    events: tuple[str, ...] = (
        "push.Rejected",
        "execution.Failed",
        "version.*",
        "rollout.*",
        "test_run.Failed",
        "alarm.*",
        "retraining.*",
    )
    endpoint: str = ""  # only what happens to this one; all when empty


class Loop(_Table, frozen=True):
    """The whole file."""

    project: Project
    model: Model
    checks: Checks = Checks()
    pipeline: PipelineTable = PipelineTable()
    environment: EnvironmentTable = EnvironmentTable()
    data: dict[str, Data] = {}
    branches: dict[str, Branch] = {}
    gate: Gate = Gate()
    approval: Approval = Approval()
    endpoint: EndpointTable | None = None
    scaling: ScalingTable | None = None
    rollout: RolloutTable = RolloutTable()
    comparison: ComparisonTable = ComparisonTable()
    monitor: MonitorTable = MonitorTable()
    alarms: tuple[AlarmTable, ...] = ()
    retrain: Retrain = Retrain()
    triggers: tuple[TriggerTable, ...] = ()
    functions: tuple[FunctionTable, ...] = ()
    notifications: tuple[Notification, ...] = ()
    tests: tuple[EndpointTest, ...] = ()
    multi_model: tuple[MultiModelEndpoint, ...] = ()


def to_dict(loop: Loop) -> dict[str, Any]:
    """The plain form that is stored and that ``from_dict`` reads."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(loop))  # lists, not tuples: as it comes back
    return plain


def from_dict(stored: dict[str, Any]) -> Loop:
    """What ``to_dict`` wrote."""
    return msgspec.convert(stored, Loop)


# msgspec 0.22 works out a type when it is first used, and two threads that do so at once break the process (SIGSEGV).
# While this module is imported there is one thread.
msgspec.json.Decoder(Loop)
