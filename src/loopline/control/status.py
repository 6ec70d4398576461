"""The whole loop at a glance: what serves, what runs, what waits for a person, what alarms, what happened last."""

import shutil
from collections import defaultdict
from typing import Any

import sqlalchemy as sa

import loopline
from loopline.control import endpoints as endpoints_
from loopline.control import snapshots, verification
from loopline.control.context import Context
from loopline.domain.access import FUNCTION_SCOPE, Actor
from loopline.domain.capture import COPIES
from loopline.domain.states import ExecutionStatus, FunctionStatus, RolloutStatus, VersionStatus, is_terminal
from loopline.errors import Unavailable
from loopline.store.db import Row, Tx
from loopline.store.schema import (
    alarms,
    aliases,
    endpoints,
    evaluations,
    events,
    executions,
    functions,
    gateways,
    projects,
    rollouts,
    steps,
    traffic,
    variants,
    versions,
)

TRAFFIC_SECONDS = 3600
KEPT_PERIOD_SECONDS = 60  # finer counters live for some minutes only
EXECUTIONS = 8
EVENTS = 20
WAITING = 20
NOTHING = {"requests": 0, "errors_4xx": 0, "errors_5xx": 0}


def health(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Whether control answers and its database can be read. Anybody may ask."""
    try:
        with ctx.db.read() as tx:
            tx.execute(sa.select(sa.literal(1)))
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable("the database cannot be read") from error
    return {"status": "ok", "version": loopline.__version__, "at": ctx.clock.now()}


def overview(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Everything that the status page and ``loopline status`` show, at one moment."""
    with ctx.db.read() as tx:
        return {
            "at": tx.now,
            "version": loopline.__version__,
            "projects": [row["name"] for row in tx.rows(sa.select(projects.c.name).order_by(projects.c.name))],
            "endpoints": _endpoints(tx),
            "functions": _functions(tx),
            "executions": _executions(tx),
            "waiting": _waiting(tx),
            "alarms": _alarms(tx),
            "events": tx.rows(sa.select(events).order_by(events.c.number.desc()).limit(EVENTS)),
            "gateways": _gateways(tx),
            "disk_free_mb": round(shutil.disk_usage(ctx.settings.dir).free / (1 << 20)),
        }


def _endpoints(tx: Tx) -> list[dict[str, Any]]:
    """Endpoints with every variant that takes traffic, keeps warm or is on its way, and the last hour's counts."""
    query = sa.select(endpoints).where(endpoints.c.status != "Deleted").order_by(endpoints.c.name)
    counts = _traffic(tx)
    found = []
    for endpoint in tx.rows(query):
        shown = tx.rows(
            sa.select(variants)
            .where(variants.c.endpoint == endpoint["name"], variants.c.status != "Stopped")
            .order_by(variants.c.weight.desc(), variants.c.created_at.desc())
        )
        total = sum(variant["weight"] for variant in shown) or 1.0
        known = verification.of_ids(tx, [variant["version"] for variant in shown if variant["version"]])
        found.append(
            {
                "name": endpoint["name"],
                "status": endpoint["status"],
                "model": endpoint["model"],
                "follows": endpoints_.followed(endpoint),
                "reason": endpoint["reason"],
                "variants": [_variant(variant, total, counts, known) for variant in shown],
                "last_hour": _sum(counts, endpoint["name"]),
                "rollout": _rollout(tx, endpoint["name"]),
            }
        )
    return found


def _variant(
    row: Row, total: float, counts: dict[tuple[str, str], dict[str, int]], known: dict[str, str]
) -> dict[str, Any]:
    shown = {key: row[key] for key in ("name", "status", "model", "number", "reason", "warm_until")}
    return {
        **shown,
        "ungated": row["version"] is None,
        "verification": known.get(row["version"]),
        "share": row["weight"] / total,
        "last_hour": counts.get((row["endpoint"], row["name"]), NOTHING),
    }


def last_hour(ctx: Context, endpoint: str) -> dict[str, dict[str, int]]:
    """The last hour's counts of an endpoint's variants, by name; zeroes for one that nobody asked."""
    with ctx.db.read() as tx:
        counts = _traffic(tx)
    return defaultdict(
        lambda: NOTHING, {variant: found for (name, variant), found in counts.items() if name == endpoint}
    )


def _functions(tx: Tx) -> list[dict[str, Any]]:
    counts = _traffic(tx)
    query = sa.select(functions).where(functions.c.status != FunctionStatus.DELETED).order_by(functions.c.name)
    keys = ("name", "status", "project", "reason")
    return [
        {**{key: row[key] for key in keys}, "last_hour": _sum(counts, f"{FUNCTION_SCOPE}:{row['name']}")}
        for row in tx.rows(query)
    ]


def _sum(counts: dict[tuple[str, str], dict[str, int]], endpoint: str) -> dict[str, int]:
    """The counts of an endpoint over all its variants, those that have stopped since included."""
    found = [value for (name, variant), value in counts.items() if name == endpoint and not variant.endswith(COPIES)]
    return {key: sum(value[key] for value in found) for key in ("requests", "errors_4xx", "errors_5xx")}


def _traffic(tx: Tx) -> dict[tuple[str, str], dict[str, int]]:
    sums = {
        "requests": sa.func.sum(traffic.c.count),
        "errors_4xx": sa.func.sum(traffic.c.errors_4xx),
        "errors_5xx": sa.func.sum(traffic.c.errors_5xx),
    }
    query = (
        sa.select(traffic.c.endpoint, traffic.c.variant, *(value.label(name) for name, value in sums.items()))
        .where(traffic.c.at >= int(tx.now) - TRAFFIC_SECONDS, traffic.c.period_seconds == KEPT_PERIOD_SECONDS)
        .group_by(traffic.c.endpoint, traffic.c.variant)
    )
    return {(row["endpoint"], row["variant"]): {name: int(row[name] or 0) for name in sums} for row in tx.rows(query)}


def _rollout(tx: Tx, endpoint: str) -> dict[str, Any] | None:
    """The newest rollout, ``to`` and ``from`` which version, and whether traffic is still moving."""
    query = sa.select(rollouts).where(rollouts.c.endpoint == endpoint).order_by(rollouts.c.created_at.desc()).limit(1)
    row = tx.row(query)
    if row is None:
        return None
    keys = ("id", "status", "kind", "strategy", "step", "reason", "by", "created_at", "ended_at")
    return {
        **{key: row[key] for key in keys},
        "warnings": (row["plan"] or {}).get("warnings") or [],
        "to": _version_of(tx, row["variant"]),
        "from": _version_of(tx, row["predecessor"]),
        "moving": not is_terminal("rollout", RolloutStatus(row["status"])),
    }


def _version_of(tx: Tx, variant: str | None) -> str | None:
    """What a variant runs, as people say it."""
    row = tx.row(sa.select(variants).where(variants.c.id == variant))
    if row is None:
        return None
    return f"{row['model']} v{row['number']}" if row["number"] else str(row["name"])


def _executions(tx: Tx) -> list[dict[str, Any]]:
    query = sa.select(executions).order_by(executions.c.created_at.desc()).limit(EXECUTIONS)
    found = {row["id"]: _execution(row) for row in tx.rows(query)}
    for step in tx.rows(sa.select(steps).where(steps.c.execution.in_(found)).order_by(steps.c.position)):
        shown = {key: step[key] for key in ("name", "status", "kind", "reason", "started_at", "ended_at")}
        found[step["execution"]]["steps"].append({**shown, "cached": step["cached_from"] is not None})
    return list(found.values())


def _execution(row: Row) -> dict[str, Any]:
    keys = ("id", "status", "project", "pipeline", "trigger", "by", "reason", "created_at", "started_at", "ended_at")
    running = row["status"] in (ExecutionStatus.RUNNING, ExecutionStatus.STOPPING)
    return {**{key: row[key] for key in keys}, "running": running, "steps": []}


def _waiting(tx: Tx) -> list[dict[str, Any]]:
    """Versions that wait for a person, with what the gate said and which version they would replace."""
    query = sa.select(versions).where(versions.c.status == VersionStatus.PENDING).order_by(versions.c.created_at.desc())
    champions = {row["model"]: row["number"] for row in tx.rows(sa.select(aliases).where(aliases.c.name == "champion"))}
    found = []
    rows = tx.rows(query.limit(WAITING))
    verification.add(tx, rows)
    for row in rows:
        evaluation = tx.row(
            sa.select(evaluations)
            .where(evaluations.c.version == row["id"])
            .order_by(evaluations.c.created_at.desc())
            .limit(1)
        )
        keys = ("id", "model", "number", "metrics", "verification", "execution", "requested_by", "created_at")
        found.append(
            {
                **{key: row[key] for key in keys},
                "champion": champions.get(row["model"]),
                "evaluation": evaluation and {key: evaluation[key] for key in ("id", "status", "reason", "ended_at")},
            }
        )
    return found


def _alarms(tx: Tx) -> list[dict[str, Any]]:
    """Alarms, the ringing ones first."""
    keys = ("id", "name", "status", "endpoint", "definition", "actions", "enabled", "reason", "since_at")
    rows = [{key: row[key] for key in keys} for row in tx.rows(sa.select(alarms).order_by(alarms.c.name))]
    return sorted(rows, key=lambda row: row["status"] != "ALARM")


def _gateways(tx: Tx) -> dict[str, Any]:
    """The newest snapshot and what each gateway has acknowledged."""
    newest = snapshots.latest(tx)
    return {"snapshot": newest and newest["number"], "items": tx.rows(sa.select(gateways).order_by(gateways.c.name))}
