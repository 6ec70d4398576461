"""Projects: what ``loop.toml`` says becomes models, endpoints, alarms, triggers and topics; the same file twice changes
nothing."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.config import MAX_LOOP_TOML_BYTES
from loopline.control import (
    alarms,
    assets,
    endpoint_tests,
    endpoints,
    functions,
    multimodel,
    registry,
    topics,
    triggers,
)
from loopline.control.context import Context
from loopline.domain import loopfile, names
from loopline.domain import projects as loops
from loopline.domain.access import Actor
from loopline.domain.projects import Loop
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import folders, records
from loopline.store.db import Row, Tx
from loopline.store.schema import assets as assets_table
from loopline.store.schema import projects

FILE = "loop.toml"
MAIN_BRANCHES = ("main", "master", "prod", "production")


def upload_tree(ctx: Context, actor: Actor, *, stream: Iterator[bytes]) -> dict[str, Any]:
    """Store a project's files from a tar (plain or gzip): regular files only, within budgets. Gives the digest."""
    blob = ctx.blobs.put_tar(stream)
    return {"tree": blob.digest, "size_bytes": blob.size_bytes}


def read_loop(ctx: Context, tree: str) -> Loop:
    """The checked ``loop.toml`` of a tree; raises ``InvalidInput`` with every mistake, its line and its cure."""
    files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, tree)}
    if FILE not in files:
        raise InvalidInput(f"the project has no {FILE}; `loopline init` makes one")
    if files[FILE].size_bytes > MAX_LOOP_TOML_BYTES:
        raise InvalidInput(f"{FILE} is larger than {MAX_LOOP_TOML_BYTES} bytes")
    text = ctx.blobs.read(files[FILE].sha256).decode("utf-8", "replace")
    loop, problems = loopfile.parse(text, FILE, frozenset(files))
    errors = [problem for problem in problems if problem.level == "error"]
    if loop is None or errors:
        lines = [f"{p.file}:{p.line}: {p.message} ({p.cure})" for p in errors]
        raise InvalidInput(
            "\n".join(lines) or f"{FILE} cannot be read", problems=[msgspec.to_builtins(p) for p in errors]
        )
    return loop


def targets(loop: Loop, branch: str | None) -> dict[str, Any] | None:
    """What a push to a branch may move: {"model", "endpoint", "parameters", "handler"}; None when it moves nothing.

    Without ``[branches]``: the main branch (or none) moves the project's own model and endpoint, dev and feature-* move
    models and endpoints of their own, ``NAME-BRANCH``, and any other branch moves nothing.
    """
    model, endpoint = loop.model.name, loop.endpoint.name if loop.endpoint else None
    plain: dict[str, Any] = {"handler": loop.model.handler, "parameters": {}}
    if loop.model.compile:
        plain["compile"] = {"format": loop.model.compile, "tolerance": loop.model.compile_tolerance}
    if branch is None:
        return {"model": model, "endpoint": endpoint, **plain}
    label = _label(branch)
    for pattern, entry in loop.branches.items():
        if fnmatchcase(branch, pattern):
            chosen = (entry.model or model).replace("{branch}", label)
            served = endpoint if entry.endpoint is None else entry.endpoint.replace("{branch}", label) or None
            return {"model": chosen, "endpoint": served, **plain, "parameters": entry.parameters}
    if branch in MAIN_BRANCHES:
        return {"model": model, "endpoint": endpoint, **plain}
    if branch == "dev":
        return {"model": f"{model}-dev", "endpoint": f"{endpoint}-dev" if endpoint else None, **plain}
    if branch.startswith(("feature-", "feature/")):
        return {"model": f"{model}-{label}", "endpoint": None, **plain}
    return None


def _label(branch: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in branch)[:40].strip("-.") or "branch"


def apply_in(
    ctx: Context, tx: Tx, loop: Loop, tree: str, moved: dict[str, Any], *, actor: str
) -> tuple[Row, list[dict[str, Any]]]:
    """Bring everything that the file declares to it. Gives the project and what changed."""
    changes: list[dict[str, Any]] = []
    row = _project(tx, loop, tree, moved, changes, actor)
    gate = {key: value for key, value in loops.to_dict(loop)["gate"].items() if key != "mode"}
    before = records.find(tx, "model", name=moved["model"])
    model = registry.ensure_model(
        tx,
        name=moved["model"],
        actor=actor,
        project=loop.project.name,
        gate_mode=loop.gate.mode,
        gate=gate,
        approval=loops.to_dict(loop)["approval"],
        description=loop.model.description,
    )
    _note(changes, "model", model["name"], before, model, ("gate_mode", "gate", "approval", "description"))
    if moved["endpoint"] and loop.endpoint:
        before = records.find(tx, "endpoint", name=moved["endpoint"])
        if before is not None and before["status"] != "Deleted" and (before["settings"] or {}).get("multi_model"):
            raise Conflict(f"[endpoint]: {moved['endpoint']!r} serves many models already; choose another name")
        endpoint = endpoints.ensure(
            ctx,
            tx,
            name=moved["endpoint"],
            actor=actor,
            project=loop.project.name,
            model=moved["model"],
            settings=_endpoint_settings(loop),
        )
        _note(changes, "endpoint", endpoint["name"], before, endpoint, ("model", "settings"))
        changes += alarms.apply_alarms(
            ctx, tx, actor=actor, project=loop.project.name, endpoint=moved["endpoint"], loop=loop
        )
        changes += endpoint_tests.apply_tests(ctx, tx, actor=actor, endpoint=moved["endpoint"], loop=loop, tree=tree)
    if moved["model"] == loop.model.name:  # the main branch speaks for the project as a whole
        changes += triggers.apply_triggers(ctx, tx, actor=actor, project=loop.project.name, wanted=loop.triggers)
        changes += multimodel.apply_endpoints(ctx, tx, actor=actor, project=loop.project.name, loop=loop)
        changes += functions.apply_functions(ctx, tx, actor=actor, project=loop.project.name, loop=loop, tree=tree)
        changes += topics.apply_notifications(
            ctx, tx, actor=actor, project=loop.project.name, notifications=loop.notifications
        )
    return row, changes


def _project(tx: Tx, loop: Loop, tree: str, moved: dict[str, Any], changes: list[dict[str, Any]], actor: str) -> Row:
    plain = loops.to_dict(loop)
    row = records.find(tx, "project", name=loop.project.name)
    if row is None:
        names.check_name(loop.project.name, "a project")
        changes.append({"noun": "project", "name": loop.project.name, "change": "created"})
        values: dict[str, Any] = {"name": loop.project.name, "loop": plain, "tree": tree, "changed_at": tx.now}
        return records.create(tx, "project", actor=actor, **values)
    if moved["model"] != loop.model.name:
        return row  # another branch's file does not change the project
    if row["loop"] != plain:
        fields = sorted(key for key in plain if plain[key] != (row["loop"] or {}).get(key))
        changes.append({"noun": "project", "name": row["name"], "change": "changed", "fields": fields})
    if row["loop"] != plain or row["tree"] != tree:
        values = {"loop": plain, "tree": tree, "changed_at": tx.now}
        records.set(tx, "project", row["id"], actor=actor, **values)
        row = {**row, **values}
    return row


def _endpoint_settings(loop: Loop) -> dict[str, Any]:
    plain = loops.to_dict(loop)
    settings: dict[str, Any] = {key: value for key, value in plain["endpoint"].items() if key != "name"}
    settings["rollout"] = plain["rollout"]
    if plain["scaling"] is not None:
        settings["scaling"] = plain["scaling"]
    settings["comparison"] = plain["comparison"]
    settings["monitor"] = plain["monitor"]
    settings["label"] = loop.gate.label
    settings["positive"] = loop.gate.positive
    return settings


def _note(
    changes: list[dict[str, Any]], noun: str, name: str, before: Row | None, after: Row, fields: tuple[str, ...]
) -> None:
    if before is None or before.get("status") == "Deleted":
        changes.append({"noun": noun, "name": name, "change": "created"})
        return
    changed = [field for field in fields if before[field] != after[field]]
    if changed:
        changes.append({"noun": noun, "name": name, "change": "changed", "fields": changed})


def apply(ctx: Context, actor: Actor, *, tree: str, branch: str | None = None) -> dict[str, Any]:
    """Bring the platform to a tree's ``loop.toml``, with its data assets; applying it again changes nothing."""
    loop = read_loop(ctx, tree)
    moved = targets(loop, branch)
    if moved is None:
        raise InvalidInput(f"the branch {branch!r} moves nothing; give it an entry in [branches]")
    with ctx.db.transaction() as tx:
        row, changes = apply_in(ctx, tx, loop, tree, moved, actor=actor.name)
        changes += put_data(ctx, tx, loop, tree, actor=actor.name)
    return {"project": row["name"], "changes": changes}


def diff(ctx: Context, actor: Actor, *, tree: str, branch: str | None = None) -> dict[str, Any]:
    """What ``apply`` would change, without changing it."""
    loop = read_loop(ctx, tree)
    moved = targets(loop, branch)
    if moved is None:
        return {"project": loop.project.name, "changes": []}
    with ctx.db.transaction(rehearsal=True) as tx:
        changes = apply_in(ctx, tx, loop, tree, moved, actor=actor.name)[1]
        changes += put_data(ctx, tx, loop, tree, actor=actor.name)
    return {"project": loop.project.name, "changes": changes}


def put_data(ctx: Context, tx: Tx, loop: Loop, tree: str, *, actor: str) -> list[dict[str, Any]]:
    """Add a version of each data asset in ``[data]`` whose bytes changed since the project last brought some.

    A version that came from elsewhere meanwhile (an upload, captured rows) stays the newest.
    """
    files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, tree)}
    changes = []
    for name, entry in sorted(loop.data.items()):
        path = entry.path.rstrip("/")
        inside = [file for file in files.values() if file.path.startswith(f"{path}/")]
        if path in files:
            found = files[path]
            kind, digest, size = "file", found.sha256, found.size_bytes
        elif inside:
            cut = [folders.Entry(f.path[len(path) + 1 :], f.size_bytes, f.sha256, f.mode_x) for f in inside]
            blob = folders.put_manifest(ctx.blobs, cut)
            kind, digest, size = "folder", blob.digest, blob.size_bytes
        else:
            raise InvalidInput(f"[data.{name}]: the project has no {entry.path!r}")
        if _brought_last(tx, loop.project.name, name) == digest:
            continue
        row, new = assets.put_in(
            tx,
            project=loop.project.name,
            name=name,
            digest=digest,
            size_bytes=size,
            kind=kind,
            file_name=path.rpartition("/")[2],
            actor=actor,
            source={"kind": "project", "tree": tree, "path": entry.path},
        )
        if new:
            changes.append({"noun": "asset", "name": f"{name}:{row['version']}", "change": "created"})
    return changes


def _brought_last(tx: Tx, project: str, name: str) -> str | None:
    """The digest of the newest version of a data asset that came from the project's own files."""
    c = assets_table.c
    own = (c.project == project, c.name == name, c.source["kind"].as_string() == "project")
    row = tx.row(sa.select(c.digest).where(*own).order_by(c.version.desc()).limit(1))
    return None if row is None else str(row["digest"])


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Projects."""
    with ctx.db.read() as tx:
        rows = tx.rows(sa.select(projects).order_by(projects.c.name))
    return {"items": [{k: v for k, v in row.items() if k != "loop"} for row in rows], "next": None}


def show(ctx: Context, actor: Actor, *, project: str) -> dict[str, Any]:
    """A project with its ``loop.toml`` as it was applied."""
    with ctx.db.read() as tx:
        row = records.find(tx, "project", name=project)
    if row is None:
        raise NotFound(f"there is no project {project!r}")
    return row
