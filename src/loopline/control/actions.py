"""What control itself does as a step of a pipeline, by name.

``begin`` is called in a transaction that keeps what it gives with the step, so that a step begins once whatever dies
when. ``result`` looks at that until it is over: None while it goes on, then what the step gives; it raises the reason
when it failed. Both act for whoever started the execution.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from loopline.control import blueprints, claims, endpoints, registry, servables, versions
from loopline.control.context import Context
from loopline.domain.pipelines import ActionStep
from loopline.domain.states import EndpointStatus, RolloutStatus, ServableStatus, VersionStatus, is_terminal
from loopline.errors import Conflict, InvalidInput, LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx

BEGUN = "begun"  # what a step that is Running keeps its action's word under, among its outputs
MAX_NAME = 63


class Action(NamedTuple):
    """``arguments``: the type of what it takes. ``begin``: (ctx, tx, execution, step, arguments). ``result``: (ctx, tx,
    what ``begin`` gave)."""

    arguments: type[Struct]
    begin: Callable[[Context, Tx, Row, Row, Any], dict[str, Any]]
    result: Callable[[Context, Tx, dict[str, Any]], dict[str, Any] | None]


def check(step: ActionStep) -> None:
    """Raise ``InvalidInput`` unless the step's action is known and takes arguments of these names."""
    known = [field.encode_name for field in msgspec.structs.fields(_named(step.action).arguments)]
    unknown = [name for name in step.arguments if name not in known]
    if unknown:
        raise InvalidInput(f"the step {step.name!r}: {step.action} takes {', '.join(known)}, not {unknown[0]!r}")


def begin(ctx: Context, tx: Tx, execution: Row, step: Row, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Begin an action. Raises ``InvalidInput`` for arguments that it does not take."""
    named = _named(action)
    try:
        given = msgspec.convert(arguments, named.arguments)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{action}: {error}") from None
    return named.begin(ctx, tx, execution, step, given)


def result(ctx: Context, tx: Tx, action: str, begun: dict[str, Any]) -> dict[str, Any] | None:
    """What an action has come to; None while it goes on. Raises why it failed."""
    return _named(action).result(ctx, tx, begun)


def _named(action: str) -> Action:
    if action not in ACTIONS:
        raise InvalidInput(f"{action!r} is no action; actions: {', '.join(ACTIONS)}")
    return ACTIONS[action]


def made_name(execution: Row, step: str) -> str:
    """The name of what a step makes whose author gave none."""
    rest = f"-{execution['id'].partition('_')[2]}"
    return f"{step[: MAX_NAME - len(rest)]}{rest}".lstrip("-_")


# -- servables --------------------------------------------------------------------------------------------------------


class ServableArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """As of ``servables.create``; without a ``name`` one is made."""

    name: str | None = None
    data: str | None = None
    store: str | None = None
    version: str | None = None
    code: str | None = None
    program: str | None = None
    handler: str = "predict"
    image: str = ""
    requirements: str = ""
    variables: dict[str, str] = {}
    given: dict[str, Any] | None = None


def _begin_servable(ctx: Context, tx: Tx, execution: Row, step: Row, given: ServableArguments) -> dict[str, Any]:
    values = msgspec.structs.asdict(given)
    name = values.pop("name") or made_name(execution, step["name"])
    known = records.find(tx, "servable", name=name)
    if known is not None and execution["id"].partition("_")[2] not in name:
        raise Conflict(f"there is a servable {name!r} already")
    if known is not None and servables.problem(known) is None:
        return {"id": known["id"], "name": name}  # an earlier try of this step made it
    if known is not None:
        records.move(tx, "servable", known["id"], ServableStatus.DELETED, actor=execution["by"], name=None)
    version = values.pop("version")
    if version is not None:
        own = {key: values[key] for key in ("program", "image", "variables", "given")}
        row = servables.of_version(tx, execution["by"], name, version, own)
    else:
        row = servables.create_in(ctx, tx, actor=execution["by"], name=name, **values)
    return {"id": row["id"], "name": name}


def _servable(_ctx: Context, tx: Tx, begun: dict[str, Any]) -> dict[str, Any] | None:
    row = records.get(tx, "servable", begun["id"])
    if row["status"] == ServableStatus.PENDING:
        return None
    if row["status"] != ServableStatus.READY:
        raise LooplineError(servables.problem(row) or f"the servable {begun['name']} is {row['status']}")
    return {"name": begun["name"]}


# -- versions ---------------------------------------------------------------------------------------------------------


class ReportArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """As of ``claims.Source``."""

    uri: str
    content_type: str | None = None
    digest: str | None = None


class VersionArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """As of ``versions.New``, and of which model. One that is not there yet is made, with ``gate_mode``."""

    model: str
    gate_mode: str = "enforce"
    source: dict[str, Any] | None = None
    description: str = ""
    properties: dict[str, str] = {}
    reports: dict[str, ReportArguments] = {}
    status: str = VersionStatus.PENDING
    comment: str = ""
    unverified: bool = False
    declared: dict[str, Any] | None = None


def _begin_version(ctx: Context, tx: Tx, execution: Row, step: Row, given: VersionArguments) -> dict[str, Any]:
    actor = registry.actor_named(tx, execution["by"])
    if records.find(tx, "model", name=given.model) is None:
        registry.ensure_model(tx, name=given.model, actor=actor.name, gate_mode=given.gate_mode)
    wanted = versions.New(
        source=given.source,
        description=given.description,
        properties=given.properties,
        reports={name: claims.Source(*msgspec.structs.astuple(each)) for name, each in given.reports.items()},
        status=given.status,
        comment=given.comment,
        unverified=given.unverified,
        declared=given.declared,
        execution=execution["id"],
        step=step["name"],
        run=step["run"],
    )
    return {"id": versions.admit_in(ctx, tx, actor, given.model, wanted)["id"]}


def _version(_ctx: Context, tx: Tx, begun: dict[str, Any]) -> dict[str, Any]:
    row = records.get(tx, "version", begun["id"])
    return {"name": row["model"], "version": row["number"], "status": row["status"]}


# -- endpoints --------------------------------------------------------------------------------------------------------


class BlueprintArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """As of ``blueprints.create``; without a ``name`` one is made."""

    variants: list[dict[str, Any]]
    name: str | None = None
    capture: dict[str, Any] | None = None
    results: dict[str, Any] | None = None
    given: dict[str, Any] | None = None


def _begin_blueprint(_ctx: Context, tx: Tx, execution: Row, step: Row, given: BlueprintArguments) -> dict[str, Any]:
    values = msgspec.structs.asdict(given)
    name = values.pop("name") or made_name(execution, step["name"])
    blueprints.create_in(tx, execution["by"], name=name, **values)
    return {"name": name}


def _blueprint(_ctx: Context, _tx: Tx, begun: dict[str, Any]) -> dict[str, Any]:
    return begun


class EndpointArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """Which endpoint is brought to which blueprint. One that is not there yet is made, with ``settings``."""

    name: str
    blueprint: str
    settings: dict[str, Any] | None = None


def _begin_endpoint(ctx: Context, tx: Tx, execution: Row, _step: Row, given: EndpointArguments) -> dict[str, Any]:
    actor = registry.actor_named(tx, execution["by"])
    row = records.find(tx, "endpoint", name=given.name)
    if row is None or row["status"] == EndpointStatus.DELETED:
        names = {"endpoint": given.name, "blueprint": given.blueprint}
        begun = blueprints.start_in(ctx, tx, actor, **names, settings=given.settings)
        rollout = endpoints.active_rollout(tx, given.name) and begun["id"]
    else:
        wanted = blueprints.blueprint_row(tx, given.blueprint)
        rollout = blueprints.begin(tx, actor, row, wanted, strategy="all-at-once")["id"]
    return {"name": given.name, "rollout": rollout}


def _endpoint(_ctx: Context, tx: Tx, begun: dict[str, Any]) -> dict[str, Any] | None:
    if begun["rollout"] is None:  # it serves a store of models, which moves no traffic
        return _opened(tx, begun["name"])
    row = records.get(tx, "rollout", begun["rollout"])
    if row["status"] == RolloutStatus.SUCCEEDED:
        return {"name": begun["name"]}
    if is_terminal("rollout", row["status"]):
        raise LooplineError(f"the rollout {row['id']} of {begun['name']} {row['status']}: {row['reason']}")
    return None


def _opened(tx: Tx, name: str) -> dict[str, Any] | None:
    row = endpoints.endpoint_row(tx, name)
    if row["status"] == EndpointStatus.FAILED:
        raise LooplineError(f"the endpoint {name} failed: {row['reason']}")
    return {"name": name} if row["status"] == EndpointStatus.IN_SERVICE else None


ACTIONS: Mapping[str, Action] = {
    "blueprint.create": Action(BlueprintArguments, _begin_blueprint, _blueprint),
    "endpoint.bring": Action(EndpointArguments, _begin_endpoint, _endpoint),
    "version.register": Action(VersionArguments, _begin_version, _version),
    "servable.create": Action(ServableArguments, _begin_servable, _servable),
}
