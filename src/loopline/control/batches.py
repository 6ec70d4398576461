"""Batches: a table is scored by a version, as a job in the version's own environment.

What a batch has done stands in a folder of its own (``DIR/batches/ID``), which outlives the attempts of its job: the
next attempt goes on at the first chunk that is missing. The output is recorded once, when the job has ended.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import aliases, artifacts, assets, events, jobs, outputs, registry, specs
from loopline.control.context import SYSTEM, Context
from loopline.domain import names, states
from loopline.domain.access import Actor
from loopline.domain.states import BatchStatus, JobStatus
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.runtime import folder as files
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import batches

MAX_INPUT_BYTES = 16 << 30
FORMATS = ("csv", "tsv", "jsonl", "ndjson", "parquet")
OUTPUT_FORMATS = ("csv", "jsonl", "parquet")
MAX_WORKERS = 64
MAX_ROWS_PER_CALL = 1 << 16
DEFAULT_ROWS_PER_CALL = 4096
SECONDS_OF_A_DAY = 86400.0
STAGES = ("Scoring", "Scored", "Joining")


# -- beginning --------------------------------------------------------------------------------------------------------


def upload(ctx: Context, actor: Actor, *, stream: Iterator[bytes]) -> dict[str, Any]:
    """Store the bytes of a table, to be named by their digest in ``run``."""
    blob = ctx.blobs.put_stream(stream, MAX_INPUT_BYTES)
    return {"digest": blob.digest, "size_bytes": blob.size_bytes}


def run(
    ctx: Context,
    actor: Actor,
    *,
    model: str,
    number: int | None = None,
    asset: str | None = None,
    digest: str | None = None,
    file: str | None = None,
    format: str | None = None,
    output_format: str | None = None,
    keep: list[str] | None = None,
    workers: int = 1,
    rows_per_call: int = DEFAULT_ROWS_PER_CALL,
    max_bad_share: float = 0.1,
    timeout_seconds: float | None = None,
    save_as: str | None = None,
    force: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Score a table with a version (default: the champion).

    The table is a data asset of the model's project (``asset``: NAME or NAME:VERSION), or what ``upload`` stored:
    ``digest``, and ``file``, its own name, whose ending says the format unless ``format`` does. ``keep``: columns that
    are passed through. ``save_as``: the output becomes a version of this data asset, too. A version that is not
    Approved is refused unless ``force``, which an approver may use with a ``reason``.
    """
    _check_numbers(workers, rows_per_call, max_bad_share, timeout_seconds)
    with ctx.db.transaction(durable=True) as tx:
        version = aliases.champion_or(tx, model, number)
        project = registry.model_row(tx, model)["project"]
        registry.check_deployable(tx, version, actor, force=force, reason=reason)
        artifacts.check_trust(ctx, version["artifact"])
        if not version["environment"]:
            raise Conflict(f"{model} version {version['number']} names no environment to run in")
        given = _input(ctx, tx, project, asset, digest, file, format)
        wanted = output_format or {"tsv": "csv", "ndjson": "jsonl"}.get(given["format"], given["format"])
        if wanted not in OUTPUT_FORMATS:
            raise InvalidInput(f"{wanted!r} is not a format of an output; formats: {', '.join(OUTPUT_FORMATS)}")
        if save_as is not None:
            names.check_name(save_as, "a data asset")
            if project is None:
                raise InvalidInput(f"the model {model} belongs to no project, whose data asset the output could be")
        row = records.create(
            tx,
            "batch",
            actor=actor.name,
            project=project,
            model=model,
            number=version["number"],
            version=version["id"],
            input=given,
            settings={
                "output_format": wanted,
                "keep": list(dict.fromkeys(keep or ())),
                "workers": workers,
                "rows_per_call": rows_per_call,
                "max_bad_share": max_bad_share,
                "timeout_seconds": timeout_seconds,
                "save_as": save_as,
            },
            by=actor.name,
        )
        return _submit(ctx, tx, row, version)


def _check_numbers(workers: int, rows_per_call: int, max_bad_share: float, timeout_seconds: float | None) -> None:
    if not 1 <= workers <= MAX_WORKERS:
        raise InvalidInput(f"workers must be between 1 and {MAX_WORKERS}, not {workers}")
    if not 1 <= rows_per_call <= MAX_ROWS_PER_CALL:
        raise InvalidInput(f"rows_per_call must be between 1 and {MAX_ROWS_PER_CALL}, not {rows_per_call}")
    if not 0 <= max_bad_share <= 1:
        raise InvalidInput(f"max_bad_share must be between 0 and 1, not {max_bad_share}")
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise InvalidInput(f"timeout_seconds must be more than 0, not {timeout_seconds}")


def _input(
    ctx: Context, tx: Tx, project: str | None, asset: str | None, digest: str | None, file: str | None, form: str | None
) -> dict[str, Any]:
    """What is scored: {"digest", "name", "format"}, and "asset" when it is one."""
    if (asset is None) == (digest is None):
        raise InvalidInput("say what is scored: a data asset (asset), or what was uploaded (digest and file)")
    if asset is not None:
        if project is None:
            raise InvalidInput("the model belongs to no project whose data assets it could score; upload a file")
        name, wanted = names.split_version(asset, "a data asset")
        row = specs.find_asset(tx, project, name, wanted)
        if row["kind"] != "file":
            raise InvalidInput(f"the data asset {asset} is a folder; a batch scores one file")
        given = {"digest": row["digest"], "name": (row["source"] or {}).get("name") or name}
        given["asset"] = f"{name}:{row['version']}"
    else:
        assert digest is not None
        if not ctx.blobs.exists(digest):
            raise NotFound(f"nothing was uploaded with the digest {digest}")
        given = {"digest": digest, "name": names.check_name(file or "", "a file")}
    ending = given["name"].rpartition(".")[2].lower()
    given["format"] = form or ending
    if given["format"] not in FORMATS:
        raise InvalidInput(
            f"{given['name']} is no table known here; say its format, one of {', '.join(FORMATS)}", field="format"
        )
    return given


def _submit(ctx: Context, tx: Tx, row: Row, version: Row) -> Row:
    environment = records.get(tx, "environment", version["environment"])
    settings, given, folder = row["settings"], row["input"], _folder(ctx, row["id"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    inputs, places = artifacts.places(version)
    inputs["table"] = {"sha256": given["digest"], "kind": "file", "name": given["name"]}
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    spec = {
        **specs.environment_spec(environment),
        "tree": version["tree"],
        "inputs": inputs,
        "places": {**places, "table.path": "table"},
        "write": [str(folder)],
        "environ": one_thread if settings["workers"] > 1 else {},  # each worker computes for itself
        "limits": {"timeout_seconds": settings["timeout_seconds"]},
        "call": {
            "handler": version["handler"],
            "signature": version["signature"],
            "table": {"format": given["format"]},
            "keep": settings["keep"],
            "workers": settings["workers"],
            "rows_per_call": settings["rows_per_call"],
            "max_bad_share": settings["max_bad_share"],
            "max_bytes": ctx.settings.job_disk_mb << 20,
            "memory_mb": ctx.settings.job_memory_mb,
            "form": settings["output_format"],
            "output": f"predictions.{settings['output_format']}",
            "folder": str(folder),
        },
    }
    job = jobs.submit(
        ctx,
        tx,
        owner="batch",
        owner_id=row["id"],
        name=f"batch of {row['model']}",
        kind="batch",
        spec=spec,
        actor=row["by"],
    )
    records.set(tx, "batch", row["id"], actor=SYSTEM.name, job=job["id"])
    return {**row, "job": job["id"]}


def _folder(ctx: Context, batch: str) -> Path:
    folder: Path = ctx.settings.dir / "batches" / batch
    return folder


# -- its end ----------------------------------------------------------------------------------------------------------


def job_ended(ctx: Context, tx: Tx, job: Row) -> None:
    """The job of a batch has ended: keep its output, or the reason why there is none."""
    row = records.get(tx, "batch", job["owner_id"])
    if states.is_terminal("batch", row["status"]) or row["job"] != job["id"]:
        return
    ended: dict[str, Any] = {"ended_at": tx.now}
    if row["started_at"] is None:
        ended["started_at"] = job["started_at"]
    if job["status"] != JobStatus.SUCCEEDED:
        stopped = job["status"] == JobStatus.STOPPED
        status = BatchStatus.STOPPED if stopped else BatchStatus.FAILED
        if stopped and row["status"] == BatchStatus.RUNNING:
            records.move(tx, "batch", row["id"], BatchStatus.STOPPING, actor=SYSTEM.name)
        records.move(tx, "batch", row["id"], status, actor=SYSTEM.name, reason=job["reason"], **ended)
        return
    result = job["result"]
    summary, output, errors = outputs.read_json(ctx, result["summary"]), result["output"], result["errors"]
    name = output["path"].rpartition("/")[2]
    kept = {"digest": output["sha256"], "size_bytes": output["size_bytes"], "name": name, "columns": summary["columns"]}
    asset = None
    if row["settings"]["save_as"]:
        made, _ = assets.put_in(
            tx,
            project=row["project"],
            name=row["settings"]["save_as"],
            digest=output["sha256"],
            size_bytes=output["size_bytes"],
            kind="file",
            file_name=name,
            actor=row["by"],
            source={"kind": "batch", "batch": row["id"], "model": row["model"], "number": row["number"]},
        )
        asset = f"{made['name']}:{made['version']}"
    records.move(
        tx,
        "batch",
        row["id"],
        BatchStatus.SUCCEEDED,
        actor=SYSTEM.name,
        reason=_told(summary),
        output={**kept, "rows_per_second": summary["rows_per_second"], "seconds": summary["seconds"]},
        errors={"digest": errors["sha256"], "size_bytes": errors["size_bytes"], "name": "errors.jsonl"},
        asset=asset,
        rows=summary["rows"],
        bad=summary["bad"],
        **ended,
    )
    tx.after_commit.append(lambda: shutil.rmtree(_folder(ctx, row["id"]), ignore_errors=True))


def _told(summary: dict[str, Any]) -> str:
    aside = f", {summary['bad']} of them set aside" if summary["bad"] else ""
    return f"{summary['rows']} rows{aside}"


def watch(ctx: Context) -> None:
    """Tick: a batch whose job has begun is Running; one whose job ended without a word has ended, too."""
    with ctx.db.read() as tx:
        query = sa.select(batches).where(batches.c.status.not_in(list(states.TERMINAL["batch"])))
        found = [(row["id"], row["status"], records.get(tx, "job", row["job"])) for row in tx.rows(query)]
    for batch, status, job in found:
        begun = status == BatchStatus.PENDING and job["status"] == JobStatus.RUNNING
        if not begun and not states.is_terminal("job", job["status"]):
            continue
        with ctx.db.transaction() as tx:
            now = records.get(tx, "job", job["id"])
            if states.is_terminal("job", now["status"]):
                job_ended(ctx, tx, now)
            elif records.get(tx, "batch", batch)["status"] == BatchStatus.PENDING:
                records.move(tx, "batch", batch, BatchStatus.RUNNING, actor=SYSTEM.name, started_at=now["started_at"])


def prune(ctx: Context) -> None:
    """Tick: remove what batches that ended long ago could go on from."""
    before = ctx.clock.now() - ctx.settings.log_days * SECONDS_OF_A_DAY
    for folder in (ctx.settings.dir / "batches").glob("*"):
        with ctx.db.read() as tx:
            row = records.find(tx, "batch", id=folder.name)
        over = row is not None and states.is_terminal("batch", row["status"])
        if over and row is not None and (row["status"] == BatchStatus.SUCCEEDED or row["ended_at"] < before):
            shutil.rmtree(folder, ignore_errors=True)


# -- what people do ---------------------------------------------------------------------------------------------------


def stop(ctx: Context, actor: Actor, *, batch: str, reason: str = "stopped by a person") -> dict[str, Any]:
    """Stop a batch; what it has done stays for some time, see ``resume``."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "batch", batch)
        if states.is_terminal("batch", row["status"]) or row["status"] == BatchStatus.STOPPING:
            return row
        job = jobs.stop(ctx, tx, row["job"], actor=actor.name, reason=reason)
        if states.is_terminal("job", job["status"]):
            return records.move(
                tx, "batch", batch, BatchStatus.STOPPED, actor=actor.name, reason=reason, ended_at=tx.now
            )
        if row["status"] == BatchStatus.PENDING:
            records.move(tx, "batch", batch, BatchStatus.RUNNING, actor=SYSTEM.name, started_at=job["started_at"])
        return records.move(tx, "batch", batch, BatchStatus.STOPPING, actor=actor.name, reason=reason)


def resume(ctx: Context, actor: Actor, *, batch: str) -> dict[str, Any]:
    """Let a batch that failed or was stopped go on at the first chunk that is missing."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "batch", batch)
        version = records.get(tx, "version", row["version"])
        row = records.move(tx, "batch", batch, BatchStatus.PENDING, actor=actor.name, ended_at=None)
        return _submit(ctx, tx, row, version)


def list_(
    ctx: Context, actor: Actor, *, model: str | None = None, limit: int = 50, cursor: str | None = None
) -> dict[str, Any]:
    """Batches, newest first, with the progress of those that run."""
    query = sa.select(batches).order_by(batches.c.created_at.desc(), batches.c.id.desc())
    if model is not None:
        query = query.where(batches.c.model == model)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page([_with_progress(ctx, row) for row in rows], limit, offset)


def show(ctx: Context, actor: Actor, *, batch: str) -> dict[str, Any]:
    """A batch; ``progress``: rows_done, rows_total, bad, rows_per_second of its newest attempt."""
    with ctx.db.read() as tx:
        return _with_progress(ctx, records.get(tx, "batch", batch))


def _with_progress(ctx: Context, row: Row) -> Row:
    progress: dict[str, Any]
    if row["status"] == BatchStatus.SUCCEEDED:
        done = {"rows_done": row["rows"], "rows_total": row["rows"], "bad": row["bad"]}
        progress = {"stage": "Done", **done, "rows_per_second": row["output"]["rows_per_second"]}
    else:
        said = files.read_json(str(_folder(ctx, row["id"])), "progress.json") or {}  # by a process that runs user code
        progress = {name: value for name, value in said.items() if isinstance(value, int | float)}
        progress["stage"] = said.get("stage") if said.get("stage") in STAGES else None
    return {**row, "progress": progress}


def output(ctx: Context, actor: Actor, *, batch: str) -> dict[str, Any]:
    """The predictions of a batch."""
    return _result(ctx, batch, "output")


def errors(ctx: Context, actor: Actor, *, batch: str) -> dict[str, Any]:
    """The rows that a batch set aside, as JSON lines: row (from 1), reason, input."""
    return _result(ctx, batch, "errors")


def _result(ctx: Context, batch: str, which: str) -> dict[str, Any]:
    with ctx.db.read() as tx:
        row = records.get(tx, "batch", batch)
    if row["status"] != BatchStatus.SUCCEEDED:
        raise Conflict(f"the batch {batch} is {row['status']}: it has no {which} yet")
    result: dict[str, Any] = row[which]
    return result
