"""Runs: the tracking record of an execution, kept without being told.

A run's parameters, metrics, tags and artifacts arrive through its jobs' spools; everything else (commit, dirty flag,
tree, environment, host, data assets, duration) is known to the platform.
"""

import json
import math
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import events
from loopline.control.context import SYSTEM, Context
from loopline.domain import names, states
from loopline.domain.access import Actor
from loopline.domain.states import RunStatus
from loopline.errors import InvalidInput, NotFound
from loopline.store import metrics, records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import artifacts, run_metrics, run_values, runs, spools, steps

MAX_SPOOL_BYTES = 8 << 20  # of one ingestion
MAX_KEY = 250
MAX_TITLE = 250
LATEST_AT = 253402300799.0  # the end of the year 9999
MAX_VALUE_BYTES = 16 << 10


def start(tx: Tx, *, project: str, name: str, actor: str, experiment: str | None = None, **values: Any) -> Row:
    """Open a run."""
    return records.create(
        tx,
        "run",
        actor=actor,
        project=project,
        experiment=experiment or project,
        name=name,
        by=actor,
        metrics={},
        tags=values.pop("tags", {}),
        **values,
    )


def end(tx: Tx, run_id: str, status: RunStatus) -> None:
    """Close a run unless it is closed."""
    row = records.get(tx, "run", run_id)
    if not states.is_terminal("run", row["status"]):
        records.move(tx, "run", run_id, status, actor=SYSTEM.name, ended_at=tx.now)


# -- spools -----------------------------------------------------------------------------------------------------------


def ingest(ctx: Context, attempt: Row) -> None:
    """Take what a running attempt has spooled since the last look."""
    path = _spool(ctx, attempt["id"])
    try:
        if path.stat().st_size == 0:
            return
    except OSError:
        return
    with ctx.db.transaction() as tx:
        job = records.get(tx, "job", attempt["job"])
        _ingest_spool(ctx, tx, attempt["id"], job)


def ingest_in(ctx: Context, tx: Tx, attempt: Row, job: Row, found: list[dict[str, Any]]) -> None:
    """The rest of an attempt's spool and its artifacts, in the transaction that records its end."""
    run_id = _ingest_spool(ctx, tx, attempt["id"], job)
    if run_id and found:
        rows = [
            {"run": run_id, "media_type": None, **entry, "path": f"{job['name']}/{entry['path']}"} for entry in found
        ]
        tx.upsert(artifacts, rows, ("run", "path"), ("digest", "size_bytes"))
    tx.change(_FORGET, name=f"attempt:{attempt['id']}")


def _spool(ctx: Context, attempt_id: str) -> Path:
    return ctx.settings.dir / "attempts" / attempt_id / "events"


def _ingest_spool(ctx: Context, tx: Tx, attempt_id: str, job: Row) -> str | None:
    """Read whole lines from the stored offset, as many pieces as there are; returns the run they belong to."""
    run_id = _run_of(tx, job)
    path = _spool(ctx, attempt_id)
    if run_id is None or not path.exists() or path.stat().st_size == 0:
        return run_id
    name = f"attempt:{attempt_id}"
    stored = tx.fetch_one(_POSITION, name=name)
    start = position = 0 if stored is None else int(stored["position"])
    with path.open("rb") as file:
        file.seek(position)
        while data := file.read(MAX_SPOOL_BYTES):
            whole = data.rfind(b"\n") + 1
            if not whole:
                break
            _apply(tx, run_id, data[:whole].splitlines())
            position += whole
            file.seek(position)
    if position != start:
        tx.upsert(spools, [{"name": name, "position": position}], ("name",), ("position",))
    return run_id


def _run_of(tx: Tx, job: Row) -> str | None:
    if job["owner"] != "step":
        return None
    row = tx.fetch_one(_RUN, step=job["owner_id"])
    return None if row is None else row["run"]


_FORGET = Prepared(spools.delete().where(spools.c.name == sa.bindparam("name")))
_POSITION = Prepared(sa.select(spools.c.position).where(spools.c.name == sa.bindparam("name")))
_RUN = Prepared(sa.select(steps.c.run).where(steps.c.id == sa.bindparam("step")))


def _apply(tx: Tx, run_id: str, lines: list[bytes]) -> None:
    points: list[tuple[str, float, int, float]] = []
    changes: dict[str, dict[str, Any]] = {"parameters": {}, "tags": {}, "metrics": {}}
    for line in lines:
        try:
            entry = json.loads(line)
            kind = entry["kind"]
            if kind == "metric":
                point = _point(entry, entry["at"])
                points.append(point)
                changes["metrics"][point[0]] = point[1] if math.isfinite(point[1]) else str(point[1])
            elif kind in ("param", "tag") and len(line) <= MAX_VALUE_BYTES:
                json.dumps(entry["value"], ensure_ascii=False, allow_nan=False).encode()  # or it cannot be stored
                changes["parameters" if kind == "param" else "tags"][_key(entry["key"])] = entry["value"]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # a job may write anything into its spool; what is no entry is not one
    if points:
        metrics.log_points(tx, run_id, points)
    merge(tx, run_id, changes)


def _point(entry: dict[str, Any], at: Any) -> tuple[str, float, int, float]:
    """Key, value, step and time of a metric's point; raises ``ValueError``, ``KeyError`` or ``TypeError``.

    The value may be NaN, which JSON carries as null, or text such as "inf": a training may diverge.
    """
    step, value = entry.get("step") or 0, "nan" if entry["value"] is None else entry["value"]
    if isinstance(step, bool) or not isinstance(step, int) or not -(1 << 63) <= step < 1 << 63:
        raise ValueError(f"step must be a whole number of at most 64 bits, not {str(step)[:40]}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"value must be a number, not {str(value)[:40]}")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at <= LATEST_AT:
        raise ValueError(f"at must be seconds since the epoch, not {str(at)[:40]}")
    return _key(entry["key"]), float(value), step, float(at)


def _key(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY or "\0" in value:
        raise ValueError(f"key must be text of 1 to {MAX_KEY} characters")
    value.encode()
    return value


def merge(tx: Tx, run_id: str, changes: dict[str, dict[str, Any]]) -> None:
    """Add keys to a run's parameters, tags and last metrics."""
    row = records.get(tx, "run", run_id)
    values = {name: {**(row[name] or {}), **added} for name, added in changes.items() if added}
    if values:
        tx.execute(runs.update().where(runs.c.id == run_id).values(**values))


# -- what people do ---------------------------------------------------------------------------------------------------


def create_run(
    ctx: Context,
    actor: Actor,
    *,
    project: str,
    experiment: str | None = None,
    name: str | None = None,
    parameters: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Open a run by hand, for work that happens outside the platform."""
    names.check_name(project, "a project")
    for what, title in (("experiment", experiment), ("name", name)):
        if title is not None and not (1 <= len(title) <= MAX_TITLE and title.isprintable() and title.strip()):
            raise InvalidInput(f"{what}: use 1 to {MAX_TITLE} printable characters", field=what)
    with ctx.db.transaction() as tx:
        return start(
            tx,
            project=project,
            experiment=experiment,
            name=name or "run",
            actor=actor.name,
            parameters=parameters or {},
            tags=tags or {},
            dirty=False,
        )


def log_metrics(ctx: Context, actor: Actor, *, run: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Add points ``{"key", "value", "step"?, "at"?}`` to an open run; their order is kept."""
    now = ctx.clock.now()
    try:
        rows = [_point(point, point.get("at", now)) for point in points]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f'each point is {{"key": text, "value": number, "step": whole number}}: {error}') from None
    with ctx.db.transaction() as tx:
        row = records.get(tx, "run", run)
        if states.is_terminal("run", row["status"]):
            raise InvalidInput(f"the run {run} is {row['status']}; it takes no more points")
        metrics.log_points(tx, run, rows)
    return {"run": run, "points": len(rows)}


def end_run(ctx: Context, actor: Actor, *, run: str, status: str = "Succeeded") -> dict[str, Any]:
    """Close a run opened by hand."""
    if status not in tuple(RunStatus):
        raise InvalidInput(f"{status!r} is not a run's status; statuses: {', '.join(RunStatus)}")
    with ctx.db.transaction() as tx:
        return records.move(tx, "run", run, status, actor=actor.name, ended_at=tx.now)


def list_(
    ctx: Context,
    actor: Actor,
    *,
    project: str | None = None,
    experiment: str | None = None,
    where: str | None = None,
    order: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Runs, newest first or by a metric.

    ``where``: one comparison of a metric, e.g. ``accuracy > 0.9``. ``order``: ``accuracy`` or ``-accuracy``.
    """
    query = sa.select(runs)
    if project is not None:
        query = query.where(runs.c.project == project)
    if experiment is not None:
        query = query.where(runs.c.experiment == experiment)
    if where is not None:
        key, operator, value = _comparison(where)
        filtered = run_values.alias()
        query = query.join(filtered, sa.and_(filtered.c.run == runs.c.id, filtered.c.key == key)).where(
            _OPERATORS[operator](filtered.c.value, value)
        )
    if order is not None:
        ordered = run_values.alias()
        query = query.join(ordered, sa.and_(ordered.c.run == runs.c.id, ordered.c.key == order.lstrip("-")))
        query = query.order_by(ordered.c.value.desc() if order.startswith("-") else ordered.c.value, runs.c.id.desc())
    else:
        query = query.order_by(runs.c.created_at.desc(), runs.c.id.desc())
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


_OPERATORS: dict[str, Any] = {
    ">=": lambda column, value: column >= value,
    "<=": lambda column, value: column <= value,
    "!=": lambda column, value: column != value,
    ">": lambda column, value: column > value,
    "<": lambda column, value: column < value,
    "=": lambda column, value: column == value,
}


def _comparison(text: str) -> tuple[str, str, float]:
    for operator in _OPERATORS:
        key, found, value = text.partition(operator)
        if found:
            try:
                return key.strip(), operator, float(value)
            except ValueError:
                break
    raise InvalidInput(f"{text!r} is not a comparison such as accuracy > 0.9")


def show(ctx: Context, actor: Actor, *, run: str) -> dict[str, Any]:
    """A run with its artifacts and last metrics."""
    with ctx.db.read() as tx:
        row = records.get(tx, "run", run)
        row["artifacts"] = tx.rows(sa.select(artifacts).where(artifacts.c.run == run).order_by(artifacts.c.path))
        row["metrics"] = {k: v for k, v in metrics.last_values(tx, run).items()}
        query = sa.select(steps.c.name, steps.c.status, steps.c.job).where(steps.c.run == run)
        row["steps"] = tx.rows(query.order_by(steps.c.position))
    row["duration_seconds"] = None if row["ended_at"] is None else row["ended_at"] - row["created_at"]
    return row


def points(ctx: Context, actor: Actor, *, run: str, key: str, after: int = -1, limit: int = 1000) -> dict[str, Any]:
    """The points of one metric in order."""
    with ctx.db.read() as tx:
        records.get(tx, "run", run)
        query = (
            sa.select(run_metrics.c.step, run_metrics.c.number, run_metrics.c.value, run_metrics.c.at)
            .where(run_metrics.c.run == run, run_metrics.c.key == key, run_metrics.c.step > after)
            .order_by(run_metrics.c.step, run_metrics.c.number)
            .limit(limit)
        )
        rows = tx.rows(query)
    return {"run": run, "key": key, "items": rows, "next": str(rows[-1]["step"]) if len(rows) == limit else None}


def compare(ctx: Context, actor: Actor, *, a: str, b: str) -> dict[str, Any]:
    """Two runs side by side: every parameter, metric and fact in which they differ or agree."""
    first, second = show(ctx, actor, run=a), show(ctx, actor, run=b)
    for run in (first, second):  # when a value was reported is no difference
        run["metrics"] = {key: last.value for key, last in run["metrics"].items()}
    rows = []
    for section in ("parameters", "metrics", "tags"):
        left, right = first[section] or {}, second[section] or {}
        for key in sorted({*left, *right}):
            rows.append(_difference(section, key, left.get(key), right.get(key)))
    for key in ("status", "commit", "dirty", "tree", "environment", "host", "duration_seconds", "inputs"):
        rows.append(_difference("facts", key, first[key], second[key]))
    return {"a": a, "b": b, "items": rows, "next": None}


def _difference(section: str, key: str, a: Any, b: Any) -> dict[str, Any]:
    row = {"section": section, "key": key, "a": a, "b": b, "same": a == b, "difference": None}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        row["difference"] = b - a
    return row


def artifact(ctx: Context, actor: Actor, *, run: str, path: str) -> dict[str, Any]:
    """Where the bytes of one artifact are: digest and size."""
    with ctx.db.read() as tx:
        row = tx.row(sa.select(artifacts).where(artifacts.c.run == run, artifacts.c.path == path))
    if row is None:
        raise NotFound(f"the run {run} has no artifact {path!r}")
    return row
