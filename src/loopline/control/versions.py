"""Versions made of files that somebody brings, and what becomes of a version after it is registered: words about it,
another decision, copies, and its end."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    requirements: str | None = None,
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
    of it that is asked. ``requirements``: the packages of its environment, or those that stand for ``image``.
    ``properties``: texts of its owner's, at most 50. ``reports``: addresses of what was measured elsewhere, by what
    they are about, such as ``{"model_quality": "s3://..."}``: the version's evaluation is Claimed then. ``status``: as
    it begins; Approved needs who may approve, and ``unverified`` where an enforced gate would refuse.
    """
    source = {"data": data, "code": code, "program": program, "image": image, "variables": variables or {}}
    with ctx.db.transaction(durable=True) as tx:
        if requirements is None:
            requirements = images.choose(ctx, tx, image).requirements if image else ""
        row = register_in(
            ctx,
            tx,
            actor,
            model=model,
            source={**source, "requirements": requirements} if data or code else None,
            description=description,
            properties=properties or {},
            reports={about: claims.Source(uri) for about, uri in (reports or {}).items()},
            status=status,
            comment=comment,
            unverified=unverified,
        )
        verification.add(tx, [row])
        return row


def register_in(
    ctx: Context,
    tx: Tx,
    actor: Actor,
    *,
    model: str,
    source: Mapping[str, Any] | None,
    description: str = "",
    properties: Mapping[str, str] | None = None,
    reports: Mapping[str, claims.Source] | None = None,
    status: str = VersionStatus.PENDING,
    comment: str = "",
    unverified: bool = False,
    declared: Mapping[str, Any] | None = None,
    execution: str | None = None,
    step: str | None = None,
    run: str | None = None,
) -> Row:
    """As ``register``, in a transaction; the same (execution, step) gives the same version again.

    ``source``: what ``servables.create_in`` takes; None for a version of which there are words alone, which cannot
    serve. ``declared``: what else its author says of it; kept as it is.
    """
    pipelines.check_version_status(status)
    check_words(description, properties or {})
    again = records.find(tx, "version", execution=execution, step=step) if execution else None
    if again is not None:
        return again
    row = registry.register(
        tx,
        model=model,
        actor=actor.name,
        handler=HANDLER,
        metrics={},
        metadata={
            "description": description,
            "properties": dict(properties or {}),
            **({"declared": dict(declared)} if declared else {}),
        },
        execution=execution,
        step=step,
        run=run,
    )
    if source is not None:
        row = provide(ctx, tx, actor, row, source)
    row = {**row, **claims.record(ctx, tx, row, reports or {}, actor=actor.name)}
    if status == VersionStatus.APPROVED:
        words = comment or "registered as Approved"
        return registry.approve_in(tx, row, actor, comment=words, unverified=unverified)
    if status == VersionStatus.REJECTED:
        access.require(actor, Permission.APPROVE)
        return registry.reject_in(tx, row, actor=actor.name, comment=comment or "registered as Rejected")
    return row


def provide(ctx: Context, tx: Tx, actor: Actor, row: Row, source: Mapping[str, Any]) -> Row:
    """Give a version that has nothing to serve its files. Raises ``Conflict`` for one that has."""
    if row["artifact"] is not None:
        raise Conflict(f"{row['model']} version {row['number']} has its files, which never change; register another")
    made = servables.create_in(ctx, tx, actor=actor.name, name=None, handler=HANDLER, version=row, **source)
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
    return {**row, **values}


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
    with ctx.db.transaction(durable=True) as tx:
        row = registry.version_row(tx, model, number)
        return update_in(tx, row, actor, description=description, properties=properties, remove=remove)


def update_in(
    tx: Tx,
    row: Row,
    actor: Actor,
    *,
    description: str | None = None,
    properties: Mapping[str, str] | None = None,
    remove: Sequence[str] | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Row:
    """As ``update``, in a transaction; ``declared`` is laid over what its author said of it."""
    metadata = dict(row["metadata"] or {})
    kept = {key: value for key, value in (metadata.get("properties") or {}).items() if key not in (remove or ())}
    metadata["properties"] = {**kept, **(properties or {})}
    if description is not None:
        metadata["description"] = description
    if declared:
        metadata["declared"] = {**(metadata.get("declared") or {}), **declared}
    check_words(metadata.get("description") or "", metadata["properties"])
    if metadata != row["metadata"]:
        records.set(tx, "version", row["id"], actor=actor.name, metadata=metadata)
    return {**row, "metadata": metadata}


def reopen(ctx: Context, actor: Actor, *, model: str, number: int, comment: str = "") -> dict[str, Any]:
    """Make a version that was decided on wait for a decision again. What it serves, it goes on serving."""
    with ctx.db.transaction(durable=True) as tx:
        return reopen_in(tx, registry.version_row(tx, model, number), actor, comment=comment)


def reopen_in(tx: Tx, row: Row, actor: Actor, *, comment: str = "") -> Row:
    """As ``reopen``, in a transaction; one that waits already stays as it is."""
    access.require(actor, Permission.APPROVE)
    if row["status"] == VersionStatus.PENDING:
        return row
    undone = {"decided_by": None, "decided_at": None, "policy": None, "evidence": None, "comment": comment or None}
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
