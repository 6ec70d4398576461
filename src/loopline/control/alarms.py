"""Alarms: what is watched, and what is done once when an alarm begins.

Metrics of an endpoint (or of one ``variant``): ``requests``, ``errors_4xx`` and ``errors_5xx`` are counts of a period,
whatever the statistic; ``error_rate`` is the share of 5xx; ``latency_ms`` takes every statistic; ``drift`` is how many
features drifted, ``psi.F`` and ``drift.F`` speak of one feature; ``accuracy`` and its kin rest on the labels that
arrived in the period, ``labels`` counts them. A period without any of it has no datapoint. With a ``namespace`` the
metric is one of `control.metrics`, found by its ``dimensions``, and no endpoint is needed.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import datapoints, events, metrics, monitoring, publishing, retrain_requests
from loopline.control.context import SYSTEM, Context
from loopline.domain import alarmlint, names
from loopline.domain import alarms as rules
from loopline.domain import metrics as published
from loopline.domain.access import Actor
from loopline.domain.projects import AlarmTable, Loop
from loopline.domain.states import AlarmStatus
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import alarms

ACTIONS = ("notify", "rollback", "retrain")
TOPIC = "topic:"  # and a topic's name: its subscribers are told, whatever events it carries
HELD_SECONDS = {False: 10.0, True: 60.0}  # how long a state set by hand stays; longer for periods from a minute
DRIFT_PERIOD_SECONDS = 5
FROM_FILE = "loop.toml"
BY_HAND = "api"
SETTLE_SECONDS = 2.0  # a period is judged so long after its end: its last requests are reported within a second
SELDOM_SECONDS = 10.0  # alarms with periods above a minute are looked at this often
_FIELDS = (
    "metric",
    "threshold",
    "statistic",
    "period_seconds",
    "evaluation_periods",
    "datapoints_to_alarm",
    "comparison",
    "missing",
)


def rule_of(definition: dict[str, Any]) -> rules.Alarm:
    """The rule inside a stored definition."""
    return rules.Alarm(**{field: definition[field] for field in (*_FIELDS, "low_samples") if field in definition})


# -- by hand ----------------------------------------------------------------------------------------------------------


def put(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    metric: str,
    threshold: float,
    endpoint: str | None = None,
    namespace: str | None = None,
    dimensions: dict[str, str] | None = None,
    unit: str | None = None,
    statistic: str = "Average",
    period_seconds: int = 60,
    evaluation_periods: int = 1,
    datapoints_to_alarm: int | None = None,
    comparison: str = ">",
    missing: str = "missing",
    low_samples: str = "evaluate",
    actions: list[str] | None = None,
    ok_actions: list[str] | None = None,
    insufficient_data_actions: list[str] | None = None,
    actions_enabled: bool = True,
    description: str | None = None,
    variant: str | None = None,
    enabled: bool = True,
) -> dict[str, Any]:
    """Create an alarm, or replace the definition of the one of this name, which keeps its state.

    It watches a metric of an ``endpoint``, or with ``namespace`` and ``dimensions`` one of `control.metrics`, of which
    ``unit`` leaves the points of other units out. Actions: notify, rollback, retrain, ``topic:NAME``.
    """
    names.check_label(name, "an alarm")
    definition = {
        "metric": metric,
        "threshold": threshold,
        "statistic": statistic,
        "period_seconds": period_seconds,
        "evaluation_periods": evaluation_periods,
        "datapoints_to_alarm": datapoints_to_alarm,
        "comparison": comparison,
        "missing": missing,
        "variant": variant,
        "source": BY_HAND,
    }
    more = {
        "namespace": namespace,
        "dimensions": dict(dimensions or {}) or None,
        "unit": unit,
        "low_samples": None if low_samples == "evaluate" else low_samples,
        "ok_actions": ok_actions or None,
        "insufficient_data_actions": insufficient_data_actions or None,
        "actions_enabled": None if actions_enabled else False,
        "description": description or None,
    }
    definition.update({key: value for key, value in more.items() if value is not None})
    wanted = list(actions) if actions is not None else ["notify"]
    for each in (*wanted, *(ok_actions or ()), *(insufficient_data_actions or ())):
        _check_action(each)
    rule_of(definition)
    if namespace is None:
        datapoints.check_metric(metric)
    else:
        published.check_metric(namespace, metric, dimensions or {})
        metrics.check_period(period_seconds)
    with ctx.db.transaction() as tx:
        there = records.find(tx, "alarm", name=name)
        if there is not None and there["definition"].get("source") == FROM_FILE:
            raise Conflict(f"the alarm {name!r} comes from loop.toml of {there['project']!r}; change it there")
        watched = _watched(tx, endpoint, namespace, dimensions or {})
        values = {**watched, "definition": definition, "actions": wanted}
        return _ensure(tx, name, actor.name, {**values, "enabled": enabled})[0]


def _check_action(action: str) -> None:
    topic = action.removeprefix(TOPIC)
    if action in ACTIONS or (topic != action and names.check_name(topic, "a topic")):
        return
    raise InvalidInput(f"{action!r} is not an action; actions: {', '.join(ACTIONS)}, {TOPIC}NAME")


def _watched(tx: Tx, endpoint: str | None, namespace: str | None, dimensions: dict[str, str]) -> dict[str, Any]:
    """The endpoint that an alarm belongs to, and its project; a metric of a namespace need not have one (yet)."""
    if namespace is not None and endpoint is None:
        named = dimensions.get("endpoint") if namespace == published.BUILT_IN else None
        row = records.find(tx, "endpoint", name=named) if named else None
        return {"endpoint": named, "project": row["project"] if row else None}
    if endpoint is None:
        raise InvalidInput("say which endpoint the alarm watches, or give the namespace of its metric")
    return {"endpoint": endpoint, "project": monitoring.endpoint_row(tx, endpoint)["project"]}


def _ensure(tx: Tx, name: str, actor: str, values: dict[str, Any]) -> tuple[Row, str | None]:
    """The alarm brought to these values, and what that took: created, changed or None."""
    there = records.find(tx, "alarm", name=name)
    if there is None:
        return records.create(tx, "alarm", actor=actor, name=name, since_at=tx.now, **values), "created"
    before = {**there, "definition": {**(there["definition"] or {})}}
    before["definition"].pop("held_until", None)
    changed = {key: value for key, value in values.items() if before[key] != value}
    if changed:
        records.set(tx, "alarm", there["id"], actor=actor, **changed)
    return {**there, **changed}, "changed" if changed else None


def list_(
    ctx: Context, actor: Actor, *, project: str | None = None, endpoint: str | None = None, status: str | None = None
) -> dict[str, Any]:
    """Alarms by name."""
    query = sa.select(alarms).order_by(alarms.c.name)
    for column, value in ((alarms.c.project, project), (alarms.c.endpoint, endpoint), (alarms.c.status, status)):
        if value is not None:
            query = query.where(column == value)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query), "next": None}


def alarm_row(tx: Tx, name: str) -> Row:
    """The alarm of this name; raises ``NotFound``."""
    row = records.find(tx, "alarm", name=name)
    if row is None:
        raise NotFound(f"there is no alarm {name!r}")
    return row


def show(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """An alarm, with what it sees now: the datapoints that decide and the reason in words."""
    now = ctx.clock.now() - SETTLE_SECONDS
    with ctx.db.read() as tx:
        row = alarm_row(tx, name)
        rule = rule_of(row["definition"])
        seen = rules.evaluate(rule, datapoints.of(tx, row, rule, now), AlarmStatus(row["status"]), now=now)
    return {**row, "evaluation": seen.to_dict()}


def history(ctx: Context, actor: Actor, *, name: str, limit: int = 50) -> dict[str, Any]:
    """What happened to an alarm, the newest first: changes of state, actions taken, and actions refused with why."""
    with ctx.db.read() as tx:
        row = alarm_row(tx, name)
    return events.list_(ctx, actor, noun="alarm", record=row["id"], limit=limit)


def lint(ctx: Context, actor: Actor, *, endpoint: str | None = None) -> dict[str, Any]:
    """What is wrong with alarms that can be told from their definitions (`domain.alarmlint`): ``alarm``, ``code``,
    ``message``, and the fields to ``change``."""
    rows = list_(ctx, actor, endpoint=endpoint)["items"]
    return {
        "items": [
            {"alarm": row["name"], "code": found.code, "message": found.message, "change": found.changes}
            for row in rows
            for found in alarmlint.lint(row["definition"])
        ],
        "next": None,
    }


def delete(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """Remove an alarm; its events stay. One from loop.toml would come back, so that it is refused."""
    with ctx.db.transaction() as tx:
        row = alarm_row(tx, name)
        if row["definition"].get("source") == FROM_FILE:
            raise Conflict(f"the alarm {name!r} comes from loop.toml of {row['project']!r}; remove it there")
        records.delete(tx, "alarm", row["id"], actor=actor.name)
    return row


# -- from loop.toml ---------------------------------------------------------------------------------------------------


def apply_alarms(ctx: Context, tx: Tx, *, actor: str, project: str, endpoint: str, loop: Loop) -> list[dict[str, Any]]:
    """Bring an endpoint's alarms to loop.toml, and its built-in drift alarm with them; gives what changed.

    An alarm is called ``ENDPOINT-NAME``, since several branches' endpoints have the same file. Those that have not
    changed keep their state; those that are gone from the file are removed; those made by hand are left alone.
    """
    changes = []
    wanted = {alarm_name(endpoint, each.name): _from_table(each) for each in loop.alarms}
    if loop.endpoint is not None and loop.endpoint.capture > 0:
        wanted.setdefault(f"{endpoint}-drift", _drift_alarm(loop))
    for name, (definition, actions) in wanted.items():
        there = records.find(tx, "alarm", name=name)
        if there is not None and there["endpoint"] != endpoint:
            raise Conflict(f"there is an alarm {name!r} of the endpoint {there['endpoint']!r}; choose another name")
        values = {"project": project, "endpoint": endpoint, "definition": definition, "actions": actions}
        _, change = _ensure(tx, name, actor, {**values, "enabled": True})
        if change:
            changes.append({"noun": "alarm", "name": name, "change": change})
    for row in tx.rows(sa.select(alarms).where(alarms.c.endpoint == endpoint)):
        if row["name"] not in wanted and row["definition"].get("source") == FROM_FILE:
            records.delete(tx, "alarm", row["id"], actor=actor, reason="no longer in loop.toml")
            changes.append({"noun": "alarm", "name": row["name"], "change": "deleted"})
    return changes


def alarm_name(endpoint: str, name: str) -> str:
    """What an alarm of loop.toml is called in this installation."""
    return name if name.startswith(f"{endpoint}-") else f"{endpoint}-{name}"


def _from_table(table: AlarmTable) -> tuple[dict[str, Any], list[str]]:
    definition = {field: getattr(table, field) for field in _FIELDS}
    rule_of(definition)
    return {**definition, "variant": None, "source": FROM_FILE}, list(table.actions)


def _drift_alarm(loop: Loop) -> tuple[dict[str, Any], list[str]]:
    """Fires as soon as a window's report names a feature; between two reports it keeps its state."""
    table = AlarmTable(
        name="drift",
        metric="drift",
        threshold=1,
        statistic="Maximum",
        period_seconds=DRIFT_PERIOD_SECONDS,
        comparison=">=",
        missing="ignore",
        actions=("notify", "retrain") if loop.retrain.enabled else ("notify",),
    )
    return _from_table(table)


# -- every second -----------------------------------------------------------------------------------------------------


def evaluate(ctx: Context) -> int:
    """Tick: look at every enabled alarm; gives how many changed their state. Actions are taken on the change only."""
    now = ctx.clock.now() - SETTLE_SECONDS
    looked: dict[str, float] = ctx.cache.setdefault("alarms_looked_at", {})
    changes: list[tuple[Row, rules.Evaluation]] = []
    with ctx.db.read() as tx:
        rows = tx.rows(sa.select(alarms).where(alarms.c.enabled.is_(True)).order_by(alarms.c.name))
        for row in rows:
            rule = rule_of(row["definition"])
            if row["definition"].get("held_until", 0.0) > tx.now:
                continue
            if rule.period_seconds > 60 and now - looked.get(row["id"], 0.0) < SELDOM_SECONDS:
                continue
            looked[row["id"]] = now
            state = AlarmStatus(row["status"])
            seen = rules.evaluate(rule, datapoints.of(tx, row, rule, now), state, now=now)
            if seen.changed:
                changes.append((row, seen))
    for row, seen in changes:
        _change(ctx, row, seen)
    return len(changes)


def _change(ctx: Context, row: Row, seen: rules.Evaluation) -> None:
    try:
        with ctx.db.transaction(durable=True) as tx:
            _move(tx, row, seen, actor=SYSTEM.name)
    except (Conflict, NotFound):
        return  # it was changed or removed at the same moment; the next tick looks again


def _move(tx: Tx, row: Row, seen: rules.Evaluation, *, actor: str, **values: Any) -> Row:
    """Change an alarm's state and do what that asks for."""
    moved = records.move(
        tx,
        "alarm",
        row["id"],
        seen.state,
        actor=actor,
        reason=seen.reason,
        since_at=tx.now,
        evaluated_at=tx.now,
        **values,
    )
    definition = moved["definition"] or {}
    wanted = {
        AlarmStatus.ALARM: moved["actions"],
        AlarmStatus.OK: definition.get("ok_actions"),
        AlarmStatus.INSUFFICIENT_DATA: definition.get("insufficient_data_actions"),
    }[seen.state]
    for action in wanted or ():
        _act(tx, moved, seen, action, row["status"])
    return moved


def _act(tx: Tx, alarm: Row, seen: rules.Evaluation, action: str, before: str) -> None:
    """Ask for what the alarm is to do, and record it, or why it was refused, on the alarm."""
    done: str | None = None
    refused: str | None = None
    if alarm["definition"].get("actions_enabled") is False:
        refused = "the alarm's actions are switched off"
    elif action == "notify":
        done = "the topics of the project are told"
    elif action.startswith(TOPIC):
        _tell(tx, alarm, seen, action, before)
        return
    elif action == "rollback" and alarm["endpoint"]:
        queue.ask(tx, "endpoint.rollback", alarm["endpoint"])
        done = f"asked for a rollback of {alarm['endpoint']}"
    elif action == "retrain":
        done, refused = retrain_requests.ask(tx, alarm, seen.to_dict())
    else:
        refused = "the alarm belongs to no endpoint"
    _noted(tx, alarm, action, done, refused)


def _noted(tx: Tx, alarm: Row, action: str, done: str | None, refused: str | None) -> int:
    kind = "acted" if done else "refused"
    return records.note(tx, "alarm", alarm["id"], kind, actor=SYSTEM.name, reason=done or refused, action=action)


def _tell(tx: Tx, alarm: Row, seen: rules.Evaluation, action: str, before: str) -> None:
    topic = action.removeprefix(TOPIC)
    if records.find(tx, "topic", name=topic) is None:
        _noted(tx, alarm, action, None, f"there is no topic {topic!r}")
        return
    number = _noted(tx, alarm, action, f"the subscribers of {topic} are told", None)
    event = {
        "number": number,
        "at": tx.now,
        "actor": SYSTEM.name,
        "noun": "alarm",
        "record": alarm["id"],
        "kind": "moved",
        "before": before,
        "after": str(seen.state),
        "reason": seen.reason,
    }
    publishing.tell(tx, topic, event, definition=alarm["definition"])


def set_state(ctx: Context, actor: Actor, *, name: str, state: str, reason: str) -> dict[str, Any]:
    """Put an alarm into a state by hand, to see what follows; its next evaluation, in a minute or ten seconds where
    its period is shorter, puts it back. Raises ``NotFound`` and ``InvalidInput``."""
    if state not in {str(each) for each in AlarmStatus}:
        raise InvalidInput(f"{state!r} is no state of an alarm; states: {', '.join(AlarmStatus)}")
    with ctx.db.transaction(durable=True) as tx:
        row = alarm_row(tx, name)
        if row["status"] == state:
            return row
        held = tx.now + HELD_SECONDS[rule_of(row["definition"]).period_seconds >= 60]
        seen = rules.Evaluation(AlarmStatus(state), reason, (), changed=True)
        moved = _move(tx, row, seen, actor=actor.name, definition={**row["definition"], "held_until": held})
    ctx.wake()
    return moved


def switch_actions(ctx: Context, actor: Actor, *, name: str, on: bool) -> dict[str, Any]:
    """Switch what an alarm does off, or on again; it is judged all the same."""
    with ctx.db.transaction() as tx:
        row = alarm_row(tx, name)
        definition = {**row["definition"], "actions_enabled": on}
        if on:
            del definition["actions_enabled"]
        if definition != row["definition"]:
            records.set(tx, "alarm", row["id"], actor=actor.name, definition=definition)
        return {**row, "definition": definition}
