"""Environments: the packages of a project, built once for each lock and kept by its digest."""

from typing import Any

import sqlalchemy as sa

from loopline.control import processes
from loopline.control.context import SYSTEM, Context
from loopline.domain.access import Actor
from loopline.domain.states import EnvironmentStatus
from loopline.errors import LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import environment_versions, environments


def ensure(ctx: Context, *, project: str | None, requirements: str, preload: tuple[str, ...], actor: str) -> Row:
    """The environment of a project's requirements (or of nobody's), built when there is none; waits for the build.

    Raises what the lock or the build raises; a failed build can be tried again by the next push.
    """
    lock = ctx.environments.lock(requirements)
    key = ctx.environments.key(lock)
    with ctx.db.transaction() as tx:
        row = records.find(tx, "environment", key=key)
        if row is None:
            row = records.create(
                tx, "environment", actor=actor, key=key, lock=lock, requirements=requirements, preload=list(preload)
            )
        if row["status"] == EnvironmentStatus.FAILED:
            row = records.move(tx, "environment", row["id"], EnvironmentStatus.PENDING, actor=actor)
        if project is not None:
            _number(tx, project, row["id"], actor)
    row = build(ctx, row)
    processes.write(ctx)
    return row


def build(ctx: Context, row: Row) -> Row:
    """Build an environment that is not Ready, or find it on disk."""
    found = ctx.environments.find(row["key"])
    if row["status"] == EnvironmentStatus.READY and found is not None:
        return row
    with ctx.db.transaction() as tx:
        row = records.get(tx, "environment", row["id"])
        if row["status"] == EnvironmentStatus.READY:  # its folder is gone
            records.move(tx, "environment", row["id"], EnvironmentStatus.PENDING, actor=SYSTEM.name)
        if row["status"] != EnvironmentStatus.BUILDING:
            row = records.move(tx, "environment", row["id"], EnvironmentStatus.BUILDING, actor=SYSTEM.name)
    try:
        built = ctx.environments.build(row["key"], row["lock"] or "")
    except LooplineError as error:
        with ctx.db.transaction() as tx:
            current = records.get(tx, "environment", row["id"])
            if current["status"] == EnvironmentStatus.BUILDING:
                records.move(
                    tx, "environment", row["id"], EnvironmentStatus.FAILED, actor=SYSTEM.name, reason=error.message
                )
        raise
    with ctx.db.transaction() as tx:
        current = records.get(tx, "environment", row["id"])
        if current["status"] == EnvironmentStatus.READY:
            return current
        return records.move(
            tx,
            "environment",
            row["id"],
            EnvironmentStatus.READY,
            actor=SYSTEM.name,
            path=str(built.path),
            python=str(built.python),
            packages=sum(1 for line in (row["lock"] or "").splitlines() if "==" in line),
            size_mb=built.size_mb,
            seconds=built.seconds,
        )


def _number(tx: Tx, project: str, environment: str, actor: str) -> None:
    """Give the project's next environment version when this is another environment than its newest."""
    table = environment_versions
    query = sa.select(table).where(table.c.project == project).order_by(table.c.version.desc()).limit(1)
    newest = tx.row(query)
    if newest is None or newest["environment"] != environment:
        version = 1 if newest is None else newest["version"] + 1
        records.create(
            tx, "environment_version", actor=actor, project=project, version=version, environment=environment
        )


def list_(ctx: Context, actor: Actor, *, project: str | None = None) -> dict[str, Any]:
    """Environments, newest first; of one project with its version numbers."""
    versions = environment_versions
    if project is None:
        query = sa.select(environments).order_by(environments.c.created_at.desc())
    else:
        query = (
            sa.select(environments, versions.c.version)
            .join(versions, versions.c.environment == environments.c.id)
            .where(versions.c.project == project)
            .order_by(versions.c.version.desc())
        )
    with ctx.db.read() as tx:
        rows = tx.rows(query)
    return {"items": [{k: v for k, v in row.items() if k not in ("lock", "path")} for row in rows], "next": None}


def show(ctx: Context, actor: Actor, *, environment: str) -> dict[str, Any]:
    """An environment by id or key, with its lock."""
    with ctx.db.read() as tx:
        row = records.find(tx, "environment", id=environment) or records.find(tx, "environment", key=environment)
    if row is None:
        raise NotFound(f"there is no environment {environment!r}")
    return row


def recover(ctx: Context) -> None:
    """At start: a build that was going on when control died is asked for again by whoever waits for it."""
    with ctx.db.transaction() as tx:
        query = sa.select(environments).where(environments.c.status == EnvironmentStatus.BUILDING)
        for row in tx.rows(query):
            records.move(tx, "environment", row["id"], EnvironmentStatus.PENDING, actor=SYSTEM.name)
            queue.ask(tx, "environment.build", row["id"])


def build_again(ctx: Context, environment_id: str) -> float | None:
    """Task: build an environment whose build was cut off."""
    with ctx.db.read() as tx:
        row = records.get(tx, "environment", environment_id)
    if row["status"] in (EnvironmentStatus.PENDING, EnvironmentStatus.BUILDING):
        build(ctx, row)
    return None
