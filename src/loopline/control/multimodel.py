"""Endpoints with many models: each request names its model, and servers run for those that are asked.

Each model is a variant of its own whose server starts on demand, forked from its environment's forkserver; the
supervisor keeps their memory together under the endpoint's limit. A version comes to such an endpoint under the same
rule as to any other: Approved, or forced by an approver with a reason. Of several versions of a model the one that was
added last answers to the model's name; the others answer to NAME:VERSION.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import aliases, endpoints, fleets, processes, registry, rollouts, snapshots, variants
from loopline.control.context import SYSTEM, Context
from loopline.domain import names
from loopline.domain import projects as loops
from loopline.domain.access import Actor
from loopline.domain.projects import Loop
from loopline.domain.states import EndpointStatus, VariantStatus, VersionStatus
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints as endpoints_table
from loopline.store.schema import variants as variants_table
from loopline.store.schema import versions

MAX_MODELS = 5000  # of one endpoint
OF_MODELS = ("memory_mb", "follow", "idle_seconds", "cold_start_seconds")  # keys of the setting `multi_model`


def add(
    ctx: Context, actor: Actor, *, endpoint: str, models: list[str], force: bool = False, reason: str = ""
) -> dict[str, Any]:
    """Add versions, each ``MODEL`` (its newest Approved one), ``MODEL:VERSION`` or ``MODEL@ALIAS``: all or none.

    A version that is not Approved is refused unless ``force``, which an approver may use with a ``reason``.
    """
    with ctx.db.transaction(durable=True) as tx:
        row = _endpoint(tx, endpoint)
        found = list({version["id"]: version for version in (_resolve(tx, each) for each in models)}.values())
        if not found:
            raise InvalidInput("models: name at least one")
        for version in found:
            registry.check_deployable(tx, version, actor, force=force, reason=reason)
    return {"items": _serve(ctx, row, found, actor.name), "next": None}


def _endpoint(tx: Tx, name: str) -> Row:
    row = endpoints.endpoint_row(tx, name)
    if not (row["settings"] or {}).get("multi_model"):
        raise Conflict(f"{name} serves one model; release a version on it: loopline release {name}")
    return row


def _resolve(tx: Tx, reference: str) -> Row:
    model, at, alias = reference.partition("@")
    if at:
        version = aliases.by_alias(tx, model, alias)
        if version is None:
            raise NotFound(f"the model {model!r} has no alias {alias!r}")
        return version
    name, number = names.split_version(reference, "a model")
    if number is not None:
        return registry.version_row(tx, name, number)
    return rollouts.newest_approved(tx, name)


def _serve(ctx: Context, endpoint: Row, found: list[Row], actor: str) -> list[dict[str, Any]]:
    """Make the variants with their servers on demand; they are there from the next snapshot on."""
    with ctx.db.transaction() as tx:
        there = tx.rows(living(endpoint["name"]))
        if len({row["version"] for row in there} | {version["id"] for version in found}) > MAX_MODELS:
            raise InvalidInput(f"an endpoint serves at most {MAX_MODELS} models")
        made = [variants.ensure(tx, endpoint, version, actor) for version in found]
    laid = {row["id"]: fleets.grown(ctx, row, 1) for row in made}
    with ctx.db.transaction(durable=True) as tx:
        for variant in made:
            current = records.get(tx, "variant", variant["id"])  # somebody else may have served it meanwhile
            if current["status"] != VariantStatus.READY:
                moved: dict[str, Any] = {"server": laid[variant["id"]], "instances": 1}
                records.move(tx, "variant", variant["id"], VariantStatus.READY, actor=actor, warm_until=None, **moved)
            _answers(tx, variant, actor)
        _publish(ctx, tx, endpoint, actor, f"{len(made)} models added to {endpoint['name']}")
    return [{"model": row["model"], "version": row["number"], "variant": row["name"]} for row in made]


def living(endpoint: str) -> sa.Select[Any]:
    """The variants of an endpoint that are there or on their way."""
    c = variants_table.c
    over = (VariantStatus.STOPPED, VariantStatus.FAILED)
    return sa.select(variants_table).where(c.endpoint == endpoint, c.status.not_in(over)).order_by(c.model, c.number)


def _answers(tx: Tx, variant: Row, actor: str) -> None:
    """From now on this variant answers to its model's name."""
    for row in tx.rows(living(variant["endpoint"]).where(variants_table.c.model == variant["model"])):
        weight = 100.0 if row["id"] == variant["id"] else 0.0
        if row["weight"] != weight:
            records.set(tx, "variant", row["id"], actor=actor, weight=weight)


def _publish(ctx: Context, tx: Tx, endpoint: Row, actor: str, reason: str) -> None:
    current = endpoints.endpoint_row(tx, endpoint["name"])
    if current["status"] == EndpointStatus.FAILED and endpoints.serving(tx, endpoint["name"]) is not None:
        records.move(tx, "endpoint", current["id"], EndpointStatus.CREATING, actor=actor)
        current = endpoints.endpoint_row(tx, endpoint["name"])
    if endpoints.serving(tx, endpoint["name"]) is not None:
        endpoints.status_after(tx, current, actor)
    snapshots.write(ctx, tx, actor=actor, reason=reason)
    tx.after_commit.append(lambda: processes.write(ctx))


def remove(ctx: Context, actor: Actor, *, endpoint: str, model: str) -> dict[str, Any]:
    """Take a model away with all its versions, or ``NAME:VERSION`` alone; its server finishes what it has."""
    name, number = names.split_version(model, "a model")
    with ctx.db.transaction(durable=True) as tx:
        row = _endpoint(tx, endpoint)
        gone = [
            each for each in tx.rows(living(endpoint)) if each["model"] == name and number in (None, each["number"])
        ]
        if not gone:
            raise NotFound(f"{endpoint} serves no model {model!r}")
        _take_away(tx, gone, actor.name)
        _publish(ctx, tx, row, actor.name, f"{model} taken from {endpoint}")
    return {"items": [{"model": each["model"], "version": each["number"]} for each in gone], "next": None}


def _take_away(tx: Tx, gone: list[Row], actor: str, reason: str | None = None) -> None:
    for each in gone:
        records.move(tx, "variant", each["id"], VariantStatus.STOPPED, actor=actor, reason=reason, weight=0.0)
    for endpoint, model in {(each["endpoint"], each["model"]) for each in gone if each["weight"] > 0}:
        left = tx.rows(living(endpoint).where(variants_table.c.model == model))
        if left:
            _answers(tx, left[-1], actor)


def list_(ctx: Context, actor: Actor, *, endpoint: str) -> dict[str, Any]:
    """The models of an endpoint: whether each one's server runs, and its memory (PSS, in MB)."""
    with ctx.db.read() as tx:
        row = _endpoint(tx, endpoint)
        found = tx.rows(living(endpoint))
    running = processes.children(ctx)
    items = []
    for variant in found:
        child = running.get(variant["server"][0]["id"], {}) if variant["server"] else {}
        memory = _pss_mb(child["pid"]) if child.get("pid") else None
        items.append(
            {
                "model": variant["model"] or _archive(variant),
                "version": variant["number"],
                "default": variant["weight"] > 0,
                "state": child.get("state", "asleep"),
                "memory_mb": memory,
                "starts": child.get("restarts"),
                "last_exit": child.get("last_exit"),
            }
        )
    used = sum(item["memory_mb"] or 0.0 for item in items)
    limit = row["settings"]["multi_model"]["memory_mb"]
    return {"items": items, "next": None, "memory_mb": round(used, 1), "limit_mb": limit}


def _archive(variant: Row) -> str:
    """What a model of a store is asked for by."""
    return next(
        (str(each["answers_to"]) for each in variant["server"] or () if each.get("answers_to")), variant["name"]
    )


def _pss_mb(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(b"Pss:")), None)


# -- what loop.toml says ----------------------------------------------------------------------------------------------


def apply_endpoints(ctx: Context, tx: Tx, *, actor: str, project: str, loop: Loop) -> list[dict[str, Any]]:
    """Bring a project's endpoints to ``[[multi_model]]``; gives what changed. The same twice changes nothing.

    A pattern that is followed no more takes its models along; those added by hand stay. Raises ``Conflict`` for the
    name of an endpoint of another kind, or of another project.
    """
    plain = loops.to_dict(loop)
    watched = {"monitor": plain["monitor"], "label": loop.gate.label, "positive": loop.gate.positive}
    changes = []
    for table in plain["multi_model"]:
        name = table["name"]
        before = records.find(tx, "endpoint", name=name)
        if before is not None and before["status"] == EndpointStatus.DELETED:
            before = None
        _check_kind(name, before)
        own = {key: value for key, value in table.items() if key not in (*OF_MODELS, "name")}
        settings = {**own, **watched, "multi_model": {key: table[key] for key in OF_MODELS}}
        row = endpoints.ensure(ctx, tx, name=name, actor=actor, project=project, model=None, settings=settings)
        tx.after_commit.append(lambda: processes.write(ctx))
        if before is None:
            changes.append({"noun": "endpoint", "name": name, "change": "created"})
        elif before["settings"] != row["settings"] or before["project"] != row["project"]:
            changes.append({"noun": "endpoint", "name": name, "change": "changed"})
            _follow_no_more(ctx, tx, before, row, actor)
            _retune(tx, row, actor)
    return changes


def _check_kind(name: str, there: Row | None) -> None:
    if there is None:
        return
    table = (there["settings"] or {}).get("multi_model")
    if not table or table.get("store"):
        what = "serves the models of a store" if table else "serves one model"
        raise Conflict(f"[[multi_model]]: there is an endpoint {name!r} already, which {what}; choose another name")


def _follow_no_more(ctx: Context, tx: Tx, before: Row, row: Row, actor: str) -> None:
    """Take away the models that came by a pattern which is not there any more."""
    rows = tx.rows(living(row["name"]))
    gone = [each for each in rows if _follows(before, each["model"] or "") and not _follows(row, each["model"] or "")]
    if gone:
        _take_away(tx, gone, actor, "its model is followed no more")
        _publish(ctx, tx, row, actor, f"{len(gone)} models taken from {row['name']}")


def _retune(tx: Tx, endpoint: Row, actor: str) -> None:
    """Let servers that are there idle for as long as the settings say now; none is started anew for it."""
    demand = processes.demand({**endpoint["settings"], "name": endpoint["name"]}, 0)
    for row in tx.rows(living(endpoint["name"])):
        entries = [{**entry, "process": {**entry["process"], **demand}} for entry in row["server"] or ()]
        if entries != (row["server"] or []):
            records.set(tx, "variant", row["id"], actor=actor, server=entries)


# -- following --------------------------------------------------------------------------------------------------------


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: an endpoint that follows models looks again when one of their versions was decided on."""
    if event["noun"] == "endpoint":
        if event["kind"] in ("created", "changed"):
            row = records.find(tx, "endpoint", id=event["record"])
            if row is not None and _followed(row):
                queue.ask(tx, "multimodel.follow", row["name"])
        return
    if event["kind"] != "moved":
        return
    version = records.find(tx, "version", id=event["record"])
    for row in tx.rows(sa.select(endpoints_table).where(endpoints_table.c.status != EndpointStatus.DELETED)):
        if version is not None and _follows(row, version["model"]):
            queue.ask(tx, "multimodel.follow", row["name"])


def _followed(endpoint: Row) -> list[str]:
    return list(((endpoint["settings"] or {}).get("multi_model") or {}).get("follow") or ())


def _follows(endpoint: Row, model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in _followed(endpoint))


def follow(ctx: Context, key: str) -> float | None:
    """Task: serve the newest Approved version of each model that an endpoint follows, and no other of theirs."""
    with ctx.db.read() as tx:
        row = records.find(tx, "endpoint", name=key)
        if row is None or row["status"] == EndpointStatus.DELETED:
            return None
        there = [each for each in tx.rows(living(key)) if _follows(row, each["model"])]
        approved = tx.rows(
            sa.select(versions).where(versions.c.status == VersionStatus.APPROVED).order_by(versions.c.number)
        )
    wanted = {version["model"]: version for version in approved if _follows(row, version["model"])}
    known = {each["version"] for each in there if each["status"] == VariantStatus.READY}  # else it was left half made
    fresh = [version for version in wanted.values() if version["id"] not in known]
    problem = None
    try:
        if fresh:
            _serve(ctx, row, fresh, SYSTEM.name)
    except (LooplineError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    with ctx.db.transaction() as tx:
        if problem is not None:
            records.note(tx, "endpoint", row["id"], "follow_failed", actor=SYSTEM.name, reason=problem)
            return None
        serving = {version["id"] for version in wanted.values()}
        gone = [
            each for each in tx.rows(living(key)) if _follows(row, each["model"]) and each["version"] not in serving
        ]
        if gone:
            _take_away(tx, gone, SYSTEM.name, "no longer the newest Approved version")
            _publish(ctx, tx, row, SYSTEM.name, f"{len(gone)} models taken from {key}")
    return None
