"""Evaluations: a version is scored on the gate's fixed test asset, beside the champion, and judged.

Scoring is a job in each version's own environment; its predictions are kept by what they depend on, so that nobody
scores twice. The judgement is arithmetic on those predictions (``domain.gates``).
"""

import json
from typing import Any

import numpy as np
import sqlalchemy as sa

from loopline.control import aliases, artifacts, jobs, objects, outputs, registry, servables, specs
from loopline.control.context import SYSTEM, Context
from loopline.domain import gates, measures, names, states
from loopline.domain.access import Actor
from loopline.domain.objects import split_uri
from loopline.domain.states import EvaluationStatus, JobStatus, ServableStatus, VersionStatus
from loopline.errors import Conflict, GateRefused, LooplineError, Unavailable
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import evaluations, scores

MAX_PREDICTIONS_BYTES = 512 << 20
SCORE_TIMEOUT_SECONDS = 900
ADDRESS = "s3://"  # with which the address of an object begins


def begin(ctx: Context, tx: Tx, version: Row, *, actor: str) -> Row | None:
    """Begin to judge a version; None when the gate is off. What is missing makes the evaluation fail."""
    model = registry.model_row(tx, version["model"])
    if model["gate_mode"] == "off":
        return None
    policy = model["gate"] or {}
    champion = aliases.by_alias(tx, version["model"], aliases.CHAMPION)
    if champion is not None and champion["id"] == version["id"]:
        champion = None
    row = records.create(
        tx,
        "evaluation",
        actor=actor,
        version=version["id"],
        model=version["model"],
        number=version["number"],
        champion=None if champion is None else champion["id"],
        policy=policy,
        by=actor,
    )
    try:
        if not policy.get("test") or not policy.get("label"):
            raise Conflict(f"[gate] names no test asset and label; set test and label{_where(model)}")
        place = _test_data(tx, model, policy["test"])
        wanted_jobs = {}
        for role, scored in (("candidate", version), ("champion", champion)):
            if scored is not None:
                wanted_jobs[role] = _score(ctx, tx, row["id"], role, scored, place, policy)
        row = records.move(
            tx, "evaluation", row["id"], EvaluationStatus.SCORING, actor=SYSTEM.name, asset=place, jobs=wanted_jobs
        )
        if not any(entry["job"] for entry in wanted_jobs.values()):
            queue.ask(tx, "evaluation.judge", row["id"])
    except LooplineError as error:
        row = _finish(ctx, tx, row, EvaluationStatus.FAILED, error.message)
    return row


def _where(model: Row) -> str:
    """Where the gate of a model is set."""
    if model["project"] is not None:
        return " in loop.toml"
    given = "--set test=s3://BUCKET/KEY --set label=COLUMN --reason WHY"
    return f": loopline models gate {model['name']} {model['gate_mode']} {given}"


def _test_data(tx: Tx, model: Row, test: str) -> dict[str, Any]:
    """The table that a model's versions are judged on, as it is now: a data asset of its project, or an object."""
    if test.startswith(ADDRESS):
        found = objects.find(tx, *split_uri(test))
        version, path = found["version"], found["key"].rpartition("/")[2]
        return {"name": test, "version": version, "digest": found["digest"], "kind": "file", "path": path}
    if model["project"] is None:
        raise Conflict(
            f"{model['name']} is of no project whose data assets it could name; let test be an object: s3://"
        )
    name, wanted = names.split_version(test, "a data asset")
    asset = specs.find_asset(tx, model["project"], name, wanted)
    place = {"name": name, "version": asset["version"], "digest": asset["digest"], "kind": asset["kind"]}
    return {**place, "path": (asset["source"] or {}).get("name") or name}


def _runs(tx: Tx, version: Row) -> Row:
    """What is asked for a version's answers: what its pipeline made, or the servable that it was made of."""
    if not version["servable"]:
        return version
    row = records.get(tx, "servable", version["servable"])
    problem = servables.problem(row)
    if problem is not None:
        raise Conflict(problem)
    if row["status"] == ServableStatus.PENDING:
        what = f"{version['model']} version {version['number']}"
        raise Unavailable(f"the files of {what} are being unpacked and its packages installed; try again shortly")
    code = row["code"]
    own = {"program": row["program"], "variables": row["variables"] or {}}
    made = {"artifact": row["artifact"], "tree": code["sha256"] if code else None, "handler": row["handler"]}
    return {**version, **made, "environment": row["environment"], "own": own}


def _score(
    ctx: Context, tx: Tx, evaluation: str, role: str, version: Row, asset: dict[str, Any], policy: dict[str, Any]
) -> dict[str, Any]:
    """The predictions of a version on the asset: known, or a job that makes them."""
    slices = sorted({name.partition("=")[0] for name in policy.get("slices") or {}})
    version = _runs(tx, version)
    own = version.get("own")
    facts = [
        version["artifact"]["sha256"],
        version["tree"],
        version["environment"],
        version["handler"],
        asset["digest"],
        policy["label"],
        slices,
        version["signature"],
        policy.get("positive"),
        *([own] if own else []),
    ]
    key = outputs.digest_of(facts)
    if tx.row(sa.select(scores.c.key).where(scores.c.key == key)) is not None:
        return {"key": key, "job": None}
    environment = records.get(tx, "environment", version["environment"])
    inputs, places = artifacts.places(version)
    inputs["table"] = {"sha256": asset["digest"], "kind": asset["kind"], "name": asset["path"]}
    spec = {
        **specs.environment_spec(environment),
        "tree": version["tree"],
        "inputs": inputs,
        "places": {**places, "table.path": "table"},
        "limits": {"timeout_seconds": SCORE_TIMEOUT_SECONDS},
        "environ": own["variables"] if own else {},
        "call": {
            "handler": version["handler"],
            "table": {"format": asset["path"].rpartition(".")[2].lower()},
            "label": policy["label"],
            "signature": version["signature"],
            "slices": slices,
            "positive": policy.get("positive"),
            **({"program": own["program"], "inner": servables.CODE} if own else {}),
        },
    }
    job = jobs.submit(
        ctx,
        tx,
        owner="evaluation",
        owner_id=evaluation,
        name=f"score {role}",
        kind="score",
        spec=spec,
        actor=SYSTEM.name,
        max_tries=2,
        backoff_seconds=1,
    )
    return {"key": key, "job": job["id"]}


def job_ended(ctx: Context, tx: Tx, job: Row) -> None:
    """A scoring job has ended: keep its predictions; when it was the last one, judge."""
    row = records.get(tx, "evaluation", job["owner_id"])
    entry = next((entry for entry in row["jobs"].values() if entry["job"] == job["id"]), None)
    if states.is_terminal("evaluation", row["status"]) or entry is None:
        return
    if job["status"] != JobStatus.SUCCEEDED:
        _finish(ctx, tx, row, EvaluationStatus.FAILED, f"{job['name']}: {job['reason']}")
        return
    given = job["result"]["predictions"]
    inline = "value" in given  # small predictions stand in the record; the judge reads blobs only
    digest = ctx.blobs.put_bytes(outputs.canonical(given["value"])).digest if inline else given["sha256"]
    values = {"key": entry["key"], "digest": digest, "created_at": tx.now}
    tx.insert_ignore(scores, values)
    for other in row["jobs"].values():
        if tx.row(sa.select(scores.c.key).where(scores.c.key == other["key"])) is None:
            return
    queue.ask(tx, "evaluation.judge", row["id"])


def judge(ctx: Context, evaluation_id: str) -> float | None:
    """Task: read the predictions, judge, and record the verdict with what follows from it."""
    with ctx.db.read() as tx:
        row = records.get(tx, "evaluation", evaluation_id)
        if states.is_terminal("evaluation", row["status"]):
            return None
        digests = {
            role: tx.row(sa.select(scores.c.digest).where(scores.c.key == entry["key"]))
            for role, entry in row["jobs"].items()
        }
    try:
        scored = {role: _read(ctx, found) for role, found in digests.items()}
        verdict = _verdict(row["policy"], scored["candidate"], scored.get("champion"))
        status = EvaluationStatus.PASSED if verdict["passed"] else EvaluationStatus.REFUSED
        reason = _reason(verdict)
    except LooplineError as error:
        verdict, status, reason = None, EvaluationStatus.FAILED, error.message
    with ctx.db.transaction(durable=True) as tx:
        current = records.get(tx, "evaluation", evaluation_id)
        if not states.is_terminal("evaluation", current["status"]):
            _finish(ctx, tx, current, status, reason, verdict)
    return None


def _read(ctx: Context, found: Row | None) -> dict[str, Any]:
    if found is None:
        raise Conflict("the predictions are gone; evaluate the version again")
    if ctx.blobs.size(found["digest"]) > MAX_PREDICTIONS_BYTES:
        raise Conflict("the test asset has too many rows for a gate")
    value: dict[str, Any] = json.loads(ctx.blobs.read(found["digest"]))
    return value


def _verdict(policy: dict[str, Any], candidate: dict[str, Any], champion: dict[str, Any] | None) -> dict[str, Any]:
    """The gate's judgement as a record keeps it, with the candidate's value of every metric that was asked for."""
    rules = gates.Policy.from_dict(policy)
    models = [_evaluated(rules, policy["label"], scored) for scored in (candidate, champion) if scored is not None]
    verdict = gates.judge(rules, models[0], models[1] if len(models) > 1 else None).to_dict()
    answers = measures.prepare(models[:1], rules.metrics, rules.positive)
    verdict["metrics"] = {name: measures.measured(name, answers[0]) for name in rules.metrics}
    return verdict


def _evaluated(rules: gates.Policy, label: str, scored: dict[str, Any]) -> measures.Evaluated:
    """A score job's answers; a slice is named ``column=value``."""
    slices = {}
    for name in rules.slices:
        column, _, value = name.partition("=")
        found = scored["labels"] if column == label else scored["slices"].get(column, ())
        slices[name] = np.asarray([str(item) == value for item in found], dtype=bool)
    return measures.Evaluated(
        labels=scored["labels"], predictions=scored["predictions"], scores=scored["scores"], slices=slices
    )


def _reason(verdict: dict[str, Any]) -> str:
    failed = [check["message"] for check in verdict["checks"] if not check["passed"]]
    if failed:
        return "; ".join(failed)
    return "; ".join(check["message"] for check in verdict["checks"]) or "nothing was asked of it"


def _finish(
    ctx: Context, tx: Tx, row: Row, status: EvaluationStatus, reason: str, verdict: dict[str, Any] | None = None
) -> Row:
    """Record an evaluation's end, decide about the version, and let a register step that waits go on."""
    metrics = None if verdict is None else verdict.get("metrics")
    row = records.move(
        tx,
        "evaluation",
        row["id"],
        status,
        actor=SYSTEM.name,
        reason=reason,
        verdict=verdict,
        metrics=metrics,
        ended_at=tx.now,
    )
    version = records.get(tx, "version", row["version"])
    values: dict[str, Any] = {"evaluation": row["id"]}
    if metrics:
        values["metrics"] = {**(version["metrics"] or {}), **metrics}
    records.set(tx, "version", version["id"], actor=SYSTEM.name, **values)
    decide(tx, {**version, **values}, row)
    if version["execution"]:
        step = records.find(tx, "step", execution=version["execution"], name=version["step"])
        if step is not None and not states.is_terminal("step", step["status"]):
            queue.ask(tx, "execution.registration", step["id"])
    return row


def decide(tx: Tx, version: Row, evaluation: Row | None = None) -> None:
    """What follows from a judgement: refused versions are Rejected, others Approved where a policy says so."""
    if version["status"] != VersionStatus.PENDING:
        return
    model = registry.model_row(tx, version["model"])
    approval = model["approval"] or {}
    passed = evaluation is None or evaluation["status"] == EvaluationStatus.PASSED
    if evaluation is not None and evaluation["status"] == EvaluationStatus.REFUSED and model["gate_mode"] == "enforce":
        comment = f"refused by the gate: {evaluation['reason']}"
        registry.reject_in(tx, version, actor=SYSTEM.name, comment=comment, policy="gate")
        return
    wanted = (version["metadata"] or {}).get("wanted")
    if wanted == VersionStatus.REJECTED:
        registry.reject_in(tx, version, actor=version["requested_by"], comment="registered as Rejected")
    elif wanted == VersionStatus.APPROVED:
        _approve_as_registered(tx, version)
    elif approval.get("policy") == "auto" and passed and wanted is None:
        comment = f"policy auto: {evaluation['reason'] if evaluation else 'the gate is off'}"
        registry.approve_in(tx, version, SYSTEM, comment=comment, policy="auto")


def _approve_as_registered(tx: Tx, version: Row) -> None:
    """The pipeline asked for Approved: by the same actor, through the same rules; a refusal is recorded."""
    actor = registry.actor_named(tx, version["requested_by"])
    try:
        registry.approve_in(tx, version, actor, comment="registered as Approved")
    except LooplineError as error:
        records.note(
            tx,
            "version",
            version["id"],
            "not_approved",
            actor=actor.name,
            reason=f"registered as Approved, but: {error.message}",
            model=version["model"],
        )


# -- what people do ---------------------------------------------------------------------------------------------------


def evaluate(ctx: Context, actor: Actor, *, model: str, number: int) -> dict[str, Any]:
    """Judge a version (again) on the gate's test asset, against the champion as it is now."""
    with ctx.db.transaction() as tx:
        version = registry.version_row(tx, model, number)
        running = latest(tx, version["id"])
        if running is not None and not states.is_terminal("evaluation", running["status"]):
            return running
        _runs(tx, version)
        row = begin(ctx, tx, version, actor=actor.name)
        if row is None:
            raise GateRefused(f"the gate of {model} is off: there is nothing to judge it by")
        return row


def latest(tx: Tx, version_id: str) -> Row | None:
    """The newest evaluation of a version."""
    query = sa.select(evaluations).where(evaluations.c.version == version_id)
    return tx.row(query.order_by(evaluations.c.created_at.desc(), evaluations.c.id.desc()).limit(1))


def show(ctx: Context, actor: Actor, *, evaluation: str) -> dict[str, Any]:
    """An evaluation with its verdict."""
    with ctx.db.read() as tx:
        return records.get(tx, "evaluation", evaluation)


def list_(ctx: Context, actor: Actor, *, model: str | None = None, limit: int = 50) -> dict[str, Any]:
    """Evaluations, newest first."""
    query = sa.select(evaluations).order_by(evaluations.c.created_at.desc()).limit(limit)
    if model is not None:
        query = query.where(evaluations.c.model == model)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query), "next": None}


def stop(ctx: Context, tx: Tx, version_id: str, *, actor: str) -> None:
    """Stop a version's evaluation that is going on."""
    row = latest(tx, version_id)
    if row is None or states.is_terminal("evaluation", row["status"]):
        return
    for entry in (row["jobs"] or {}).values():
        if entry["job"]:
            jobs.stop(ctx, tx, entry["job"], actor=actor, reason="the execution was stopped")
    _finish(ctx, tx, row, EvaluationStatus.FAILED, "stopped with its execution")
