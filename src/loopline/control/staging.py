"""What a script step goes through: its job is prepared, it runs, and what it gave is put where it belongs.

Objects, code and packages are looked up when the step begins and kept by their digests: what happens to a bucket later
changes nothing. Preparing and publishing take time, so a task does them; a step without a job is being prepared.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import (
    artifacts,
    buckets,
    environments,
    images,
    jobs,
    objects,
    outputs,
    role_aliases,
    servables,
    specs,
    tracking,
)
from loopline.control.context import SYSTEM, Context
from loopline.domain import scripts, states
from loopline.domain.objects import join_uri, split_uri
from loopline.domain.pipelines import Report, ScriptStep
from loopline.domain.scripts import Script
from loopline.domain.states import JobStatus, StepStatus
from loopline.domain.values import Value
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound
from loopline.store import folders, queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import cache, steps

log_ = logging.getLogger(__name__)

REQUIREMENTS = "requirements.txt"
PACKED = "sourcedir.tar.gz"
CODE = "code"  # a channel of this name holds code
ARCHIVES = (".tar.gz", ".tgz")
# How the SageMaker SDK 3 says which file beside the code lists packages (ModelTrainer, SourceCode.requirements).
DRIVERS, SOURCE_CODE = "sm_drivers", "sourcecode.json"
MAX_REPORT_BYTES = 1 << 20
WAIT_SECONDS = 0.5
TRANSFORM = {part.name: part.default for part in msgspec.structs.fields(scripts.Transform)}
GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
TASK = "execution.script"
TRIGGERED_ROLE = "editor"  # what a program may whose execution nobody began by hand


@dataclass
class Ending:
    """How a script step ends. ``puts``: objects that appear with its end; ``key``: of the cache, if it may serve."""

    status: StepStatus
    reason: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    puts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    cached_from: str | None = None
    key: str | None = None


# -- beginning --------------------------------------------------------------------------------------------------------


def begin(tx: Tx, *, execution: Row, row: Row, step: ScriptStep, resolve: Callable[[Value], Any]) -> None:
    """Record what a step is to run, and ask for its job. Raises ``InvalidInput``, ``Conflict``."""
    script = scripts.parse_script(resolve(step.settings))
    known = records.find(tx, "script", step=row["id"])
    name = script.name or (known or {}).get("name") or scripts.made_name(execution["id"], row["name"], row["id"])
    other = records.find(tx, "script", contract=script.contract, name=name)
    if other is not None and other["step"] != row["id"]:
        raise Conflict(f"there is a {script.contract} job {name!r} already", existing="script")
    script = msgspec.structs.replace(script, name=name)
    values = {
        "definition": msgspec.to_builtins(script),
        "given": None if step.given is None else resolve(step.given),
        "inputs": None,
        "result": None,
        "warnings": [],
    }
    if known is None:
        values |= {"contract": script.contract, "name": name, "step": row["id"], "execution": execution["id"]}
        records.create(tx, "script", actor=SYSTEM.name, by=execution["by"], **values)
    else:
        records.set(tx, "script", known["id"], actor=SYSTEM.name, **values)
    tracking.merge(tx, row["run"], {"parameters": scripts.own_hyperparameters(script)})
    queue.ask(tx, TASK, row["id"])


def advance(ctx: Context, step_id: str) -> Ending | float | None:
    """Hand the step's job on, or say how the step ends; None when there is nothing to record now, seconds when this is
    to be asked again."""
    with ctx.db.read() as tx:
        row = records.get(tx, "step", step_id)
        script = records.find(tx, "script", step=step_id)
        if script is None or states.is_terminal("step", row["status"]) or row["status"] == StepStatus.PENDING:
            return None
        execution = records.get(tx, "execution", row["execution"])
        job = records.get(tx, "job", row["job"]) if row["job"] else None
        step = specs.index_of(ctx, tx, execution).steps[row["name"]]
    assert isinstance(step, ScriptStep)
    if job is not None and not states.is_terminal("job", job["status"]):
        return None
    try:
        if job is None:
            return _prepare(ctx, execution, row, script, step)
        return _ending(ctx, row, script, step, job)
    except (LooplineError, OSError) as error:
        reason = error.message if isinstance(error, LooplineError) else str(error)
        return Ending(StepStatus.FAILED, f"{type(error).__name__}: {reason}" if job else reason)
    except sa.exc.OperationalError:
        raise  # the database's trouble, not the job's: tried again
    except Exception as error:
        log_.exception("the step %s cannot be moved on", step_id)
        return Ending(
            StepStatus.FAILED, f"it could not be {'published' if job else 'prepared'}: {type(error).__name__}"
        )


def settle_in(tx: Tx, row: Row, ending: Ending) -> None:
    """The part of an ending that is not the step's own: its objects, and its name in the list of jobs."""
    for bucket, key, values in ending.puts:
        objects.put_in(tx, actor=SYSTEM.name, bucket=bucket, key=key, values=values)
    script = records.find(tx, "script", step=row["id"])
    if script is None:
        return
    if ending.cached_from is not None:  # nothing ran, so there is no job of that name
        records.delete(tx, "script", script["id"], actor=SYSTEM.name, reason="its result was known")
    elif ending.given:
        result = ending.given["result"]["value"]
        records.set(tx, "script", script["id"], actor=SYSTEM.name, result=result)


# -- preparing --------------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """A job to be: of its ``kind``, with its ``spec``; ``files``: the digest of its code, or of its model's files."""

    kind: str
    spec: dict[str, Any]
    files: str | None
    environment: Row
    channels: dict[str, list[str]]
    warnings: list[str]


def _prepare(ctx: Context, execution: Row, row: Row, known: Row, step: ScriptStep) -> Ending | float | None:
    script = msgspec.convert(known["definition"], Script)
    _check_targets(ctx, script)
    work = _transform(ctx, script) if script.contract == "transform" else _program(ctx, execution, script)
    if work is None:
        return WAIT_SECONDS
    with ctx.db.read() as tx:
        work.warnings = [*work.warnings, *_role_warning(tx, script, most(execution))]
        work.spec["loan"] = _loan(tx, execution, script)
    key = outputs.digest_of(scripts.cache_facts(script, work.files or "", work.environment["key"], work.channels))
    if step.cache and execution["cache"] and (hit := _hit(ctx, key, step.cache_seconds)) is not None:
        return Ending(StepStatus.SUCCEEDED, given=hit["outputs"], cached_from=hit["execution"], key=key)
    with ctx.db.transaction() as tx:
        now = records.get(tx, "step", row["id"])
        if now["status"] != StepStatus.RUNNING or now["job"]:
            return None  # it was stopped meanwhile
        inputs = {"files": work.files, "channels": work.channels}
        noted = {"inputs": inputs, "warnings": work.warnings, "environment": work.environment["id"]}
        records.set(tx, "script", known["id"], actor=SYSTEM.name, **noted)
        _note_inputs(tx, row["run"], script, work)
        job = jobs.submit(
            ctx,
            tx,
            owner="step",
            owner_id=row["id"],
            name=row["name"],
            kind=work.kind,
            spec=work.spec,
            actor=SYSTEM.name,
            max_tries=step.retries + 1,
            backoff_seconds=step.backoff_seconds,
            retry=None if step.retry is None else msgspec.to_builtins(step.retry),
        )
        tx.execute(steps.update().where(steps.c.id == row["id"]).values(job=job["id"], cache_key=key))
    return None


def _program(ctx: Context, execution: Row, script: Script) -> _Work:
    """A user's program in the environment of its image and of what its code says that it needs."""
    tree = _tree(ctx, script)
    channels = {name: _channel(ctx, name, channel, script.hosts) for name, channel in script.channels.items()}
    with ctx.db.read() as tx:
        chosen = images.choose(ctx, tx, script.image)
        warned = _warnings(ctx, tx, script)
    requirements = servables.merge(chosen.requirements, _requirements(ctx, tree, channels))
    environment = environments.ensure(
        ctx, project=execution["project"] or None, requirements=requirements, preload=(), actor=execution["by"]
    )
    spec = _job_spec(script, environment, tree, channels, warned)
    return _Work("script", spec, tree, environment, channels, warned)


def warnings(ctx: Context, tx: Tx, script: Script, role: str) -> list[str]:
    """What the author of a script, whose own role is ``role``, may not expect of this installation.

    Raises ``InvalidInput`` for an unknown image.
    """
    return [*_warnings(ctx, tx, script), *_role_warning(tx, script, role)]


def _warnings(ctx: Context, tx: Tx, script: Script) -> list[str]:
    found = [_gpu_warning(script)]
    if script.image:
        found.append(images.choose(ctx, tx, script.image).warning)
    return [text for text in found if text]


def most(execution: Row) -> str:
    """The role that nothing in an execution may exceed: of who began it by hand; of a trigger, what any trigger has."""
    return str((execution["trigger"] or {}).get("role") or TRIGGERED_ROLE)


def _loan(tx: Tx, execution: Row, script: Script) -> dict[str, Any] | None:
    """What ``access_keys.of_attempt`` is told of the key for the program's own calls; None where it gets none."""
    role = role_aliases.bounded(tx, script.role, most(execution)) if script.role and script.network else None
    if role is None:
        return None
    return {"user": execution["by"], "alias": script.role, "role": role, "session": script.name}


def _role_warning(tx: Tx, script: Script, most: str) -> list[str]:
    if not script.role or not script.network:
        return []
    given = role_aliases.bounded(tx, script.role, most)
    if given is None:
        cure = f"`loopline roles create {script.role} --as editor` makes it one"
        return [f"{script.role} is no role that jobs can have here, so the program gets no key of its own; {cure}"]
    wanted = role_aliases.role_of(tx, script.role)
    if given != wanted:
        return [f"{script.role} is {wanted} here, and who began this is {given}: the program's key is {given}'s"]
    return []


def _transform(ctx: Context, script: Script) -> _Work | None:
    """A servable that answers objects; None while it is not ready."""
    with ctx.db.read() as tx:
        row = servables.servable_row(tx, script.servable)
        version = records.get(tx, "version", row["version"]) if row["version"] else None
        if servables.store_of(row) is not None:
            raise Conflict(f"{script.servable} is a store of models; a transform asks one model")
        if row["source"] is not None or version is None:
            own = row
        else:  # the version's own files, which may be a servable, too
            own = records.get(tx, "servable", version["servable"]) if version["servable"] else version
        problem = None if own is version else servables.problem(own)
        if problem is not None:
            raise Conflict(problem)
        if not own["environment"] or not own["artifact"]:
            return None
        environment = records.get(tx, "environment", own["environment"])
    artifacts.check_trust(ctx, own["artifact"])
    name, channel = next(iter(script.channels.items()))
    channels = {name: _channel(ctx, name, channel, 1)}
    inputs, places = artifacts.places(own)
    inputs["objects"] = {"sha256": channels[name][0], "kind": "folder", "name": "content"}
    places["input"] = "objects"
    if own.get("code"):
        inputs[CODE] = {"sha256": own["code"]["sha256"], "kind": "folder", "name": "content"}
        places["code_dir"] = CODE
    spec = {
        **specs.environment_spec(environment),
        "tree": own.get("tree"),
        "inputs": inputs,
        "places": places,
        "environ": {**(own.get("variables") or {}), **(row["variables"] or {}), **script.environment},
        "limits": {"timeout_seconds": script.timeout_seconds},
        "call": {
            "handler": own["handler"],
            "program": own.get("program"),
            "signature": own.get("signature"),
            "transform": {**TRANSFORM, **msgspec.to_builtins(script.transform)},
        },
    }
    return _Work("transform", spec, own["artifact"]["sha256"], environment, channels, [])


def _check_targets(ctx: Context, script: Script) -> None:
    """Raise ``NotFound`` before anything runs when its results could not be put anywhere."""
    wanted = [target.uri for target in script.outputs.values()] + ([script.output_uri] if script.output_uri else [])
    with ctx.db.read() as tx:
        for uri in wanted:
            buckets.find(tx, split_uri(uri)[0])


def _tree(ctx: Context, script: Script) -> str | None:
    """The digest of the folder of code; None when the code comes by a channel."""
    if script.tree:
        folders.read_manifest(ctx.blobs, script.tree)
        return script.tree
    if not script.code:
        return None
    bucket, key = split_uri(script.code)
    found, reader = objects.open_(ctx, bucket, key)
    with reader:
        if key.endswith((".tar.gz", ".tgz", ".tar")):
            return ctx.blobs.put_tar(reader).digest
    name = folders.check_path(key.rpartition("/")[2])
    entry = folders.Entry(name, found["size_bytes"], found["digest"], mode_x=False)
    return folders.put_manifest(ctx.blobs, [entry]).digest


def _channel(ctx: Context, name: str, channel: scripts.Channel, hosts: int) -> list[str]:
    """The digest of a channel's folder, for each host. Raises ``NotFound`` when nothing is there."""
    bucket, prefix = split_uri(channel.uri)
    found = {row["key"]: row for row in objects.list_prefix(ctx, bucket, prefix)}
    paths = scripts.relative_keys(prefix, list(found))
    if not paths:
        raise NotFound(f"there is no object under {channel.uri}, which the channel {name!r} names")
    parts = scripts.shares(list(paths), hosts) if channel.sharded else [list(paths)] * hosts
    return [
        folders.put_manifest(
            ctx.blobs,
            [folders.Entry(paths[key], found[key]["size_bytes"], found[key]["digest"], mode_x=False) for key in part],
        ).digest
        for part in parts
    ]


def _requirements(ctx: Context, tree: str | None, channels: dict[str, list[str]]) -> str:
    """What the code says that it needs beyond its image: beside it, or in the channel that holds it."""
    wanted = _requirements_name(ctx, channels)
    places = [tree] if tree else channels.get(CODE, [])[:1]
    for place in places:
        files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, place)}
        packed = [path for path in files if path == PACKED or (path.endswith(ARCHIVES) and len(files) == 1)]
        if packed and wanted not in files:
            unpacked = ctx.blobs.put_tar(ctx.blobs.chunks(files[packed[0]].sha256)).digest
            files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, unpacked)}
        if wanted in files:
            return ctx.blobs.read(files[wanted].sha256).decode("utf-8", "replace")
    return ""


def _requirements_name(ctx: Context, channels: dict[str, list[str]]) -> str:
    """The path within the code of the file that lists packages."""
    for place in channels.get(DRIVERS, [])[:1]:
        for entry in folders.read_manifest(ctx.blobs, place):
            if entry.path == SOURCE_CODE and entry.size_bytes <= MAX_REPORT_BYTES:
                try:
                    said = msgspec.json.decode(ctx.blobs.read(entry.sha256))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    break
                name = said.get("requirements") if isinstance(said, dict) else None
                if isinstance(name, str) and name.endswith(".txt"):
                    return name.removeprefix("./")
    return REQUIREMENTS


def _hit(ctx: Context, key: str, seconds: float | None) -> Row | None:
    query = sa.select(cache).where(cache.c.key == key)
    if seconds is not None:
        query = query.where(cache.c.created_at >= ctx.clock.now() - seconds)
    with ctx.db.read() as tx:
        return tx.row(query)


def _gpu_warning(script: Script) -> str | None:
    if scripts.wants_gpu(script.machine) and not any(Path(device).exists() for device in GPU_DEVICES):
        return f"{script.machine} has a GPU; this machine has none: the program runs on the CPU"
    return None


def _note_inputs(tx: Tx, run: str, script: Script, work: _Work) -> None:
    """The lineage of the run: what each channel and the code, or the model, were."""
    row = records.get(tx, "run", run)
    found = [{"asset": script.channels[name].uri, "digest": parts[0]} for name, parts in work.channels.items()]
    if work.files:
        found.append({"asset": script.servable or script.code or "code", "digest": work.files})
    records.set(tx, "run", run, actor=SYSTEM.name, inputs=[*(row["inputs"] or []), *found])


def _job_spec(
    script: Script, environment: Row, tree: str | None, channels: dict[str, list[str]], warnings: list[str]
) -> dict[str, Any]:
    """What ``control.jobs`` runs, with everything that ``runtime.scripts`` has to know in the call."""
    inputs: dict[str, dict[str, str]] = {}
    places: dict[str, str] = {}
    laid: list[dict[str, Any]] = []

    def lay(host: int, digest: str, to: str, channel: str | None = None) -> None:
        number = str(len(laid))
        inputs[number] = {"sha256": digest, "kind": "folder", "name": "content"}
        places[f"inputs.{number}"] = number
        laid.append({"host": host, "to": to, "channel": channel})

    for host in range(script.hosts):
        if tree:
            lay(host, tree, CODE)
        for name, parts in channels.items():
            path = script.channels[name].path
            lay(host, parts[host], scripts.below_root(path) if path else f"input/data/{name}", name)
    call = {
        "contract": script.contract,
        "name": script.name,
        "program": script.program,
        "entrypoint": list(script.entrypoint),
        "words": list(script.arguments),
        "hyperparameters": script.hyperparameters,
        "channels": list(script.channels),
        "input_config": scripts.input_config(script),
        "processing_config": scripts.processing_config(script) if script.contract == "processing" else None,
        "outputs": {name: scripts.below_root(target.path) for name, target in script.outputs.items()},
        "metrics": [[metric.name, metric.regex] for metric in script.metrics],
        "hosts": script.hosts,
        "machine": script.machine,
        "warnings": warnings,
        "laid": laid,
    }
    return {
        "python": environment["python"],
        "environment_path": environment["path"],
        "inputs": inputs,
        "places": places,
        "environ": script.environment,
        "network": script.network,
        "limits": {"timeout_seconds": script.timeout_seconds, "grace_seconds": scripts.GRACE_SECONDS},
        "call": call,
    }


# -- the end ----------------------------------------------------------------------------------------------------------


def _ending(ctx: Context, row: Row, known: Row, step: ScriptStep, job: Row) -> Ending:
    """What the end of a step's job means. A program that was stopped keeps what it had saved by then."""
    script = msgspec.convert(known["definition"], Script)
    succeeded = job["status"] == JobStatus.SUCCEEDED
    left = (job["result"] or {}) if succeeded else (job["result"] or {}).get("outputs") or {}
    puts, result = _results(ctx, known, script, left)
    given = {"result": specs.json_output(result)} if left else {}
    if succeeded:
        given |= {name: _report(ctx, name, report, left) for name, report in step.reports.items()}
        return Ending(StepStatus.SUCCEEDED, given=given, puts=puts, key=row["cache_key"])
    status = StepStatus.STOPPED if job["status"] == JobStatus.STOPPED else StepStatus.FAILED
    return Ending(status, job["reason"], given, puts)


def _results(
    ctx: Context, known: Row, script: Script, left: dict[str, Any]
) -> tuple[list[tuple[str, str, dict[str, Any]]], dict[str, Any]]:
    """The objects that a program's files become, and what the step says about them."""
    puts: list[tuple[str, str, dict[str, Any]]] = []
    source = {"kind": "job", "script": known["id"], "name": script.name}
    found = outputs.read_json(ctx, left["report"]) if "report" in left else {}
    result: dict[str, Any] = {"name": script.name, "contract": script.contract, "metrics": found.get("metrics") or {}}
    result["message"] = found.get("message")
    result["outputs"] = {name: target.uri for name, target in script.outputs.items()}
    for name in ("model", "output"):
        if name in left and script.output_uri:
            bucket, prefix = split_uri(script.output_uri.rstrip("/") + f"/{script.name}/output/{name}.tar.gz")
            values = objects.blob_values(ctx, left[name]["sha256"], content_type="application/x-tar", source=source)
            puts.append((bucket, prefix, values))
            result[name] = join_uri(bucket, prefix)
    for name, target in script.outputs.items():
        if f"files.{name}" in left:
            bucket, prefix = split_uri(target.uri.rstrip("/") + "/")
            for entry in folders.read_manifest(ctx.blobs, left[f"files.{name}"]["sha256"]):
                puts.append((bucket, prefix + entry.path, objects.blob_values(ctx, entry.sha256, source=source)))
    return puts, result


def _report(ctx: Context, name: str, report: Report, left: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a file among the outputs, as an output of the step. Raises ``InvalidInput``."""
    folder = left.get(f"files.{report.output}")
    if folder is None:
        raise InvalidInput(f"{name}: the program has no output {report.output!r}")
    files = {entry.path: entry for entry in folders.read_manifest(ctx.blobs, folder["sha256"])}
    entry = files.get(report.path)
    if entry is None:
        there = ", ".join(sorted(files)[:10]) or "nothing"
        raise InvalidInput(f"{name}: the output {report.output!r} has no file {report.path!r}; it has {there}")
    if entry.size_bytes > MAX_REPORT_BYTES:
        raise InvalidInput(f"{name}: {report.path} is larger than {MAX_REPORT_BYTES} bytes")
    try:
        return specs.json_output(msgspec.json.decode(ctx.blobs.read(entry.sha256)))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput(f"{name}: {report.path} is not JSON: {error}") from None
