"""Internal work: tasks with a lease, a heartbeat and a fencing token, on the table ``queue``.

A task is asked for by kind and key and stands there once, however often it is asked for. Leases are judged by the
database's time; each claim raises the token, and a result is recorded only while its token still holds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from loopline.errors import StaleToken
from loopline.store.db import Db, Prepared, Tx
from loopline.store.schema import queue as table

MAX_BACKOFF_SECONDS = 300.0
MAX_ERROR_LENGTH = 4000


@dataclass(frozen=True)
class Task:
    """A claimed task. It is ours until ``lease_until`` unless a heartbeat renews it; ``tries`` counts past failures."""

    id: int
    kind: str
    key: str
    token: int
    tries: int
    lease_until: float


def ask(tx: Tx, kind: str, key: str, run_at: float | None = None) -> None:
    """Ask for a task, now or at ``run_at``. One that waits already runs at the earlier time; one that is being worked
    on runs once more when that is finished."""
    tx.asked.add(kind)
    values: dict[str, Any] = {"kind": kind, "key": key, "token": 0, "tries": 0, "again": False}
    if run_at is None and tx.postgres:
        tx.change(_ASK_NOW, **values)  # the server's time, which claim() goes by
    else:
        tx.change(_ASK[tx.postgres], **values, run_at=tx.now if run_at is None else run_at)


def claim(db: Db, kinds: list[str], owner: str, lease_seconds: float, limit: int = 1) -> list[Task]:
    """Take up to ``limit`` tasks that are due, the longest-waiting first.

    A task whose lease has lapsed is due too, and its ``tries`` counts that as a failure: whoever held it may have died
    of it.
    """
    if not db.postgres:  # most wake-ups find nothing to do, and each writer has to wait for the others
        with db.read() as tx:
            due, now = _next_due(tx, kinds), db.database_time(tx)
        if due is None or due > now:
            return []
    with db.transaction() as tx:
        now = db.database_time(tx)
        until = now + lease_seconds
        found = tx.fetch(_claiming(tuple(kinds), tx.postgres), new_owner=owner, now=now, until=until, most=limit)
        rows = sorted(found, key=lambda row: (row["run_at"], row["id"]))
        return [Task(row["id"], row["kind"], row["key"], row["token"], row["tries"], until) for row in rows]


def heartbeat(db: Db, task: Task, lease_seconds: float) -> None:
    """Renew the lease; raises ``StaleToken`` when somebody else holds the task by now."""
    with db.transaction() as tx:
        until = db.database_time(tx) + lease_seconds
        _change(tx, _RENEW, task, lease_until=until)


def hold(tx: Tx, task: Task) -> None:
    """Raise ``StaleToken`` unless the task is still ours; on PostgreSQL it stays so until the transaction ends."""
    if tx.fetch_one(_HOLD[tx.postgres], task=task.id, held=task.token) is None:
        raise _stale(task)


def finish(tx: Tx, task: Task) -> None:
    """Record that the work is done, in the transaction that records its result. Raises ``StaleToken`` when the token
    no longer holds, so that the result is rolled back; makes the task wait again when it was asked for meanwhile."""
    if tx.change(_REMOVE, task=task.id, held=task.token) != 1:
        _change(tx, _REPEAT, task, tries=0, error=None)


def fail(db: Db, task: Task, error: str, delay: float | None = None) -> None:
    """Give the task back after a failure, to be tried again after ``delay`` seconds (see ``backoff_seconds``).

    Raises ``StaleToken`` when somebody else holds it by now.
    """
    pause = backoff_seconds(task.tries) if delay is None else delay
    with db.transaction() as tx:
        again_at = db.database_time(tx) + pause
        _change(tx, _RETRY, task, run_at=again_at, tries=task.tries + 1, error=error[:MAX_ERROR_LENGTH])


def backoff_seconds(tries: int) -> float:
    """How long to wait after the failure that follows ``tries`` others: 1 s doubled each time up to 5 minutes, less up
    to a fifth by chance, so that what failed together does not come back together."""
    return min(MAX_BACKOFF_SECONDS, 2.0 ** min(tries, 16)) * random.uniform(0.8, 1.0)  # noqa: S311


def release(db: Db, is_dead: Callable[[str], bool]) -> int:
    """Give back every task whose owner is dead, at once: waiting for its lease to lapse would serve nobody.

    ``is_dead`` judges the ``owner`` that claimed. It counts as a failure, as a lapsed lease does. Gives how many.
    """
    with db.transaction() as tx:
        now = db.database_time(tx)
        held = sa.select(table.c.id, table.c.owner).where(table.c.owner.is_not(None), table.c.lease_until > now)
        dead = [row.id for row in tx.execute(held) if is_dead(row.owner)]
        if dead:
            tx.execute(table.update().where(table.c.id.in_(dead)).values(lease_until=now))
    return len(dead)


def next_due(db: Db, kinds: list[str] | None = None) -> float | None:
    """When the next task is due or the next lease lapses (seconds since the epoch), or None when nothing waits."""
    with db.read() as tx:
        return _next_due(tx, kinds)


def _next_due(tx: Tx, kinds: list[str] | None) -> float | None:
    row = tx.fetch_one(_due(None if kinds is None else tuple(kinds)))
    return None if row is None or row["due"] is None else float(row["due"])


def _change(tx: Tx, statement: Prepared, task: Task, **values: Any) -> None:
    if tx.change(statement, task=task.id, held=task.token, **values) != 1:
        raise _stale(task)


def _stale(task: Task) -> StaleToken:
    return StaleToken(f"the task {task.kind} {task.key} was taken over by somebody else, or is done")


# Statements are built once: building one anew for each call cost more than running it.


@cache
def _due(kinds: tuple[str, ...] | None) -> Prepared:
    """When something is to be done, of these kinds."""
    when = sa.case((table.c.owner.is_(None), table.c.run_at), else_=table.c.lease_until)
    statement = sa.select(sa.func.min(when).label("due"))
    return Prepared(statement if kinds is None else statement.where(_of(kinds)))


def _of(kinds: tuple[str, ...]) -> sa.ColumnElement[bool]:
    return sa.or_(sa.false(), *(table.c.kind == kind for kind in kinds))


def _make_ask(insert: Any, **values: Any) -> Prepared:
    names = ("kind", "key", "token", "tries", "again", "run_at")
    insert = insert.values({**{name: sa.bindparam(name, type_=table.c[name].type) for name in names}, **values})
    earlier = sa.case((insert.excluded.run_at < table.c.run_at, insert.excluded.run_at), else_=table.c.run_at)
    busy = table.c.owner.is_not(None)
    # While it is worked on, run_at is when to run again; finish() leaves it so.
    run_at = sa.case((busy & ~table.c.again, insert.excluded.run_at), else_=earlier)
    changed = {"run_at": run_at, "again": table.c.again | busy}
    return Prepared(insert.on_conflict_do_update(index_elements=["kind", "key"], set_=changed))


@cache
def _claiming(kinds: tuple[str, ...], postgres: bool) -> Prepared:
    now: sa.BindParameter[float] = sa.bindparam("now", type_=table.c.run_at.type)
    free = table.c.owner.is_(None) & (table.c.run_at <= now)
    due = (
        sa.select(table.c.id)
        .where(_of(kinds), free | (table.c.lease_until <= now))
        .order_by(table.c.run_at, table.c.id)
        .limit(sa.bindparam("most", type_=sa.Integer))
    )
    if postgres:
        due = due.with_for_update(skip_locked=True)
    lapsed = sa.case((table.c.owner.is_(None), 0), else_=1)
    return Prepared(
        table.update()
        .where(table.c.id.in_(due.scalar_subquery()))
        .values(
            owner=sa.bindparam("new_owner", type_=table.c.owner.type),
            lease_until=sa.bindparam("until", type_=table.c.lease_until.type),
            token=table.c.token + 1,
            tries=table.c.tries + lapsed,
        )
        .returning(table.c.id, table.c.kind, table.c.key, table.c.token, table.c.tries, table.c.run_at)
    )


def _make_change(*columns: str, free: bool) -> Prepared:
    values: dict[Any, Any] = {name: sa.bindparam(name, type_=table.c[name].type) for name in columns}
    if free:
        values.update(owner=None, lease_until=None, again=False)
    return Prepared(table.update().where(*_OURS).values(values))


_ASK = {True: _make_ask(postgresql.insert(table)), False: _make_ask(sqlite.insert(table))}
_ASK_NOW = _make_ask(postgresql.insert(table), run_at=sa.extract("epoch", sa.func.clock_timestamp()))
_OURS = (table.c.id == sa.bindparam("task"), table.c.token == sa.bindparam("held"), table.c.owner.is_not(None))
_HOLD = {
    True: Prepared(sa.select(table.c.id).where(*_OURS).with_for_update()),
    False: Prepared(sa.select(table.c.id).where(*_OURS)),
}
_REMOVE = Prepared(table.delete().where(*_OURS, ~table.c.again))
_RENEW = _make_change("lease_until", free=False)
_REPEAT = _make_change("tries", "error", free=True)
_RETRY = _make_change("run_at", "tries", "error", free=True)
