"""Servables: what a variant runs: model files, the code that asks them, and an environment.

One that is made of a registered version stands under that version's approval; one that is made of files alone is
*ungated*, and shown so. Its objects are read once, when it is made: whatever becomes of them, it serves the same bytes.
"""

import re
from typing import Any

import sqlalchemy as sa

from loopline.control import artifacts, buckets, environments, images, objects, outputs, registry
from loopline.control.context import SYSTEM, Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.domain.objects import join_uri, split_uri
from loopline.domain.states import ServableStatus
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound
from loopline.store import folders, queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import servables, variants

HANDLERS = ("predict", "joblib", "onnx", "sagemaker")
CODE = "code"  # the folder of a model's files that holds its code and the packages that this needs
REQUIREMENTS = "requirements.txt"
MAX_VARIABLES_BYTES = 32 << 10
WAIT_SECONDS = 0.2
_PACKAGE = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_SEPARATORS = re.compile(r"[-_.]+")


# -- making -----------------------------------------------------------------------------------------------------------


def create(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    data: str | None = None,
    store: str | None = None,
    version: str | None = None,
    code: str | None = None,
    program: str | None = None,
    handler: str = "predict",
    image: str = "",
    requirements: str = "",
    variables: dict[str, str] | None = None,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a servable of files, of a version, or of a store of models.

    ``data``: the address (s3://BUCKET/KEY) of a tar of model files, as a rule with ``code/`` in it; or ``version``:
    MODEL:NUMBER; or ``store``: a prefix (s3://BUCKET/PREFIX/) below which each tar is a model. ``code``: the address of
    a tar of code; ``program``: the file of it that is asked. ``requirements``: the packages of its environment, beside
    those that its ``image`` stands for; those of ``code/requirements.txt`` are added. ``variables``: of its process.
    ``given``: what its author wrote, kept as it is.
    """
    names.check_name(name, "a servable")
    with ctx.db.transaction() as tx:
        if records.find(tx, "servable", name=name) is not None:
            raise Conflict(f"there is a servable {name!r} already")
        values: dict[str, Any] = {"program": program, "image": image, "variables": variables or {}, "given": given}
        if version is not None:
            if data is not None or code is not None or store is not None:
                raise InvalidInput("a servable is made of a version, of data or of a store, and of no two of them")
            return _public(of_version(tx, actor.name, name, version, values))
        return _public(
            create_in(
                ctx,
                tx,
                actor=actor.name,
                name=name,
                data=data,
                store=store,
                code=code,
                handler=handler,
                requirements=requirements,
                **values,
            )
        )


def of_version(tx: Tx, actor: str, name: str, reference: str, values: dict[str, Any]) -> Row:
    """As ``create`` of a version, in a transaction."""
    model, number = names.split_version(reference, "a model")
    if number is None:
        raise InvalidInput(f"version: say which: {model}:1")
    row = registry.version_row(tx, model, number)
    own = records.get(tx, "servable", row["servable"]) if row["servable"] else None
    return records.create(
        tx,
        "servable",
        actor=actor,
        name=name,
        status=ServableStatus.READY,
        version=row["id"],
        model=model,
        number=number,
        handler=row["handler"] if own is None else own["handler"],
        artifact=row["artifact"] if own is None else own["artifact"],
        by=actor,
        **values,
    )


def create_in(
    ctx: Context,
    tx: Tx,
    *,
    actor: str,
    name: str | None,
    data: str | None = None,
    store: str | None = None,
    code: str | None = None,
    program: str | None = None,
    handler: str = "predict",
    image: str = "",
    requirements: str = "",
    variables: dict[str, str] | None = None,
    given: dict[str, Any] | None = None,
    version: Row | None = None,
) -> Row:
    """As ``create`` of files, in a transaction; without a name for what belongs to a ``version``.

    The objects have to be there now: raises ``NotFound``. Unpacking them and building the environment comes later.
    """
    if handler not in HANDLERS:
        raise InvalidInput(f"{handler!r} is no handler; handlers: {', '.join(HANDLERS)}")
    if data is None and code is None and store is None:
        raise InvalidInput("a servable needs model files or code: say data, store or code")
    if data is not None and store is not None:
        raise InvalidInput("a servable has data or a store, not both")
    if sum(len(key) + len(value) for key, value in (variables or {}).items()) > MAX_VARIABLES_BYTES:
        raise InvalidInput(f"variables hold at most {MAX_VARIABLES_BYTES} bytes")
    wanted = {"data": data, "code": code}
    made_of: dict[str, Any] = {what: _source(ctx, tx, uri) for what, uri in wanted.items() if uri is not None}
    if store is not None:
        made_of["store"] = _store(tx, store)
    row = records.create(
        tx,
        "servable",
        actor=actor,
        name=name,
        version=None if version is None else version["id"],
        model=None if version is None else version["model"],
        number=None if version is None else version["number"],
        image=image,
        handler=handler,
        program=program,
        source=made_of,
        variables=variables or {},
        given=given,
        requirements=requirements,
        by=actor,
    )
    queue.ask(tx, "servable.prepare", row["id"])
    return row


def _store(tx: Tx, uri: str) -> dict[str, Any]:
    """A prefix with its slash; raises ``NotFound`` without its bucket."""
    bucket, prefix = split_uri(uri)
    buckets.find(tx, bucket)
    return {"uri": join_uri(bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/")}


def store_of(row: Row) -> str | None:
    """The prefix below which a servable's models are; None where it is one model."""
    store = (row["source"] or {}).get("store")
    return None if store is None else str(store["uri"])


def below(tx: Tx, store: Row, model: str, archive: Row) -> Row:
    """A servable without a name for one archive of a store, with the store's code, packages and variables."""
    data = {"uri": f"{store_of(store)}{model}", "kind": "tar", "below": model}
    shared = ("image", "handler", "program", "code", "variables", "requirements", "by")
    row = records.create(
        tx,
        "servable",
        actor=SYSTEM.name,
        name=None,
        source={"data": {**data, "digest": archive["digest"], "size_bytes": archive["size_bytes"]}},
        **{key: store[key] for key in shared},
    )
    queue.ask(tx, "servable.prepare", row["id"])
    return row


def _source(ctx: Context, tx: Tx, uri: str) -> dict[str, Any]:
    """An object as it is now: {"uri", "kind", "digest", "size_bytes"}; raises ``NotFound``.

    An address that ends with ``/`` means the files below it.
    """
    bucket, key = split_uri(uri)
    if key.endswith("/") or not key:
        blob = objects.folder(ctx, bucket, key)
        return {"uri": uri, "kind": "folder", "digest": blob.digest, "size_bytes": blob.size_bytes}
    found = objects.find(tx, bucket, key)
    return {"uri": uri, "kind": "tar", "digest": found["digest"], "size_bytes": found["size_bytes"]}


# -- getting ready ----------------------------------------------------------------------------------------------------


def prepare(ctx: Context, servable_id: str) -> float | None:
    """Task: unpack a servable's files and build its environment."""
    with ctx.db.read() as tx:
        row = records.find(tx, "servable", id=servable_id)
    if row is None or row["status"] != ServableStatus.PENDING:
        return None
    try:
        values = _prepared(ctx, row)
    except (LooplineError, OSError) as error:
        reason = error.message if isinstance(error, LooplineError) else str(error)
        _settle(ctx, servable_id, ServableStatus.FAILED, reason, {})
        return None
    _settle(ctx, servable_id, ServableStatus.READY, None, values)
    return None


def _settle(ctx: Context, servable_id: str, status: str, reason: str | None, values: dict[str, Any]) -> None:
    with ctx.db.transaction() as tx:
        if records.get(tx, "servable", servable_id)["status"] == ServableStatus.PENDING:
            records.move(tx, "servable", servable_id, status, actor=SYSTEM.name, reason=reason, **values)


def _prepared(ctx: Context, row: Row) -> dict[str, Any]:
    source = row["source"]
    artifact = _unpack(ctx, source.get("data"))
    code = _unpack(ctx, source["code"]) if "code" in source else row["code"]
    text = merge(_usual(ctx, row), _own_requirements(ctx, artifact, code))
    environment = environments.ensure(ctx, project=None, requirements=text, preload=(), actor=row["by"])
    return {"artifact": artifact, "code": code, "requirements": text, "environment": environment["id"]}


def _usual(ctx: Context, row: Row) -> str:
    """The packages of the image, where one is named, and those that were asked for beside them."""
    if not row["image"]:
        return str(row["requirements"] or "")
    with ctx.db.read() as tx:
        chosen = images.choose(ctx, tx, row["image"])
    return merge(chosen.requirements, row["requirements"] or "")


def _unpack(ctx: Context, source: dict[str, Any] | None) -> dict[str, Any]:
    """The files of a tar as a version keeps its own. Whoever made the servable may run code, and so vouches for it."""
    if source is None:
        blob = folders.put_manifest(ctx.blobs, ())
        digest, size = blob.digest, blob.size_bytes
    elif source["kind"] == "folder":
        digest, size = source["digest"], source["size_bytes"]
    else:
        try:
            blob = ctx.blobs.put_tar(ctx.blobs.chunks(source["digest"]), folders.OWN)
        except InvalidInput as error:
            raise InvalidInput(f"{source['uri']} is no tar of files: {error.message}") from error
        digest, size = blob.digest, blob.size_bytes
    return {
        "format": "folder",
        "kind": "folder",
        "name": "model",
        "sha256": digest,
        "size_bytes": size,
        "executable": True,
        "trust": "uploaded",
        "sealed": ctx.signer.sign(digest),
    }


def _own_requirements(ctx: Context, artifact: dict[str, Any], code: dict[str, Any] | None) -> str:
    """What the code says that it needs: beside it where it came by itself, else in ``code/`` of the model files."""
    wanted = (artifact, f"{CODE}/{REQUIREMENTS}") if code is None else (code, REQUIREMENTS)
    for entry in folders.read_manifest(ctx.blobs, wanted[0]["sha256"]):
        if entry.path == wanted[1]:
            return ctx.blobs.read(entry.sha256).decode("utf-8", "replace")
    return ""


def merge(first: str, second: str) -> str:
    """Both texts of requirements as one; where both name a package, the second one's word counts."""
    named = {_package(line) for line in second.splitlines()} - {None}
    kept = [line for line in first.splitlines() if _package(line) not in named]
    return "\n".join(line for line in (*kept, *second.splitlines()) if line.strip())


def _package(line: str) -> str | None:
    found = _PACKAGE.match(line)
    return None if found is None else _SEPARATORS.sub("-", found[1]).lower()


def recover(ctx: Context) -> None:
    """At start: every servable that was on its way goes on."""
    with ctx.db.transaction() as tx:
        query = sa.select(servables.c.id).where(servables.c.status == ServableStatus.PENDING)
        for row in tx.rows(query):
            queue.ask(tx, "servable.prepare", row["id"])


# -- serving ----------------------------------------------------------------------------------------------------------


def of_variant(tx: Tx, variant: Row) -> Row | None:
    """The servable that a variant runs; None where it runs a version as its pipeline made it."""
    own = records.get(tx, "servable", variant["servable"]) if variant["servable"] else None
    if own is not None and own["source"] is not None:
        return own
    version = records.get(tx, "version", variant["version"]) if variant["version"] else None
    if version is None or not version["servable"]:
        return None
    row = records.get(tx, "servable", version["servable"])
    return row if own is None else {**row, "variables": {**(row["variables"] or {}), **(own["variables"] or {})}}


def problem(row: Row) -> str | None:
    """Why a servable will never serve; None for one that does, or may later."""
    if row["status"] == ServableStatus.FAILED:
        return f"the servable {row['name'] or row['id']} failed: {row['reason']}"
    return None


def spec(ctx: Context, row: Row) -> dict[str, Any]:
    """What a model server or a job is told of a servable that is Ready: paths of its files, and how to ask them."""
    model_dir = artifacts.model_dir(ctx, row)
    code = row["code"]
    return {
        "model_dir": str(model_dir),
        "code_dir": str(outputs.tree_path(ctx, code["sha256"])) if code else _inner_code(model_dir),
        "handler": row["handler"],
        "program": row["program"],
        "variables": row["variables"] or {},
    }


def _inner_code(model_dir: Any) -> str | None:
    folder = model_dir / CODE
    return str(folder) if folder.is_dir() else None


# -- people -----------------------------------------------------------------------------------------------------------


def servable_row(tx: Tx, name: str) -> Row:
    """The servable of this name; raises ``NotFound``."""
    row = records.find(tx, "servable", name=name)
    if row is None:
        raise NotFound(f"there is no servable {name!r}")
    return row


def list_(ctx: Context, actor: Actor, *, limit: int = 100) -> dict[str, Any]:
    """Servables that have a name, newest first."""
    query = sa.select(servables).where(servables.c.name.is_not(None)).order_by(servables.c.created_at.desc())
    with ctx.db.read() as tx:
        return {"items": [_public(row) for row in tx.rows(query.limit(limit))], "next": None}


def show(ctx: Context, actor: Actor, *, servable: str) -> dict[str, Any]:
    """A servable, whether it is gated, and the endpoints that run it."""
    with ctx.db.read() as tx:
        row = servable_row(tx, servable)
        query = sa.select(variants.c.endpoint).where(
            variants.c.servable == row["id"], variants.c.status.in_(("Starting", "Ready", "Warm"))
        )
        used = sorted({each["endpoint"] for each in tx.rows(query)})
    return {**_public(row), "endpoints": used}


def image_of(ctx: Context, actor: Actor, *, variant: str) -> str | None:
    """What the creator of a variant's servable called its environment; None where nobody called it anything."""
    with ctx.db.read() as tx:
        row = of_variant(tx, records.get(tx, "variant", variant))
    return (row and row["image"]) or None


def describe(ctx: Context, actor: Actor, *, servable: str) -> dict[str, Any]:
    """A servable as its author made it, the values of its variables too."""
    with ctx.db.read() as tx:
        return servable_row(tx, servable)


def delete(ctx: Context, actor: Actor, *, servable: str) -> dict[str, Any]:
    """Take a servable away; its name is free again. Variants that run it go on."""
    with ctx.db.transaction() as tx:
        row = servable_row(tx, servable)
        return _public(
            {
                **records.move(tx, "servable", row["id"], ServableStatus.DELETED, actor=actor.name, name=None),
                "name": servable,
            }
        )


def _public(row: Row) -> dict[str, Any]:
    """A servable as people see it; the values of its variables may be secrets."""
    shown = {key: value for key, value in row.items() if key not in ("variables", "requirements", "given")}
    return {**shown, "gated": row["version"] is not None, "variables": sorted(row["variables"] or {})}
