"""What an attempt at a job is given when it begins: its inputs, its limits, its variables, and a key of its own."""

from pathlib import Path
from typing import Any

from loopline.compute import JobSpec, Limits, Sandbox
from loopline.compute.subprocess import RUNTIME
from loopline.control import access_keys, outputs
from loopline.control.context import Context
from loopline.domain import scripts
from loopline.store.db import Row, Tx

GRACE_SECONDS = 10.0
SPARE_SECONDS = 600.0  # that a key outlives the time its program may take, should nobody end it


def spec_of(ctx: Context, attempt: Row, job: Row) -> JobSpec:
    """What the backend is given for an attempt at a job.

    A job's ``spec`` holds: python, argv or call, tree (digest), inputs {place: {sha256, kind, name}}, places {key of
    the call: place}, environ, limits, network, environment_path, write (folders that outlive the attempt),
    forkserver (id of the environment's forkserver), loan (whose key the program's own calls are signed with: as
    ``access_keys.of_attempt``). The key itself is never stored with the job.
    """
    spec = job["spec"]
    folder = ctx.settings.dir / "attempts" / attempt["id"]
    call = dict(spec.get("call") or {})
    read = [spec["environment_path"]] if spec.get("environment_path") else []
    if spec.get("tree"):
        tree = outputs.tree_path(ctx, spec["tree"])
        read.append(str(tree))
        if "argv" in spec:
            outputs.copy_tree(tree, folder / "work")
        else:
            call["tree"] = str(tree)
    laid = {
        place: outputs.lay_out(ctx, folder / "inputs", place, entry["sha256"], entry["kind"], entry["name"])
        for place, entry in (spec.get("inputs") or {}).items()
    }
    if "arguments" in call:
        call["arguments"] = outputs.place_inputs(laid, call["arguments"])
    for name, place in (spec.get("places") or {}).items():
        _place(call, name.split("."), laid, place)
    limits = {
        "memory_mb": ctx.settings.job_memory_mb,
        "disk_mb": ctx.settings.job_disk_mb,
        "log_mb": ctx.settings.job_log_mb,
        "open_files": ctx.settings.job_open_files,
        "grace_seconds": GRACE_SECONDS,
        **(spec.get("limits") or {}),
    }
    environ, hidden = _environ(ctx, attempt, spec)
    if "AWS_CA_BUNDLE" in environ and "AWS_CA_BUNDLE" not in (spec.get("environ") or {}):
        read.append(environ["AWS_CA_BUNDLE"])
    return JobSpec(
        attempt=attempt["id"],
        token=attempt["token"],
        kind=job["kind"],
        python=spec.get("python") or "",
        argv=tuple(spec.get("argv") or ()),
        call=call,
        workdir=str(folder / "work") if "argv" in spec else "",
        environ=environ,
        hidden=hidden,
        limits=Limits(**limits),
        sandbox=Sandbox(
            read=tuple(read), write=tuple(spec.get("write") or ()), network=bool(spec.get("network", True))
        ),
        warm=spec.get("forkserver"),
    )


def _place(call: dict[str, Any], keys: list[str], laid: dict[str, str], place: str) -> None:
    """Put an input's path into the call; a place that ends in ``/`` means the folder that holds it."""
    for key in keys[:-1]:
        call[key] = dict(call.get(key) or {})
        call = call[key]
    call[keys[-1]] = str(Path(laid[place[:-1]]).parent) if place.endswith("/") else laid[place]


def _environ(ctx: Context, attempt: Row, spec: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables of an attempt, the author's own before all; and those whose values no log shows."""
    own: dict[str, str] = dict(spec.get("environ") or {})
    loan = spec.get("loan")
    if not loan or scripts.has_own_key(own):
        return own, ()
    seconds = ((spec.get("limits") or {}).get("timeout_seconds") or scripts.DEFAULT_TIMEOUT_SECONDS) + SPARE_SECONDS
    key = access_keys.of_attempt(ctx, attempt=attempt["id"], loan=loan, seconds=seconds)
    authority = str(ctx.settings.tls_dir / "ca.pem") if ctx.settings.tls else None
    region = ctx.settings.aws_region
    given = scripts.client_variables(key, url=ctx.settings.url, region=region, authority=authority)
    clients = RUNTIME / "clients"
    given |= {"SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(clients / "sagemaker.yaml")}
    given["PYTHONPATH"] = ":".join(filter(None, [own.get("PYTHONPATH"), str(clients)]))
    return {**given, **own, "PYTHONPATH": given["PYTHONPATH"]}, scripts.HIDDEN


def over(ctx: Context, tx: Tx, attempt: str, job: Row) -> None:
    """An attempt is over: what it was lent ends with it."""
    if job["spec"].get("loan"):
        access_keys.end_with(ctx, tx, attempt)
