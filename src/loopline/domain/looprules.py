"""What the values in ``loop.toml`` may be, and how they must fit together, beyond their types.

Every rule reports through ``say(path, message, cure, level)`` and goes on.
"""

import difflib
import math
import re
import shlex
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from loopline.domain import endpoint_tests, functionrules, names, notifications, rolloutrules, scaling, states
from loopline.domain import multimodelrules as many
from loopline.domain.alarms import LONGEST_SECONDS, percentile_of
from loopline.domain.drift import Rule
from loopline.domain.measures import MEASURES
from loopline.domain.projects import AlarmTable, Loop, TriggerTable
from loopline.domain.tomllines import Path
from loopline.domain.triggers import bucket_mistake, cron_mistake
from loopline.errors import InvalidInput


class Say(Protocol):
    """How a rule reports; ``loopfile`` drops what it has reported already."""

    def __call__(self, path: Path, message: str, cure: str, level: Literal["error", "warning"] = "error") -> None:
        """Report what is wrong at ``path`` and what to write instead."""


class Range(NamedTuple):
    """From ``low`` to ``high``; an open end does not belong to it."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        if self.open_low:
            return f"above {self.low:g} and {'below' if self.open_high else 'at most'} {self.high:g}"
        return f"between {self.low:g} and {self.high:g}"


_POSITIVE = Range(0, open_low=True)
_ONE_UP = Range(1)
_SHARE = Range(0, 1)
_PROBABILITY = Range(0, 1, open_low=True, open_high=True)

# (table, key) -> what the number may be
RANGES: dict[tuple[str, str], Range] = {
    ("checks", "timeout_seconds"): _POSITIVE,
    ("pipeline", "max_parallel"): _ONE_UP,
    ("model", "compile_tolerance"): Range(0, 0.1),
    ("gate", "alpha"): _PROBABILITY,
    ("gate", "min_rows"): _ONE_UP,
    ("endpoint", "instances"): Range(1, 64),
    ("endpoint", "capture"): _SHARE,
    ("endpoint", "timeout_seconds"): Range(0.001, 3600),
    ("endpoint", "max_concurrent"): Range(1, 65536),
    ("endpoint", "queue_seconds"): Range(0, 3600),
    ("endpoint", "keep_warm_seconds"): Range(0),
    ("endpoint", "memory_mb"): Range(64, 1 << 20),
    ("endpoint", "threads"): Range(1, 1024),
    ("scaling", "min"): Range(0, scaling.MAX_SERVERS),
    ("scaling", "max"): Range(1, scaling.MAX_SERVERS),
    ("scaling", "target_in_flight"): _POSITIVE,
    ("scaling", "target_latency_ms"): _POSITIVE,
    ("scaling", "target_per_minute"): _POSITIVE,
    ("scaling", "scale_out_cooldown_seconds"): Range(0, 3600),
    ("scaling", "scale_in_cooldown_seconds"): Range(0, 3600),
    ("scaling", "idle_seconds"): Range(1),
    ("scaling", "cold_start_seconds"): Range(0, 600, open_low=True),
    ("rollout", "bake_seconds"): Range(0),
    ("rollout", "step_percent"): Range(0, 100, open_low=True),
    ("rollout", "batch"): Range(1, 64),
    ("comparison", "alpha"): _PROBABILITY,
    ("comparison", "min_effect"): Range(0),
    ("comparison", "slow_ms"): _POSITIVE,
    ("comparison", "max_seconds"): _POSITIVE,
    ("rollout", "min_requests"): Range(0),
    ("rollout", "max_error_rate"): _SHARE,
    ("rollout", "max_latency_ratio"): _POSITIVE,
    ("rollout", "max_p99_ms"): _POSITIVE,
    ("rollout", "start_timeout_seconds"): _POSITIVE,
    ("rollout", "max_seconds"): _POSITIVE,
    **{key: Range(*bounds) for key, bounds in (functionrules.RANGES | many.RANGES).items()},
    ("tests", "timeout_seconds"): Range(0, 3600, open_low=True),
    ("tests", "absolute"): Range(0),
    ("tests", "relative"): Range(0),
    ("tests", "min_share"): Range(0, 1, open_low=True),
    ("tests", "rate"): Range(0, 1_000_000),
    ("tests", "connections"): Range(1, 1024),
    ("tests", "seconds"): Range(0, endpoint_tests.MAX_LOAD_SECONDS, open_low=True),
    ("tests", "max_p50_ms"): _POSITIVE,
    ("tests", "max_p99_ms"): _POSITIVE,
    ("tests", "max_error_share"): _SHARE,
    ("tests", "min_rate"): _POSITIVE,
    ("monitor", "window_seconds"): _POSITIVE,
    ("monitor", "psi"): _POSITIVE,
    ("monitor", "alpha"): _PROBABILITY,
    ("monitor", "min_rows"): _ONE_UP,
    ("monitor", "every_seconds"): _POSITIVE,
    ("retrain", "cooldown_seconds"): Range(0),
    ("retrain", "budget"): _ONE_UP,
    ("retrain", "budget_window_seconds"): _POSITIVE,
    ("retrain", "min_rows"): _ONE_UP,
    ("alarms", "period_seconds"): Range(1, LONGEST_SECONDS),
    ("alarms", "evaluation_periods"): _ONE_UP,
    ("triggers", "every"): _ONE_UP,
}

_BOUNDS: dict[str, Range] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "brier"), _SHARE),
    **dict.fromkeys(("log_loss", "mae", "mse", "rmse"), Range(0)),
    "r2": Range(-math.inf, 1),
}
# Metric that a gate measures -> what it can be.
QUALITY_METRICS: dict[str, Range] = {name: _BOUNDS.get(name, Range()) for name in MEASURES}
# Metric of an endpoint -> what it can be.
TRAFFIC_METRICS: dict[str, Range] = {
    **dict.fromkeys(("requests", "errors_4xx", "errors_5xx", "latency_ms"), Range(0)),
    "error_rate": _SHARE,
    "drift": Range(0),
    "labels": Range(0),
}
# What labels that arrive late can tell about a running endpoint; the others need scores of a whole data set.
PRODUCTION_METRICS = frozenset(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "mae", "mse", "rmse"))


def check(loop: Loop, present: frozenset[Path], say: Say, files: Collection[str] | None) -> None:
    """Judge the whole loop. ``present``: the paths that the file has; ``files``: see ``loopfile.parse``."""
    _ranges(loop, say)
    _names(loop, say)
    _commands(loop, say)
    _branches(loop, say)
    _compile(loop, say)
    _gate(loop, present, say)
    rolloutrules.check(loop, present, say, deploys=_deploys(loop))
    _scaling(loop, present, say)
    _tests(loop, present, say)
    functionrules.check(loop.functions, files, say)
    many.check(loop.multi_model, loop.endpoint.name if loop.endpoint else None, say)
    for position, alarm in enumerate(loop.alarms):
        _alarm(alarm, ("alarms", position), loop, say)
    _monitor(loop, present, say)
    _retrain(loop, say)
    _triggers(loop, say)
    _notifications(loop, say)
    _files(loop, say, files)


def _tables(loop: Loop) -> Iterator[tuple[Path, Any]]:
    for table in msgspec.structs.fields(loop):
        value = getattr(loop, table.name)
        if isinstance(value, tuple):
            for position, item in enumerate(value):
                yield (table.name, position), item
        elif isinstance(value, msgspec.Struct):
            yield (table.name,), value


def _ranges(loop: Loop, say: Say) -> None:
    for path, table in _tables(loop):
        check_ranges(path, table, say)


def check_ranges(path: Path, table: msgspec.Struct, say: Say) -> None:
    """Judge the numbers of one table, by their keys."""
    for key in table.__struct_fields__:
        allowed = RANGES.get((str(path[0]), key))
        value = getattr(table, key)
        if allowed and value is not None and not allowed.holds(value):
            say((*path, key), f"{key} cannot be {value:g}", f"it must be {allowed}")


def _name(value: str, what: str, path: Path, say: Say) -> None:
    try:
        names.check_name(value, what)
    except InvalidInput as error:
        message, _, cure = error.message.partition(": ")
        say(path, message, cure)


def _names(loop: Loop, say: Say) -> None:
    _name(loop.project.name, "a project", ("project", "name"), say)
    _name(loop.model.name, "a model", ("model", "name"), say)
    if loop.endpoint:
        _name(loop.endpoint.name, "an endpoint", ("endpoint", "name"), say)
    for key in loop.data:
        _name(key, "a data asset", ("data", key), say)
    named: tuple[tuple[str, str, tuple[AlarmTable | TriggerTable, ...]], ...] = (
        ("alarms", "an alarm", loop.alarms),
        ("triggers", "a trigger", loop.triggers),
    )
    for table, what, items in named:
        seen: dict[str, int] = {}
        for position, item in enumerate(items):
            path = (table, position, "name")
            if item.name or table == "alarms":
                _name(item.name, what, path, say)
            if item.name and item.name in seen:
                cure = f"give one of {table}[{seen[item.name]}] and {table}[{position}] another name"
                say(path, f"two {table} are called {item.name!r}", cure)
            seen.setdefault(item.name, position)


def _commands(loop: Loop, say: Say) -> None:
    for position, command in enumerate(loop.checks.commands):
        path = ("checks", "commands", position)
        try:
            words = shlex.split(command)
        except ValueError as error:
            say(path, f"the command {command!r} cannot be split into words: {error}", "close every quote")
            continue
        if not words:
            say(path, "the command is empty", 'write a command such as "python -m pytest tests", or remove it')


def _branches(loop: Loop, say: Say) -> None:
    for pattern, branch in loop.branches.items():
        path = ("branches", pattern)
        if not pattern.strip():
            say(path, "a branch pattern is empty", 'write e.g. [branches."feature/*"]')
        for key in ("model", "endpoint"):
            value = getattr(branch, key)
            if value:
                _name(value.replace("{branch}", "x"), f"a branch's {key}", (*path, key), say)
            elif value == "" and key == "model":
                say((*path, key), "the model's name is empty", "leave the key out to use [model] name")


# -- gate -------------------------------------------------------------------------------------------------------------


def _metric(metric: str, path: Path, say: Say, level: Literal["error", "warning"] = "error") -> Range:
    """What the metric can be; reports an unknown one."""
    if metric not in QUALITY_METRICS:
        close = difflib.get_close_matches(metric, QUALITY_METRICS, 1)
        cure = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(QUALITY_METRICS)}"
        say(path, f"there is no metric {metric!r}", cure, level)
    return QUALITY_METRICS.get(metric, Range())


def _thresholds(thresholds: dict[str, float], path: Path, say: Say) -> None:
    for metric, threshold in thresholds.items():
        allowed = _metric(metric, (*path, metric), say)
        if not allowed.holds(threshold):
            say((*path, metric), f"{metric} can never be {threshold:g}", f"a threshold for it must be {allowed}")


def _compile(loop: Loop, say: Say) -> None:
    if not loop.model.compile:
        return
    path = ("model", "compile")
    if loop.model.handler != "joblib":
        message = f"only a model that is served by itself can be compiled, not by handler {loop.model.handler!r}"
        say(path, message, 'write handler = "joblib", or leave compile out')
    if not loop.gate.test or not loop.gate.label:
        message = "the compiled form is compared with the model on the gate's test asset, which [gate] does not name"
        say(path, message, "write test and label in [gate], or leave compile out")


def _gate(loop: Loop, present: frozenset[Path], say: Say) -> None:
    gate = loop.gate
    _metric(gate.metric, ("gate", "metric"), say)
    _thresholds(gate.thresholds, ("gate", "thresholds"), say)
    for metric, margin in gate.margin.items():
        path = ("gate", "margin", metric)
        _metric(metric, path, say)
        if margin < 0:
            say(path, f"a margin of {margin:g} is negative", "write how much worse it may be, 0 or more")
    for key, thresholds in gate.slices.items():
        path = ("gate", "slices", key)
        if not re.fullmatch(r"[^=]+=[^=].*", key):
            say(path, f"the slice {key!r} is not column=value", 'write e.g. [gate.slices."sex=f"] accuracy = 0.9')
        _thresholds(thresholds, path, say)
    if ("gate",) not in present or gate.mode == "off":
        return
    if not gate.test:
        say(("gate",), "[gate] has no test data", 'add test = "NAME", a table [data.NAME], and label = "COLUMN"')
        return
    if _asset(gate.test, ("gate", "test"), loop, say) and not gate.label:
        say(("gate", "label"), "[gate] does not say which column of its test data is the truth", 'add label = "COLUMN"')


def _asset(reference: str, path: Path, loop: Loop, say: Say) -> bool:
    """Whether ``NAME`` or ``NAME:VERSION`` is well-formed; warns when the project has no such data."""
    try:
        name, _ = names.split_version(reference, "a data asset")
    except InvalidInput as error:
        say(path, error.message, "write NAME or NAME:VERSION")
        return False
    if name not in loop.data:
        close = difflib.get_close_matches(name, loop.data, 1)
        cure = f"did you mean {close[0]!r}?" if close else f'add [data.{name}] with path = "..."'
        say(path, f"no [data.{name}] comes with this project", f"{cure} or upload it: loopline assets put", "warning")
    return True


# -- traffic ----------------------------------------------------------------------------------------------------------


def _deploys(loop: Loop) -> bool:
    return loop.endpoint is not None or any(branch.endpoint for branch in loop.branches.values())


def _tests(loop: Loop, present: frozenset[Path], say: Say) -> None:
    for position, test in enumerate(loop.tests):
        _name(test.name, "a test", ("tests", position, "name"), say)
    endpoint_tests.check(loop.tests, present, say)
    if loop.tests and not _deploys(loop):
        say(("tests",), "[[tests]] has nothing to test: there is no endpoint", 'add [endpoint] with name = "..."')


def _scaling(loop: Loop, present: frozenset[Path], say: Say) -> None:
    table = loop.scaling
    if table is None:
        return
    if table.min > table.max:
        say(("scaling", "min"), f"min is {table.min}, max {table.max}", "write a max that is not below min")
    targets = (table.target_in_flight, table.target_latency_ms, table.target_per_minute)
    if table.max > max(table.min, 1) and targets == (None, None, None):
        message = f"[scaling] says nothing of when there should be more than {max(table.min, 1)}"
        say(("scaling", "max"), message, "add target_in_flight = 8 or target_latency_ms = 100")
    if ("scaling",) in present and not _deploys(loop):
        say(("scaling",), "[scaling] scales nothing: there is no endpoint", 'add [endpoint] with name = "..."')


def _alarm(alarm: AlarmTable, path: Path, loop: Loop, say: Say) -> None:
    try:
        percentile_of(alarm.statistic)
    except InvalidInput as error:
        message, _, cure = error.message.partition(": ")
        say((*path, "statistic"), message, cure)
    needed = alarm.datapoints_to_alarm
    if needed is not None and not 1 <= needed <= alarm.evaluation_periods:
        cure = f"it must be between 1 and evaluation_periods ({alarm.evaluation_periods})"
        say((*path, "datapoints_to_alarm"), f"datapoints_to_alarm cannot be {needed}", cure)
    if alarm.period_seconds * alarm.evaluation_periods > LONGEST_SECONDS:
        cure = f"period_seconds x evaluation_periods may be {LONGEST_SECONDS} at most"
        say((*path, "evaluation_periods"), "the alarm looks back more than a day", cure)
    _alarm_metric(alarm, path, say)
    if not alarm.actions:
        say((*path, "actions"), f"the alarm {alarm.name!r} does nothing", 'write actions = ["notify"]', "warning")
    if "retrain" in alarm.actions and not loop.retrain.enabled:
        message = f"the alarm {alarm.name!r} asks for retraining, which is off"
        say((*path, "actions"), message, "write [retrain] enabled = true, or remove the action", "warning")
    if not _deploys(loop):
        message = f"the alarm {alarm.name!r} has no endpoint to watch"
        say(path, message, 'add [endpoint] with name = "..."', "warning")


def _alarm_metric(alarm: AlarmTable, path: Path, say: Say) -> None:
    known = TRAFFIC_METRICS | {metric: _BOUNDS[metric] for metric in sorted(PRODUCTION_METRICS)}
    family, dot, feature = alarm.metric.partition(".")
    if dot and family in ("psi", "drift"):
        if not feature:
            say((*path, "metric"), f"{alarm.metric!r} names no feature", "write e.g. psi.age")
        allowed = Range(0)
    elif alarm.metric in known:
        allowed = known[alarm.metric]
    else:
        close = difflib.get_close_matches(alarm.metric, known, 1)
        cure = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}, psi.FEATURE"
        what = "only a gate measures" if alarm.metric in QUALITY_METRICS else "nothing measures"
        say((*path, "metric"), f"{what} {alarm.metric!r}", cure)
        return
    if alarm.statistic in ("Sum", "SampleCount"):
        return
    if not _can_fire(alarm, allowed):
        message = (
            f"the alarm {alarm.name!r} can never fire: {alarm.metric} is never {alarm.comparison} {alarm.threshold:g}"
        )
        say((*path, "threshold"), message, f"{alarm.metric} is {allowed}")
    elif alarm.metric in PRODUCTION_METRICS and alarm.comparison in (">", ">=") and allowed.high == 1:
        message = f"the alarm {alarm.name!r} fires when {alarm.metric} is good"
        say((*path, "comparison"), message, 'write comparison = "<"', "warning")


def _can_fire(alarm: AlarmTable, allowed: Range) -> bool:
    return {
        ">": alarm.threshold < allowed.high,
        ">=": alarm.threshold <= allowed.high,
        "<": alarm.threshold > allowed.low,
        "<=": alarm.threshold >= allowed.low,
    }[alarm.comparison]


def _monitor(loop: Loop, present: frozenset[Path], say: Say) -> None:
    if loop.monitor.rule != "default":
        try:
            Rule.parse(loop.monitor.rule)
        except InvalidInput as error:
            message, _, cure = error.message.partition(": ")
            say(("monitor", "rule"), message, cure)
    if ("monitor",) in present and not _deploys(loop) and not loop.multi_model:
        message = "[monitor] has nothing to watch: there is no endpoint"
        say(("monitor",), message, 'add [endpoint] with name = "..."', "warning")
    if ("monitor",) in present and loop.endpoint and loop.endpoint.capture == 0:
        message = "[monitor] sees no rows: the endpoint keeps none"
        say(("endpoint", "capture"), message, "write capture = 1.0", "warning")


def _retrain(loop: Loop, say: Say) -> None:
    retrain = loop.retrain
    if retrain.asset:
        _asset(retrain.asset, ("retrain", "asset"), loop, say)
    if not retrain.enabled:
        return
    if retrain.captured and not retrain.asset:
        message = "[retrain] does not say which training data the captured rows extend"
        say(("retrain", "asset"), message, 'add asset = "NAME" of a [data.NAME], or captured = false')
    if retrain.captured and loop.endpoint and loop.endpoint.capture == 0:
        message = "[retrain] trains on captured rows, but the endpoint keeps none"
        say(("endpoint", "capture"), message, "write capture = 1.0, or [retrain] captured = false")


# -- triggers and messages --------------------------------------------------------------------------------------------


def _triggers(loop: Loop, say: Say) -> None:
    for position, trigger in enumerate(loop.triggers):
        path = ("triggers", position)
        if trigger.kind == "cron":
            mistake = cron_mistake(trigger.cron) if trigger.cron else "a cron trigger without an expression"
            if mistake:
                cure = 'write minute hour day month weekday, e.g. cron = "0 3 * * 1" for Mondays at 3:00 UTC'
                say((*path, "cron"), mistake, cure)
        elif trigger.kind == "object":
            if mistake := bucket_mistake(trigger):
                say((*path, "bucket"), mistake, 'write bucket = "NAME", and prefix = "incoming/" for a part of it')
        elif not trigger.asset:
            say((*path, "asset"), "a data trigger without data", 'add asset = "NAME"')
        else:
            _asset(trigger.asset, (*path, "asset"), loop, say)


def _notifications(loop: Loop, say: Say) -> None:
    for position, message in enumerate(loop.notifications):
        path = ("notifications", position)
        try:
            url = urlsplit(message.url)
            good = url.scheme in ("http", "https") and bool(url.hostname)
        except ValueError:
            good = False
        if message.kind == "email":
            good = notifications.is_mail(message.url)
        if not good:
            what, cure = ("an e-mail", "NAME@HOST") if message.kind == "email" else ("a web", "https://HOST/PATH")
            say((*path, "url"), f"{message.url!r} is not {what} address", f"write {cure}")
        for number, pattern in enumerate(message.events):
            noun, dot, _ = pattern.partition(".")
            if not dot or (noun != "*" and noun not in states.MOVES):
                close = difflib.get_close_matches(noun, states.MOVES, 1)
                cure = f"did you mean {close[0]}.*?" if close else "write e.g. version.* or execution.Failed"
                say((*path, "events", number), f"no event is called {pattern!r}", cure)


# -- files ------------------------------------------------------------------------------------------------------------


def _files(loop: Loop, say: Say, files: Collection[str] | None) -> None:
    wanted: list[tuple[Path, str, str]] = [
        (("pipeline", "file"), loop.pipeline.file, "write a pipeline with @step and @pipeline"),
        (("environment", "requirements"), loop.environment.requirements, "list the project's packages in it"),
    ]
    if loop.model.handler == "predict":
        cure = 'write load(model_dir) and predict(model, batch) in it, or [model] handler = "joblib"'
        wanted.append((("model", "handler"), "predict.py", cure))
    cure = 'add the file: one {"request": ..., "expected": ...} a line'
    wanted += [(("tests", n, "file"), test.file, cure) for n, test in enumerate(loop.tests) if test.file]
    wanted += [(("data", name, "path"), data.path, "add the file") for name, data in loop.data.items()]
    folders = {file.rpartition("/")[0] for file in files or ()}
    for path, file, cure in wanted:
        parts = file.rstrip("/").split("/")
        if file.startswith("/") or not all(parts) or ".." in parts or "\\" in file or "\0" in file:
            say(path, f"{file!r} is not a path in the project", "write a relative path without '..'")
        elif files is not None and "/".join(part for part in parts if part != ".") not in files:
            is_folder = any(f"{folder}/".startswith("/".join(parts) + "/") for folder in folders)
            if not (path[0] == "data" and is_folder):
                level: Literal["error", "warning"] = "warning" if path[0] == "environment" else "error"
                say(path, f"there is no file {file}", cure, level)
