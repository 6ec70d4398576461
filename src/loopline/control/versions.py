"""Versions made of files that somebody brings, and what becomes of a version after it is registered: words about it,
another decision, copies, and its end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import claims, images, registry, servables, verification
from loopline.control.context import Context
from loopline.domain import access, pipelines, states
from loopline.domain.access import Actor, Permission
from loopline.domain.states import EndpointStatus, VariantStatus, VersionStatus
from loopline.errors import Conflict, InvalidInput
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import aliases, compilations, endpoints, evaluations, variants, versions

HANDLER = "sagemaker"  # asks inference scripts, and models that bring none
MAX_PROPERTIES = 50
MAX_KEY, MAX_VALUE, MAX_DESCRIPTION = 128, 256, 1024
_OVER = (VariantStatus.STOPPED, VariantStatus.FAILED)

# -- registering ------------------------------------------------------------------------------------------------------


def register(
    ctx: Context,
    actor: Actor,
    *,
    model: str,
    data: str | None = None,
    image: str = "",
    requirements: str = "",
    variables: dict[str, str] | None = None,
    code: str | None = None,
    program: str | None = None,
    description: str = "",
    properties: dict[str, str] | None = None,
    reports: dict[str, str] | None = None,
    status: str = VersionStatus.PENDING,
    comment: str = "",
    unverified: bool = False,
) -> dict[str, Any]:
    """Add a version made of objects.

    ``data``: the address (s3://BUCKET/KEY) of a tar of model files; ``code``: of a tar of code; ``program``: the file
    of it that is asked. ``requirements``: packages of its environment beside those that stand for ``image``.
    ``properties``: texts of its owner's, at most 50. ``reports``: addresses of what was measured elsewhere, by what
    they are about, such as ``{"model_quality": "s3://..."}``: the version's evaluation is Claimed then. ``status``: as
    it begins; Approved needs who may approve, and ``unverified`` where an enforced gate would refuse. ``warnings`` in
    the answer: what may not be expected.
    """
    source: dict[str, Any] = {"data": data, "code": code, "program": program, "image": image}
    source |= {"variables": variables or {}, "requirements": requirements}
    wanted = New(
        source=source if data or code else None,
        description=description,
        properties=properties or {},
        reports={about: claims.Source(uri) for about, uri in (reports or {}).items()},
        status=status,
        comment=comment,
        unverified=unverified,
    )
    return admit(ctx, actor, model=model, wanted=wanted)


class New(NamedTuple):
    """A version as somebody brings it.

    ``source``: what ``servables.create_in`` takes; None for a version of which there are words alone, and which cannot
    serve. ``declared``: what else its author says of it, kept as it is. ``execution`` and ``step``: which step made it;
    the same again gives the same version again.
    """

    source: Mapping[str, Any] | None
    description: str = ""
    properties: Mapping[str, str] = {}
    reports: Mapping[str, claims.Source] = {}
    status: str = VersionStatus.PENDING
    comment: str = ""
    unverified: bool = False
    declared: Mapping[str, Any] | None = None
    execution: str | None = None
    step: str | None = None
    run: str | None = None


def admit(ctx: Context, actor: Actor, *, model: str, wanted: New) -> dict[str, Any]:
    """Add a version in a transaction of its own; ``warnings`` in the answer say what may not be expected."""
    with ctx.db.transaction(durable=True) as tx:
        row = admit_in(ctx, tx, actor, model, wanted)
        verification.add(tx, [row])
        return row


def admit_in(ctx: Context, tx: Tx, actor: Actor, model: str, wanted: New) -> Row:
    """Add a version, with its files, what is claimed of it and the status that it begins with: all of it or nothing."""
    pipelines.check_version_status(wanted.status)
    check_words(wanted.description, wanted.properties)
    again = records.find(tx, "version", execution=wanted.execution, step=wanted.step) if wanted.execution else None
    if again is not None:
        return {**again, "warnings": []}
    metadata: dict[str, Any] = {"description": wanted.description, "properties": dict(wanted.properties)}
    if wanted.declared:
        metadata["declared"] = dict(wanted.declared)
    origin = {"execution": wanted.execution, "step": wanted.step, "run": wanted.run}
    row = registry.register(tx, model=model, actor=actor.name, handler=HANDLER, metrics={}, metadata=metadata, **origin)
    warnings: list[str] = []
    if wanted.source is not None:
        row, warnings = provide(ctx, tx, actor, row, wanted.source)
    claimed, problems = claims.record(ctx, tx, row, wanted.reports, actor=actor.name)
    comment = wanted.comment or (f"registered as {wanted.status}" if wanted.status != VersionStatus.PENDING else "")
    row = _decide(tx, {**row, **claimed}, actor, wanted.status, comment, wanted.unverified)
    return {**row, "warnings": [*warnings, *problems]}


def _decide(tx: Tx, row: Row, actor: Actor, status: str, comment: str, unverified: bool) -> Row:
    """Bring a version to a status by the rules of approval; one that has it already keeps it, with the new comment."""
    if status == VersionStatus.APPROVED:
        return registry.approve_in(tx, row, actor, comment=comment, unverified=unverified, again=True)
    access.require(actor, Permission.WRITE if row["status"] == status else Permission.APPROVE)
    if status == VersionStatus.PENDING:
        return _wait_again(tx, row, actor, comment)
    if row["status"] == status and comment:
        records.set(tx, "version", row["id"], actor=actor.name, reason=comment, comment=comment)
        return {**row, "comment": comment}
    return registry.reject_in(tx, row, actor=actor.name, comment=comment)


def provide(ctx: Context, tx: Tx, actor: Actor, row: Row, source: Mapping[str, Any]) -> tuple[Row, list[str]]:
    """Give a version that has nothing to serve its files; gives it and warnings. Raises ``Conflict`` for one that has
    some, and ``NotFound`` for objects that are not there."""
    if row["artifact"] is not None:
        raise Conflict(f"{row['model']} version {row['number']} has its files, which never change; register another")
    warning = images.choose(ctx, tx, source["image"]).warning if source.get("image") else None
    made = servables.create_in(ctx, tx, actor=actor.name, name=None, version=row, **{"handler": HANDLER, **source})
    origin = made["source"].get("data") or made["source"]["code"]
    values = {
        "servable": made["id"],
        "artifact": {
            "format": "file",
            "kind": "file",
            "name": origin["uri"].rpartition("/")[2] or "model",
            "sha256": origin["digest"],
            "size_bytes": origin["size_bytes"],
            "uri": origin["uri"],
            "executable": True,
            "trust": "uploaded",
        },
    }
    records.set(tx, "version", row["id"], actor=actor.name, **values)
    return {**row, **values}, [warning] if warning else []


def check_words(description: str, properties: Mapping[str, str]) -> None:
    """Raise ``InvalidInput`` for more or longer words than a version keeps."""
    if len(description) > MAX_DESCRIPTION:
        raise InvalidInput(f"description: at most {MAX_DESCRIPTION} characters")
    if len(properties) > MAX_PROPERTIES:
        raise InvalidInput(f"properties: at most {MAX_PROPERTIES}")
    for key, value in properties.items():
        if not 1 <= len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise InvalidInput(f"properties: a key has 1 to {MAX_KEY} characters, its value at most {MAX_VALUE}")


# -- changing ---------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What is to change of a version; None leaves it. ``properties`` are laid over those that it has, ``declared`` over
    what its author said of it; ``source`` gives files to one that has none, as for ``New``."""

    description: str | None = None
    properties: Mapping[str, str] = {}
    remove: Sequence[str] = ()
    declared: Mapping[str, Any] = {}
    source: Mapping[str, Any] | None = None
    status: str | None = None
    comment: str = ""
    unverified: bool = False


def update(
    ctx: Context,
    actor: Actor,
    *,
    model: str,
    number: int,
    description: str | None = None,
    properties: dict[str, str] | None = None,
    remove: list[str] | None = None,
) -> dict[str, Any]:
    """Change the words about a version: its description, some of its ``properties``, or ``remove`` some of them."""
    change = Change(description=description, properties=properties or {}, remove=remove or ())
    return amend(ctx, actor, model=model, number=number, change=change)


def amend(ctx: Context, actor: Actor, *, model: str, number: int, change: Change) -> dict[str, Any]:
    """Change a version: all that is asked, or nothing. ``warnings`` in the answer say what may not be expected."""
    with ctx.db.transaction(durable=True) as tx:
        row = registry.version_row(tx, model, number)
        warnings: list[str] = []
        if change.source is not None:
            row, warnings = provide(ctx, tx, actor, row, change.source)
        row = _reword(tx, row, actor, change)
        if change.status is not None:
            pipelines.check_version_status(change.status)
            row = _decide(tx, row, actor, change.status, change.comment, change.unverified)
        verification.add(tx, [row])
        return {**row, "warnings": warnings}


def _reword(tx: Tx, row: Row, actor: Actor, change: Change) -> Row:
    before = row["metadata"] or {}
    metadata = dict(before)
    kept = {key: value for key, value in (before.get("properties") or {}).items() if key not in change.remove}
    if kept or change.properties or "properties" in before:
        metadata["properties"] = {**kept, **change.properties}
    if change.description is not None:
        metadata["description"] = change.description
    if change.declared:
        metadata["declared"] = {**(before.get("declared") or {}), **change.declared}
    check_words(metadata.get("description") or "", metadata.get("properties") or {})
    if metadata != before:
        records.set(tx, "version", row["id"], actor=actor.name, metadata=metadata)
    return {**row, "metadata": metadata}


def reopen(ctx: Context, actor: Actor, *, model: str, number: int, comment: str = "") -> dict[str, Any]:
    """Make a version that was decided on wait for a decision again. What it serves, it goes on serving."""
    change = Change(status=VersionStatus.PENDING, comment=comment)
    return amend(ctx, actor, model=model, number=number, change=change)


def _wait_again(tx: Tx, row: Row, actor: Actor, comment: str) -> Row:
    """Pending again, undecided; one that waits already stays as it is."""
    if row["status"] == VersionStatus.PENDING:
        return row
    undone: dict[str, Any] = {"decided_by": None, "decided_at": None, "policy": None, "evidence": None}
    undone["comment"] = comment or None
    return records.move(
        tx, "version", row["id"], VersionStatus.PENDING, actor=actor.name, reason=comment or None, **undone
    )


def copy(ctx: Context, actor: Actor, *, model: str, number: int, to: str) -> dict[str, Any]:
    """Copy a version into another model (a challenger group, production); its lineage leads to the original."""
    kept = ("artifact", "handler", "tree", "environment", "signature", "baseline", "warmup", "metrics", "metadata")
    with ctx.db.transaction() as tx:
        row = registry.version_row(tx, model, number)
        return registry.register(
            tx,
            model=to,
            actor=actor.name,
            run=row["run"],
            servable=row["servable"],
            copied_from={"model": model, "number": number, "version": row["id"]},
            **{key: row[key] for key in kept},
        )


def compare(ctx: Context, actor: Actor, *, model: str, a: int, b: int) -> dict[str, Any]:
    """The metrics of two versions of a model side by side."""
    with ctx.db.read() as tx:
        left, right = (registry.version_row(tx, model, number)["metrics"] or {} for number in (a, b))
    items = []
    for key in sorted({*left, *right}):
        first, second = left.get(key), right.get(key)
        difference = None
        if isinstance(first, int | float) and isinstance(second, int | float):
            difference = second - first
        items.append({"key": key, "a": first, "b": second, "difference": difference})
    return {"model": model, "a": a, "b": b, "items": items, "next": None}


# -- ending -----------------------------------------------------------------------------------------------------------


def delete(ctx: Context, actor: Actor, *, model: str, number: int, reason: str = "") -> dict[str, Any]:
    """Take a version out of the registry; its number is not given again, and its events stay.

    Raises ``Conflict`` while it runs behind an endpoint, or while a job works on it.
    """
    with ctx.db.transaction(durable=True) as tx:
        row = registry.version_row(tx, model, number)
        what = f"{model} version {number}"
        query = sa.select(variants.c.endpoint).where(variants.c.version == row["id"], variants.c.status.not_in(_OVER))
        used = sorted({each["endpoint"] for each in tx.rows(query)})
        if used:
            raise Conflict(f"{what} runs behind {', '.join(used)}; release another version there first")
        for table, noun in ((evaluations, "evaluation"), (compilations, "compilation")):
            going = table.c.status.not_in(list(states.TERMINAL[noun]))
            if tx.row(sa.select(table.c.id).where(table.c.version == row["id"], going)) is not None:
                raise Conflict(f"{what} is being judged or converted; wait for it")
        for alias in tx.rows(sa.select(aliases).where(aliases.c.model == model, aliases.c.number == number)):
            records.delete(tx, "alias", alias["id"], actor=actor.name)
        records.delete(tx, "version", row["id"], actor=actor.name, reason=reason or f"{what} deleted")
        return row


def delete_model(ctx: Context, actor: Actor, *, model: str) -> dict[str, Any]:
    """Take a registered model away. Raises ``Conflict`` while it has versions, or an endpoint is there for it."""
    with ctx.db.transaction(durable=True) as tx:
        row = registry.model_row(tx, model)
        count = tx.row(sa.select(sa.func.count().label("n")).where(versions.c.model == model))
        if count and count["n"]:
            raise Conflict(f"the model {model!r} has {count['n']} versions; delete them first")
        query = sa.select(endpoints.c.name).where(
            endpoints.c.model == model, endpoints.c.status != EndpointStatus.DELETED
        )
        used = sorted(each["name"] for each in tx.rows(query))
        if used:
            raise Conflict(f"the model {model!r} is what {', '.join(used)} serves; delete that first")
        records.delete(tx, "model", row["id"], actor=actor.name)
        return row
