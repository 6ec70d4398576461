"""Compilations: a version's model in a form that answers the same, but faster; used wherever the version is served.

The conversion is a job in the version's own environment (``runtime.conversion``). It compares both forms on the gate's
test asset: only one that answers the same is kept. It holds up no approval; a version without it is served as it is.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import artifacts, jobs, outputs, registry, specs
from loopline.control.context import SYSTEM, Context
from loopline.domain import names, states
from loopline.domain.states import CompilationStatus, JobStatus
from loopline.errors import Conflict, LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import compilations

HANDLERS = {"onnx": "onnx"}  # format -> the handler that serves it
TIMEOUT_SECONDS = 900
WAIT_SECONDS = 1.0


def begin(ctx: Context, tx: Tx, version: Row, wanted: dict[str, Any], *, actor: str) -> Row:
    """Begin to convert a version's model; ``wanted``: {"format", "tolerance"}. What is missing makes it fail."""
    row = records.create(
        tx,
        "compilation",
        actor=actor,
        version=version["id"],
        model=version["model"],
        number=version["number"],
        format=wanted["format"],
        tolerance=wanted["tolerance"],
        by=actor,
    )
    try:
        job = _submit(ctx, tx, row, version)
    except LooplineError as error:
        return _end(tx, row, CompilationStatus.FAILED, error.message)
    return records.move(tx, "compilation", row["id"], CompilationStatus.CONVERTING, actor=SYSTEM.name, job=job["id"])


def _submit(ctx: Context, tx: Tx, row: Row, version: Row) -> Row:
    model = registry.model_row(tx, version["model"])
    policy = model["gate"] or {}
    if not policy.get("test") or not policy.get("label"):
        raise Conflict("[gate] names no test asset and label, on which both forms could be compared")
    name, number = names.split_version(policy["test"], "a data asset")
    asset = specs.find_asset(tx, model["project"], name, number)
    file = (asset["source"] or {}).get("name") or name
    environment = records.get(tx, "environment", version["environment"])
    inputs, places = artifacts.places(version)
    inputs["table"] = {"sha256": asset["digest"], "kind": asset["kind"], "name": file}
    spec = {
        **specs.environment_spec(environment),
        "tree": version["tree"],
        "inputs": inputs,
        "places": {**places, "table.path": "table"},
        "limits": {"timeout_seconds": TIMEOUT_SECONDS},
        "call": {
            "table": {"format": file.rpartition(".")[2].lower()},
            "label": policy["label"],
            "signature": version["signature"],
            "tolerance": row["tolerance"],
        },
    }
    return jobs.submit(
        ctx,
        tx,
        owner="compilation",
        owner_id=row["id"],
        name="convert the model",
        kind="convert",
        spec=spec,
        actor=SYSTEM.name,
        max_tries=2,
        backoff_seconds=1,
    )


def job_ended(ctx: Context, tx: Tx, job: Row) -> None:
    """A conversion has ended: keep its report, and the converted model where it answers the same."""
    row = records.get(tx, "compilation", job["owner_id"])
    if states.is_terminal("compilation", row["status"]):
        return
    if job["status"] != JobStatus.SUCCEEDED:
        _end(tx, row, CompilationStatus.FAILED, job["reason"])
        return
    report = outputs.read_json(ctx, job["result"]["report"])
    converted = job["result"].get("converted")
    if converted is None or not report["passed"]:
        _end(tx, row, CompilationStatus.REFUSED, report["reason"], report)
        return
    artifact = {
        "sha256": converted["sha256"],
        "size_bytes": converted["size_bytes"],
        "kind": "file",
        "name": Path(converted["path"]).name,
        "executable": bool(converted.get("executable")),
        "sealed": converted.get("sealed"),
    }
    reason = f"the same answers on {report['rows']} rows, in {report['precision']}"
    _end(tx, row, CompilationStatus.PASSED, reason, report, artifact)


def _end(
    tx: Tx,
    row: Row,
    status: CompilationStatus,
    reason: str,
    report: dict[str, Any] | None = None,
    artifact: dict[str, Any] | None = None,
) -> Row:
    ended: dict[str, Any] = {"reason": reason, "report": report, "artifact": artifact, "ended_at": tx.now}
    return records.move(tx, "compilation", row["id"], status, actor=SYSTEM.name, **ended)


def latest(tx: Tx, version: Row) -> Row | None:
    """The newest compilation of a version; of a copy, that of the original."""
    known = [version["id"], *([version["copied_from"]["version"]] if version["copied_from"] else [])]
    query = sa.select(compilations).where(compilations.c.version.in_(known))
    return tx.row(query.order_by(compilations.c.created_at.desc(), compilations.c.id.desc()).limit(1))


def is_going_on(ctx: Context, version_id: str) -> bool:
    """Whether a version's model is being converted, so that its servers are better started a little later."""
    with ctx.db.read() as tx:
        row = latest(tx, records.get(tx, "version", version_id))
    return row is not None and not states.is_terminal("compilation", row["status"])


def served(ctx: Context, version: Row) -> dict[str, str] | None:
    """What a model server's spec says of the compiled form: {"handler", "model_dir"}; None where there is none."""
    with ctx.db.read() as tx:
        row = latest(tx, version)
    if row is None or row["status"] != CompilationStatus.PASSED:
        return None
    folder = artifacts.model_dir(ctx, {**version, "artifact": row["artifact"]})
    return {"handler": HANDLERS[row["format"]], "model_dir": str(folder)}
