"""Functions: a project's ``handler(event, context)`` behind a route of its own, in processes of its own.

A function follows the files that were applied last. Its processes are given those that its declaration names, and no
others; while these, its packages and what its processes are told stay the same, they go on. Else new processes start
beside the old ones and take over when all of them are ready; where they do not come up, what answered before goes on
answering, and the record says why.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import environments, outputs, processes, snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain import functionrules
from loopline.domain.access import Actor
from loopline.domain.projects import FunctionTable, Loop, from_dict
from loopline.domain.states import FunctionStatus
from loopline.errors import Conflict, LooplineError, NotFound
from loopline.store import folders, queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import functions, projects

POLL_SECONDS = 0.1
START_TIMEOUT_SECONDS = 120.0
OF_CALLERS = frozenset(("endpoints", "timeout_seconds", "auth", "capture"))  # settings that the gateway alone holds to


# -- what loop.toml says ----------------------------------------------------------------------------------------------


def apply_functions(ctx: Context, tx: Tx, *, actor: str, project: str, loop: Loop, tree: str) -> list[dict[str, Any]]:
    """Bring a project's functions to ``[[functions]]``; gives what changed. The same twice changes nothing."""
    tables = {table.name: table for table in loop.functions}
    requirements = loop.environment.requirements
    files = folders.read_manifest(ctx.blobs, tree) if tables else []
    there = {row["name"]: row for row in tx.rows(sa.select(functions).where(functions.c.name.in_(tables)))}
    own = sa.select(functions).where(functions.c.project == project, functions.c.status != FunctionStatus.DELETED)
    there |= {row["name"]: row for row in tx.rows(own)}
    changes = []
    for name, table in tables.items():
        seen = [entry for entry in files if functionrules.sees(table, requirements, entry.path)]
        values = {
            "project": project,
            "settings": {**_settings(table), "requirements": requirements},
            "tree": folders.put_manifest(ctx.blobs, seen).digest,
            "changed_at": tx.now,
        }
        change = _apply_one(ctx, tx, actor, name, values, there.get(name))
        if change:
            changes.append({"noun": "function", "name": name, "change": change})
    for name in sorted(there.keys() - tables.keys()):
        _delete(ctx, tx, there[name], actor, "no longer in loop.toml")
        changes.append({"noun": "function", "name": name, "change": "deleted"})
    return changes


def _settings(table: FunctionTable) -> dict[str, Any]:
    """The declaration as it is stored, and comes back."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(table))
    return {key: value for key, value in plain.items() if key != "name"}


def _for_processes(settings: dict[str, Any]) -> dict[str, Any]:
    """What the processes themselves go by: which files they see stands in their tree."""
    return {key: value for key, value in settings.items() if key not in OF_CALLERS and key != "code"}


def _apply_one(ctx: Context, tx: Tx, actor: str, name: str, values: dict[str, Any], row: Row | None) -> str | None:
    """Bring one function to ``values``, with new processes only where theirs would not be the same."""
    if row is None:
        row = records.create(tx, "function", actor=actor, name=name, by=actor, **values)
        queue.ask(tx, "function.advance", row["id"])
        return "created"
    gone = row["status"] == FunctionStatus.DELETED
    if row["project"] != values["project"] and not gone:
        raise Conflict(f"the function {name!r} belongs to the project {row['project']!r}; choose another name")
    same_tree = row["tree"] == values["tree"]
    failed = row["status"] == FunctionStatus.FAILED or row["reason"]  # then what answers is of an earlier push
    if same_tree and row["settings"] == values["settings"] and not gone and not failed:
        return None
    same_processes = same_tree and _for_processes(row["settings"]) == _for_processes(values["settings"])
    if same_processes and row["status"] == FunctionStatus.READY and not failed:
        records.set(tx, "function", row["id"], actor=actor, **values)
        snapshots.write(ctx, tx, actor=actor, reason=f"function {name} changed")
        return "changed"
    if row["status"] == FunctionStatus.PENDING:
        records.set(tx, "function", row["id"], actor=actor, **values)
    else:
        records.move(tx, "function", row["id"], FunctionStatus.PENDING, actor=actor, reason="", **values)
    queue.ask(tx, "function.advance", row["id"])
    return "created" if gone else "changed"


def _delete(ctx: Context, tx: Tx, row: Row, actor: str, reason: str | None) -> Row:
    row = records.move(
        tx, "function", row["id"], FunctionStatus.DELETED, actor=actor, reason=reason, server=None, successor=None
    )
    snapshots.write(ctx, tx, actor=actor, reason=f"function {row['name']} deleted")
    tx.after_commit.append(lambda: processes.write(ctx))
    return row


# -- moving on --------------------------------------------------------------------------------------------------------


def advance(ctx: Context, function_id: str) -> float | None:
    """Task: start a function's processes, let them take over, and let go of the old ones."""
    with ctx.db.read() as tx:
        row = records.get(tx, "function", function_id)
    if row["status"] == FunctionStatus.PENDING:
        return _start(ctx, row)
    if row["status"] == FunctionStatus.STARTING:
        return _await_servers(ctx, row)
    if row["status"] == FunctionStatus.READY and row["successor"]:
        return _let_go(ctx, row)
    return None


def _start(ctx: Context, row: Row) -> float | None:
    settings = row["settings"]
    try:
        python, environment = _environment(ctx, row)
        code = str(outputs.tree_path(ctx, row["tree"]))
        spec = {
            "handler": "function",
            "function": {"name": row["name"], "file": settings["file"], "handler": settings["handler"]},
            "model_dir": code,
            "code_dir": code,
            "limits": {"memory_mb": settings["memory_mb"] or ctx.settings.job_memory_mb},
            "sandbox": {"network": settings["network"]},
        }
        entries = [processes.server(ctx, row["id"], index, spec, python) for index in range(settings["instances"])]
    except (LooplineError, OSError) as error:
        _fail(ctx, row, str(error) or type(error).__name__)
        return POLL_SECONDS
    with ctx.db.transaction() as tx:
        current = records.get(tx, "function", row["id"])
        if not _is_the_same(current, row):
            return POLL_SECONDS  # it was changed or deleted meanwhile
        records.move(
            tx,
            "function",
            row["id"],
            FunctionStatus.STARTING,
            actor=SYSTEM.name,
            environment=environment,
            successor=entries,
            since_at=tx.now,
        )
    processes.write(ctx)
    return POLL_SECONDS


def _environment(ctx: Context, row: Row) -> tuple[str, str]:
    """(Python, id) of the project's environment, built where it is not there yet."""
    with ctx.db.read() as tx:
        project = tx.row(sa.select(projects).where(projects.c.name == row["project"]))
    if project is None:
        raise NotFound(f"there is no project {row['project']!r}")
    table = from_dict(project["loop"]).environment
    files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, row["tree"])}
    entry = files.get(row["settings"].get("requirements") or table.requirements)
    requirements = "" if entry is None else ctx.blobs.read(entry.sha256).decode("utf-8", "replace")
    found = environments.ensure(
        ctx, project=row["project"], requirements=requirements, preload=table.preload, actor=row["by"]
    )
    return str(found["python"]), str(found["id"])


def _is_the_same(current: Row, row: Row) -> bool:
    """Whether a function is where it was when ``row`` was read, and its processes are to be what they were then."""
    return all(current[name] == row[name] for name in ("status", "tree", "settings", "project", "successor"))


def _fail(ctx: Context, row: Row, reason: str) -> None:
    """The new processes do not come up. What answered before goes on."""
    with ctx.db.transaction() as tx:
        current = records.get(tx, "function", row["id"])
        if not _is_the_same(current, row):
            return  # what does not come up is no longer wanted
        status = FunctionStatus.READY if current["server"] else FunctionStatus.FAILED
        records.move(tx, "function", row["id"], status, actor=SYSTEM.name, reason=reason, successor=None)
    processes.write(ctx)


def _await_servers(ctx: Context, row: Row) -> float | None:
    found = [processes.server_state(entry) for entry in row["successor"] or ()]
    failed = next((state for state in found if state["state"] == "failed"), None)
    if failed is not None:
        _fail(ctx, row, f"the function does not start: {failed.get('error')}")
        return POLL_SECONDS
    if not all(state["state"] == "ready" for state in found):
        if ctx.clock.now() - row["since_at"] > START_TIMEOUT_SECONDS:
            _fail(ctx, row, f"the function was not ready within {START_TIMEOUT_SECONDS:g} s")
            return POLL_SECONDS
        return POLL_SECONDS
    with ctx.db.transaction() as tx:
        current = records.get(tx, "function", row["id"])
        if current["status"] != FunctionStatus.STARTING or current["successor"] != row["successor"]:
            return POLL_SECONDS
        records.move(
            tx,
            "function",
            row["id"],
            FunctionStatus.READY,
            actor=SYSTEM.name,
            reason="",
            server=row["successor"],
            successor=current["server"],
            since_at=tx.now,
        )
        snapshots.write(ctx, tx, actor=row["by"], reason=f"function {row['name']} ready")
    return POLL_SECONDS if row["server"] else None


def _let_go(ctx: Context, row: Row) -> float | None:
    """When every gateway asks the new processes, the old ones stop."""
    with ctx.db.read() as tx:
        newest = snapshots.latest(tx)
    if newest is not None and not snapshots.acknowledged(ctx, newest["number"]):
        return POLL_SECONDS
    with ctx.db.transaction() as tx:
        current = records.get(tx, "function", row["id"])
        if current["status"] == FunctionStatus.READY:
            records.set(tx, "function", row["id"], actor=SYSTEM.name, successor=None)
    processes.write(ctx)
    return None


# -- people -----------------------------------------------------------------------------------------------------------


def list_(ctx: Context, actor: Actor, *, project: str | None = None) -> dict[str, Any]:
    """Functions by name."""
    query = sa.select(functions).where(functions.c.status != FunctionStatus.DELETED).order_by(functions.c.name)
    if project is not None:
        query = query.where(functions.c.project == project)
    with ctx.db.read() as tx:
        return {"items": [_public(row) for row in tx.rows(query)], "next": None}


def show(ctx: Context, actor: Actor, *, function: str) -> dict[str, Any]:
    """A function with its processes."""
    with ctx.db.read() as tx:
        return _public(function_row(tx, function))


def delete(ctx: Context, actor: Actor, *, function: str) -> dict[str, Any]:
    """Take a function away: its callers get 404. It comes back when its project's loop.toml is applied again."""
    with ctx.db.transaction(durable=True) as tx:
        return _public(_delete(ctx, tx, function_row(tx, function), actor.name, None))


def function_row(tx: Tx, name: str) -> Row:
    """The function of this name; raises ``NotFound``."""
    row = records.find(tx, "function", name=name)
    if row is None or row["status"] == FunctionStatus.DELETED:
        raise NotFound(f"there is no function {name!r}")
    return row


def _public(row: Row) -> dict[str, Any]:
    servers = [
        {"id": entry["id"], "state": processes.server_state(entry).get("state")} for entry in row["server"] or ()
    ]
    shown = {key: value for key, value in row.items() if key not in ("server", "successor")}
    return {**shown, "reason": row["reason"] or None, "servers": servers}


def recover(ctx: Context) -> None:
    """At start: every function that was on its way goes on."""
    with ctx.db.transaction() as tx:
        query = sa.select(functions.c.id).where(functions.c.status.in_(("Pending", "Starting", "Ready")))
        for row in tx.rows(query):
            queue.ask(tx, "function.advance", row["id"])
