"""Blueprints: the variants that an endpoint is brought to, together, and what of its requests is kept as objects.

A blueprint never changes; an endpoint moves from one to the next by a rollout, which starts all of the new one's
variants beside the old ones, moves the traffic, and goes back where its alarms say so.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import captures, endpoints, fleets, modelstores, registry, servables, variants
from loopline.control.context import Context
from loopline.domain import blueprints as rules
from loopline.domain import loopfile, names
from loopline.domain import rollouts as traffic
from loopline.domain.access import Actor
from loopline.domain.blueprints import Variant
from loopline.domain.states import EndpointStatus, ServableStatus
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import blueprints as table

MAX_ALARMS = 10


def create(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    variants: list[dict[str, Any]],
    capture: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a blueprint.

    ``variants``: {"name", "servable", "weight", "instances", "copies"} each; ``capture``: {"uri", "percent", "sides",
    "texts", "jsons"}; ``results``: {"uri", "failures_uri"}, for answers of asynchronous invocations; see
    ``domain.blueprints``. ``given``: what its author wrote, kept as it is.
    """
    with ctx.db.transaction() as tx:
        own = {"capture": capture, "results": results, "given": given}
        return create_in(tx, actor.name, name=name, variants=variants, **own)


def create_in(
    tx: Tx,
    actor: str,
    *,
    name: str,
    variants: list[dict[str, Any]],
    capture: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
) -> Row:
    """As ``create``, in a transaction."""
    names.check_name(name, "a blueprint")
    wanted = rules.read(variants)
    kept = {
        "capture": msgspec.to_builtins(rules.read_capture(capture)) if capture else None,
        "results": msgspec.to_builtins(rules.read_results(results)) if results else None,
    }
    if records.find(tx, "blueprint", name=name) is not None:
        raise Conflict(f"there is a blueprint {name!r} already")
    made_of = {each.name: servables.servable_row(tx, each.servable) for each in wanted}
    for each in wanted:
        _check_store(each, servables.store_of(made_of[each.name]), len(wanted))
    found = [{**msgspec.to_builtins(each), "id": made_of[each.name]["id"]} for each in wanted]
    return records.create(tx, "blueprint", actor=actor, name=name, variants=found, given=given, by=actor, **kept)


def _check_store(variant: Variant, store: str | None, count: int) -> None:
    if store is None and variant.memory_mb is not None:
        raise InvalidInput(f"memory_mb of {variant.name}: it is for a servable that is a store of models")
    if store is not None and (count > 1 or variant.copies is not None or variant.instances > 1):
        raise InvalidInput(f"{variant.servable} is a store of models: its variant is alone, with one server a model")


def blueprint_row(tx: Tx, name: str) -> Row:
    """The blueprint of this name; raises ``NotFound``."""
    row = records.find(tx, "blueprint", name=name)
    if row is None:
        raise NotFound(f"there is no blueprint {name!r}")
    return row


def list_(ctx: Context, actor: Actor, *, limit: int = 100) -> dict[str, Any]:
    """Blueprints, newest first."""
    with ctx.db.read() as tx:
        return {"items": tx.rows(sa.select(table).order_by(table.c.created_at.desc()).limit(limit)), "next": None}


def show(ctx: Context, actor: Actor, *, blueprint: str) -> dict[str, Any]:
    """A blueprint."""
    with ctx.db.read() as tx:
        return blueprint_row(tx, blueprint)


def delete(ctx: Context, actor: Actor, *, blueprint: str) -> dict[str, Any]:
    """Take a blueprint away; endpoints that were brought to it stay as they are."""
    with ctx.db.transaction() as tx:
        row = blueprint_row(tx, blueprint)
        records.delete(tx, "blueprint", row["id"], actor=actor.name)
        return row


# -- endpoints --------------------------------------------------------------------------------------------------------


def start(
    ctx: Context, actor: Actor, *, endpoint: str, blueprint: str, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Create an endpoint and bring it to a blueprint. ``settings``: as in ``endpoints.create``."""
    names.check_name(endpoint, "an endpoint")
    loopfile.check_endpoint(endpoint, endpoint, settings or {})
    with ctx.db.transaction(durable=True) as tx:
        return start_in(ctx, tx, actor, endpoint=endpoint, blueprint=blueprint, settings=settings)


def _start_store(
    ctx: Context, tx: Tx, actor: Actor, endpoint: str, blueprint: Row, store: Row, settings: dict[str, Any]
) -> Row:
    """Create an endpoint that serves the models of a store; gives the endpoint."""
    _check_servable(store, blueprint["variants"][0]["name"])
    variant = blueprint["variants"][0]
    memory = variant.get("memory_mb") or ctx.settings.job_memory_mb
    many = modelstores.setting(store, called=variant["name"], memory_mb=memory)
    own = {**settings, **_settings(blueprint, tx.now), "multi_model": many}
    row = endpoints.ensure(ctx, tx, name=endpoint, actor=actor.name, project=None, model=None, settings=own)
    queue.ask(tx, "modelstore.open", endpoint)
    return row


def _store(tx: Tx, blueprint: Row) -> Row | None:
    """The servable of a blueprint that is a store of models."""
    row = records.get(tx, "servable", blueprint["variants"][0]["id"])
    return None if servables.store_of(row) is None else row


def _check_new(tx: Tx, endpoint: str) -> None:
    found = records.find(tx, "endpoint", name=endpoint)
    if found is not None and found["status"] != EndpointStatus.DELETED:
        raise Conflict(f"there is an endpoint {endpoint!r} already")


def start_in(
    ctx: Context, tx: Tx, actor: Actor, *, endpoint: str, blueprint: str, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """As ``start``, in a transaction; gives the rollout, or the endpoint where it serves a store of models."""
    _check_new(tx, endpoint)
    target = blueprint_row(tx, blueprint)
    store = _store(tx, target)
    if store is not None:
        return _start_store(ctx, tx, actor, endpoint, target, store, settings or {})
    own = {**(settings or {}), **_settings(target, tx.now)}
    row = endpoints.ensure(ctx, tx, name=endpoint, actor=actor.name, project=None, model=None, settings=own)
    return begin(tx, actor, row, target, strategy="all-at-once")


def apply(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    blueprint: str,
    strategy: str = "all-at-once",
    settings: dict[str, Any] | None = None,
    alarms: list[str] | None = None,
    last_bake_seconds: float = 0.0,
    retain: list[str] | None = None,
    given: dict[str, Any] | None = None,
    reason: str = "",
) -> dict[str, Any]:
    """Bring an endpoint to a blueprint by a rollout, which is given back.

    ``settings``: keys of ``[rollout]`` for this time. ``alarms``: names of alarms; one that fires until the rollout is
    over turns it back, and nothing else does, unless ``settings`` say so. ``last_bake_seconds``: how long that is after
    all traffic has moved. ``retain``: ``weight`` and ``instances`` that variants of the same name keep as they are now.
    """
    loopfile.check_endpoint(endpoint, endpoint, {"rollout": {**(settings or {}), "strategy": strategy}})
    with ctx.db.transaction(durable=True) as tx:
        row = endpoints.endpoint_row(tx, endpoint)
        return begin(
            tx,
            actor,
            row,
            blueprint_row(tx, blueprint),
            strategy=strategy,
            settings={
                **(settings or {}),
                "alarms": list(alarms or ()),
                "last_bake_seconds": last_bake_seconds,
                **({"given": given} if given else {}),
            },
            retain=retain or (),
            reason=reason,
        )


def begin(
    tx: Tx,
    actor: Actor,
    endpoint: Row,
    blueprint: Row,
    *,
    strategy: str,
    settings: dict[str, Any] | None = None,
    retain: Iterable[str] = (),
    reason: str = "",
) -> Row:
    """Record the rollout that brings an endpoint to a blueprint; the engine moves it on."""
    _check_free(tx, endpoint)
    wanted = rules.read([{k: v for k, v in each.items() if k != "id"} for each in blueprint["variants"]])
    wanted = _retained(tx, endpoint, wanted, frozenset(retain))
    before = endpoints.serving(tx, endpoint["name"])
    weights = variants.weights(tx, endpoint["name"])
    found = {
        each.name: _servable(tx, actor, entry["id"], each)
        for each, entry in zip(wanted, blueprint["variants"], strict=True)
    }
    made = {
        each.name: variants.follow(
            tx, endpoint, found[each.name], actor.name, called=each.name, instances=each.instances
        )
        for each in wanted
    }
    group = {made[each.name]["id"]: each.weight for each in wanted if each.copies is None}
    leader = max((each for each in wanted if each.copies is None), key=lambda each: each.weight)
    settings = {**_UNJUDGED, **(settings or {})}
    _check_alarms(tx, settings.get("alarms") or [])
    plan = {
        **{key: value for key, value in settings.items() if key not in ("steps", "strategy")},
        "shares": traffic.plan(strategy, settings, first=before is None, servers=leader.instances),
        "servers": leader.instances,
        "servers_before": len(fleets.staying(before)) if before else 0,
        "before": weights,
        "group": group,
        "copies": {made[each.name]["id"]: each.copies for each in wanted if each.copies is not None},
        "settings": _settings(blueprint, tx.now),
        "blueprint": blueprint["name"],
        "model": made[leader.name]["model"],
        "number": made[leader.name]["number"],
    }
    rollout = records.create(
        tx,
        "rollout",
        actor=actor.name,
        endpoint=endpoint["name"],
        kind="release",
        strategy=strategy,
        variant=made[leader.name]["id"],
        predecessor=None if before is None else before["id"],
        plan=plan,
        step=0,
        decisions=[],
        trigger={"kind": "person", **({"reason": reason} if reason else {})},
        by=actor.name,
    )
    if endpoint["status"] == EndpointStatus.FAILED:
        records.move(tx, "endpoint", endpoint["id"], EndpointStatus.CREATING, actor=actor.name)
    queue.ask(tx, "rollout.advance", rollout["id"])
    return rollout


def _retained(tx: Tx, endpoint: Row, wanted: list[Variant], what: frozenset[str]) -> list[Variant]:
    """The variants as they are to be, with what they keep of those that are called the same now."""
    unknown = what - {"weight", "instances"}
    if unknown:
        raise InvalidInput(f"retain: weight and instances can be, not {', '.join(sorted(unknown))}")
    there = {
        each["called"] or each["name"]: each for each in variants.of_endpoint(tx, endpoint["name"]) if each["weight"]
    }
    return [
        msgspec.structs.replace(each, **{key: there[each.name][key] for key in what})
        if each.name in there and each.copies is None
        else each
        for each in wanted
    ]


# Who brings an endpoint to a blueprint says by alarms what is bad.
_UNJUDGED = {"bake_seconds": 0.0, "max_error_rate": 1.0, "max_latency_ratio": 1e9, "start_timeout_seconds": 600.0}


def _settings(blueprint: Row, now: float) -> dict[str, Any]:
    """What an endpoint's settings say once it has been brought to a blueprint."""
    return {
        "blueprint": blueprint["name"],
        "capture_to": captures.settings(blueprint["capture"], now),
        "results_to": blueprint["results"],
    }


def _check_free(tx: Tx, endpoint: Row) -> None:
    active = endpoints.active_rollout(tx, endpoint["name"])
    if active is not None:
        raise Conflict(f"the rollout {active['id']} of {endpoint['name']} is going on; wait for it or roll it back")
    if (endpoint["settings"] or {}).get("multi_model"):
        text = "its models come and go by themselves; to change what else it has, make another endpoint"
        raise Conflict(f"{endpoint['name']} serves many models: {text}")


def _servable(tx: Tx, actor: Actor, identifier: str, variant: Variant) -> Row:
    """The servable of a variant, if it may work: its version as any other, where it is made of one."""
    row = records.get(tx, "servable", identifier)
    _check_servable(row, variant.name)
    if servables.store_of(row) is not None:
        raise Conflict(f"{variant.servable} is a store of models, which a new endpoint can be started with, alone")
    if row["version"]:
        registry.check_deployable(tx, records.get(tx, "version", row["version"]), actor, force=False, reason="")
    return row


def _check_servable(row: Row, variant: str) -> None:
    if row["status"] == ServableStatus.DELETED:
        raise NotFound(f"the servable of {variant} was deleted")
    problem = servables.problem(row)
    if problem is not None:
        raise Conflict(problem)


def _check_alarms(tx: Tx, alarms: list[str]) -> None:
    if len(alarms) > MAX_ALARMS:
        raise InvalidInput(f"alarms: at most {MAX_ALARMS}")
    for name in alarms:
        if records.find(tx, "alarm", name=name) is None:
            raise NotFound(f"there is no alarm {name!r}")
