"""Data assets: bytes under ``name:version``, from a file, a folder, a step's output or captured traffic."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from loopline.control import events, specs
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.errors import InvalidInput, NotFound
from loopline.store import records
from loopline.store.blobs import Blob
from loopline.store.db import Row, Tx
from loopline.store.schema import assets, projects, steps

MAX_ASSET_BYTES = 16 << 30


def put_in(
    tx: Tx,
    *,
    project: str,
    name: str,
    digest: str,
    size_bytes: int,
    kind: str,
    file_name: str,
    actor: str,
    source: dict[str, Any],
) -> tuple[Row, bool]:
    """The asset's next version, or its newest when that holds the same bytes; says whether it is new."""
    names.check_name(name, "a data asset")
    query = sa.select(assets).where(assets.c.project == project, assets.c.name == name)
    newest = tx.row(query.order_by(assets.c.version.desc()).limit(1))
    if newest is not None and newest["digest"] == digest:
        return newest, False
    row = records.create(
        tx,
        "asset",
        actor=actor,
        project=project,
        name=name,
        version=1 if newest is None else newest["version"] + 1,
        digest=digest,
        kind=kind,
        format=file_name.rpartition(".")[2].lower() if kind == "file" and "." in file_name else None,
        size_bytes=size_bytes,
        source={**source, "name": file_name},
        by=actor,
    )
    return row, True


def upload(
    ctx: Context, actor: Actor, *, project: str, name: str, file: str, stream: Iterator[bytes]
) -> dict[str, Any]:
    """Add a version from the bytes of one file; the same bytes as the newest version add none.

    ``file``: the file's own name (its ending says the format); it never becomes a path of the server.
    """
    names.check_name(file, "a file")
    with ctx.db.read() as tx:
        project_row(tx, project)
    blob = ctx.blobs.put_stream(stream, MAX_ASSET_BYTES)
    return _uploaded(ctx, actor, project, name, blob, "file", file)


def upload_folder(ctx: Context, actor: Actor, *, project: str, name: str, stream: Iterator[bytes]) -> dict[str, Any]:
    """Add a version from a tar (plain or gzip) of a folder; the same files as the newest version add none."""
    with ctx.db.read() as tx:
        project_row(tx, project)
    return _uploaded(ctx, actor, project, name, ctx.blobs.put_tar(stream), "folder", name)


def _uploaded(
    ctx: Context, actor: Actor, project: str, name: str, blob: Blob, kind: str, file_name: str
) -> dict[str, Any]:
    with ctx.db.transaction() as tx:
        row, new = put_in(
            tx,
            project=project,
            name=name,
            digest=blob.digest,
            size_bytes=blob.size_bytes,
            kind=kind,
            file_name=file_name,
            actor=actor.name,
            source={"kind": "upload"},
        )
    return {**row, "new": new}


def from_step(
    ctx: Context, actor: Actor, *, project: str, name: str, execution: str, step: str, output: str = "result"
) -> dict[str, Any]:
    """Add a version from what a step gave."""
    with ctx.db.transaction() as tx:
        project_row(tx, project)
        row = tx.row(sa.select(steps).where(steps.c.execution == execution, steps.c.name == step))
        given = None if row is None else (row["outputs"] or {}).get(output)
        if given is None:
            raise NotFound(f"the step {step!r} of {execution} gave no {output!r}")
        if "value" in given or given.get("executable"):
            raise InvalidInput("a data asset is made from a file, a folder, a table or an array, not from this output")
        asset, new = put_in(
            tx,
            project=project,
            name=name,
            digest=given["sha256"],
            size_bytes=given["size_bytes"],
            kind="folder" if given["format"] == "folder" else "file",
            file_name=given["path"].rpartition("/")[2],
            actor=actor.name,
            source={"kind": "step", "execution": execution, "step": step, "output": output},
        )
    return {**asset, "new": new}


def list_(
    ctx: Context,
    actor: Actor,
    *,
    project: str | None = None,
    name: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Versions of data assets, newest first."""
    query = sa.select(assets).order_by(assets.c.created_at.desc(), assets.c.id.desc())
    if project is not None:
        query = query.where(assets.c.project == project)
    if name is not None:
        query = query.where(assets.c.name == name)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


def show(ctx: Context, actor: Actor, *, project: str, reference: str) -> dict[str, Any]:
    """One version: ``name:3``, or the newest of ``name``."""
    name, version = names.split_version(reference, "a data asset")
    with ctx.db.read() as tx:
        return specs.find_asset(tx, project, name, version)


def content(ctx: Context, actor: Actor, *, project: str, reference: str) -> Iterator[bytes]:
    """The bytes of a file asset, verified on the way."""
    row = show(ctx, actor, project=project, reference=reference)
    if row["kind"] != "file":
        raise InvalidInput("a folder has no single content; its files are listed by its manifest")
    return ctx.blobs.chunks(row["digest"])


def project_row(tx: Tx, name: str) -> Row:
    """The project of this name; raises ``NotFound``."""
    row = tx.row(sa.select(projects).where(projects.c.name == name))
    if row is None:
        raise NotFound(f"there is no project {name!r}; apply it first: loopline apply")
    return row
