"""Compilations: a version's model in a form that answers the same, but faster; used wherever the version is served.

The conversion is a job in the version's own environment (``runtime.conversion``). It compares both forms on the gate's
test asset: only one that answers the same is kept. It holds up no approval; a version without it is served as it is.
A project asks for it in loop.toml, for each version that is registered, or a person for one version at any time.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import artifacts, jobs, outputs, processes, registry, servables, specs
from loopline.control.context import SYSTEM, Context
from loopline.domain import names, states
from loopline.domain.access import Actor
from loopline.domain.projects import COMPILE_TOLERANCE
from loopline.domain.states import CompilationStatus, JobStatus
from loopline.errors import Conflict, InvalidInput, LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import variants

HANDLERS = {"onnx": "onnx"}  # format -> the handler that serves it
FORMAT = "onnx"  # unless somebody says otherwise
CONVERTIBLE = "joblib"  # the handler whose models can be converted: they are served by themselves, without code
LARGEST_TOLERANCE = 0.1
TIMEOUT_SECONDS = 900
WAIT_SECONDS = 1.0


def begin(ctx: Context, tx: Tx, version: Row, wanted: dict[str, Any], *, actor: str) -> Row:
    """Begin to convert a version's model; ``wanted``: {"format", "tolerance"}. What is missing makes it fail."""
    row = _create(tx, version, wanted, actor)
    try:
        return _convert(ctx, tx, row, version)
    except LooplineError as error:
        return _end(tx, row, CompilationStatus.FAILED, error.message)


def _create(tx: Tx, version: Row, wanted: dict[str, Any], actor: str) -> Row:
    return records.create(
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


def _convert(ctx: Context, tx: Tx, row: Row, version: Row) -> Row:
    job = _submit(ctx, tx, row, version)
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
    tx.after_commit.append(lambda: _tell_servers(ctx, row["version"]))
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


def _tell_servers(ctx: Context, version_id: str) -> None:
    """Let the servers that a version has already use its compiled form, or none, from their next start on."""
    with ctx.db.read() as tx:
        version = records.find(tx, "version", id=version_id)
        rows = tx.rows(sa.select(variants).where(variants.c.version == version_id))
        entries = [entry for row in rows if servables.of_variant(tx, row) is None for entry in row["server"] or ()]
    if version is not None and entries:
        compiled = served(ctx, version)
        for entry in entries:
            processes.amend(entry, {"compiled": compiled})


def is_going_on(ctx: Context, version_id: str) -> bool:
    """Whether a version's model is being converted, so that its servers are better started a little later."""
    with ctx.db.read() as tx:
        row = registry.compilation_of(tx, records.get(tx, "version", version_id))
    return row is not None and not states.is_terminal("compilation", row["status"])


def served(ctx: Context, version: Row) -> dict[str, str] | None:
    """What a model server's spec says of the compiled form: {"handler", "model_dir"}; None where there is none."""
    with ctx.db.read() as tx:
        row = registry.compilation_of(tx, version, judged=True)
    if row is None or row["status"] != CompilationStatus.PASSED:
        return None
    folder = artifacts.model_dir(ctx, in_form(version, row))
    return {"handler": HANDLERS[row["format"]], "model_dir": str(folder)}


def accepted(tx: Tx, version: Row) -> Row:
    """The compilation whose form may stand for a version. Raises ``Conflict``, saying what there is instead."""
    verdict, row = registry.compilation_of(tx, version, judged=True), registry.compilation_of(tx, version)
    if verdict is not None and verdict["status"] == CompilationStatus.PASSED:
        return verdict
    what = f"{version['model']} version {version['number']}"
    if row is None:
        command = f"loopline versions compile {version['model']} {version['number']}"
        raise Conflict(f"{what} has no compiled form; run: {command}")
    if not states.is_terminal("compilation", row["status"]):
        raise Conflict(f"{what} is being converted; try again when that has ended")
    raise Conflict(f"{what} has no compiled form; its conversion was {row['status']}: {row['reason']}")


def in_form(version: Row, compilation: Row) -> Row:
    """A version with the compiled model in the place of its own."""
    return {**version, "artifact": compilation["artifact"], "handler": HANDLERS[compilation["format"]]}


# -- what people do ---------------------------------------------------------------------------------------------------


def compile_(ctx: Context, actor: Actor, *, model: str, number: int, tolerance: float | None = None) -> dict[str, Any]:
    """Convert a version's model, whatever its project asked for when it was registered.

    ``tolerance``: how far a number of the compiled form may be from the model's own (default: that of the version's
    last conversion, else 1e-6). A conversion that is going on, or that has passed with this tolerance, is given back
    as it is. Raises ``Conflict`` for a model that cannot be converted, and where there is nothing to compare it on.
    """
    if tolerance is not None and not 0 <= tolerance <= LARGEST_TOLERANCE:
        raise InvalidInput(f"tolerance: a number from 0 to {LARGEST_TOLERANCE}, unlike {tolerance:g}")
    with ctx.db.transaction() as tx:
        version = registry.version_row(tx, model, number)
        last = registry.compilation_of(tx, version)
        if last is not None:
            same = tolerance in (None, last["tolerance"]) and last["status"] == CompilationStatus.PASSED
            if same or not states.is_terminal("compilation", last["status"]):
                return last
            tolerance = last["tolerance"] if tolerance is None else tolerance
        _check_convertible(ctx, version)
        wanted = {"format": FORMAT, "tolerance": COMPILE_TOLERANCE if tolerance is None else tolerance}
        return _convert(ctx, tx, _create(tx, version, wanted, actor.name), version)


def _check_convertible(ctx: Context, version: Row) -> None:
    what = f"{version['model']} version {version['number']}"
    if version["handler"] == HANDLERS[FORMAT]:
        raise Conflict(f"{what} is an ONNX model already")
    if version["handler"] != CONVERTIBLE or not version["environment"]:
        raise Conflict(
            f"{what} is served by code (handler {version['handler']!r}); only a model that is served by itself can be "
            f"converted: [model] handler = {CONVERTIBLE!r}"
        )
    artifacts.check_trust(ctx, version["artifact"])


def show(ctx: Context, actor: Actor, *, compilation: str) -> dict[str, Any]:
    """A compilation with its report."""
    with ctx.db.read() as tx:
        return records.get(tx, "compilation", compilation)
