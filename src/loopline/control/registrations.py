"""The register step of a pipeline: a version is added, judged by the gate, and approved where a policy says so."""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from loopline.control import compilations, gates, outputs, registry
from loopline.control.context import Context
from loopline.domain import calls, pipelines, states
from loopline.domain.pipelines import Output, RegisterStep
from loopline.errors import InvalidInput
from loopline.store import queue, records
from loopline.store.db import Row, Tx

Given = Mapping[str, Mapping[str, Output]]


def begin(ctx: Context, tx: Tx, execution: Row, row: Row, step: RegisterStep, given: Given) -> None:
    """Add the version that a register step asks for and begin its evaluation."""

    def resolve(value: Any) -> Any:
        return None if value is None else calls.resolve_value(value, execution["parameters"], given)

    status = resolve(step.status)
    if status is not None:
        pipelines.check_version_status(status)
    targets = execution["targets"] or {}
    name = resolve(step.model_name) or targets.get("model")
    allowed = targets.get("models") or [targets.get("model")]
    if not isinstance(name, str) or name not in allowed:
        raise InvalidInput(f"register(name={name!r}): this branch may register {', '.join(map(str, allowed))} only")
    source = step.model.ref
    if source is UNSET or source.step is None:
        raise InvalidInput("register() takes what a step gave as the model")
    maker = records.find(tx, "step", execution=execution["id"], name=source.step)
    if maker is None or source.output not in (maker["outputs"] or {}):
        raise InvalidInput(f"{source} is not there: the step did not give it")
    artifact = _artifact(ctx, maker["outputs"][source.output])
    push = records.get(tx, "push", execution["push"])
    metrics = resolve(step.metrics)
    version = registry.register(
        tx,
        model=name,
        actor=execution["by"],
        artifact=artifact,
        handler=targets.get("handler", "predict"),
        tree=push["tree"],
        environment=execution["environment"],
        signature=_extra(ctx, maker["outputs"], "signature"),
        baseline=_extra(ctx, maker["outputs"], "baseline"),
        metrics=metrics if isinstance(metrics, dict) else {},
        metadata={"description": resolve(step.description), "tags": resolve(step.tags), "wanted": status},
        execution=execution["id"],
        step=row["name"],
        run=row["run"],
    )
    if targets.get("compile") and registry.compilation_of(tx, version) is None:
        compilations.begin(ctx, tx, version, targets["compile"], actor=execution["by"])
    if gates.begin(ctx, tx, version, actor=execution["by"]) is None:
        gates.decide(tx, version)
        queue.ask(tx, "execution.registration", row["id"])


def _artifact(ctx: Context, output: dict[str, Any]) -> dict[str, Any]:
    """The model's files as the version keeps them. A small JSON value becomes a blob of its own."""
    artifact = {key: output[key] for key in ("format", "sha256", "size_bytes")}
    artifact["executable"] = bool(output.get("executable"))
    artifact["kind"] = outputs.kind_of(output)
    artifact["name"] = _file_name(output)
    artifact["trust"] = "produced"
    if output["format"] == "json" and "value" in output:
        blob = ctx.blobs.put_bytes(outputs.canonical(output["value"]))
        artifact.update(sha256=blob.digest, size_bytes=blob.size_bytes)
    if "sealed" in output:
        artifact["sealed"] = output["sealed"]
    return artifact


def _file_name(output: dict[str, Any]) -> str:
    if output["format"] in ("file", "folder"):
        return str(output["path"]).rpartition("/")[2]
    return f"model.{output['format']}"


def _extra(ctx: Context, given: dict[str, Any], name: str) -> Any:
    output = given.get(name)
    return None if output is None else outputs.read_json(ctx, output)


def outcome(tx: Tx, step: Row) -> dict[str, Any] | None:
    """What a register step gives, once its version has been judged: {"version": {...}, "reason"}; None before."""
    version = records.find(tx, "version", execution=step["execution"], step=step["name"])
    if version is None:
        return None
    pending = gates.latest(tx, version["id"])
    if pending is not None and not states.is_terminal("evaluation", pending["status"]):
        return None
    given = {"name": version["model"], "version": version["number"], "status": version["status"]}
    reason = None
    if pending is not None:
        given["gate"] = pending["status"]
        reason = f"{version['model']} version {version['number']}: {pending['reason']}"
    return {"version": given, "reason": reason}


def stop(ctx: Context, tx: Tx, step: Row, *, actor: str) -> None:
    """Stop the evaluation that a register step waits for; the version stays, unjudged."""
    version = records.find(tx, "version", execution=step["execution"], step=step["name"])
    if version is not None:
        gates.stop(ctx, tx, version["id"], actor=actor)
