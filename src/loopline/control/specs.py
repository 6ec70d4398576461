"""Compiled pipelines as the engine uses them: indexed once, with the code, data and environment that a step needs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET

from loopline.control import outputs
from loopline.control.context import Context
from loopline.domain import calls, pipelines
from loopline.domain.pipelines import Index, JobStep, Output, Step
from loopline.errors import NotFound
from loopline.store import folders, records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import assets as assets_table
from loopline.store.schema import pipelines as pipelines_table

MAX_CACHED = 64


def index(ctx: Context, pipeline: Row) -> Index:
    """The indexed spec of a pipeline's version."""
    kept = _indexes(ctx)
    found = kept.get(pipeline["digest"])
    if found is None:
        if len(kept) >= MAX_CACHED:
            kept.clear()
        found = kept[pipeline["digest"]] = Index(pipelines.parse_spec(pipeline["spec"]))
    return found


def index_of(ctx: Context, tx: Tx, execution: Row) -> Index:
    """The indexed spec of what an execution runs; the spec itself is read only when it is not known here yet."""
    where = {"project": execution["project"], "name": execution["pipeline"], "version": execution["pipeline_version"]}
    known = tx.fetch_one(_DIGEST, **where)
    if known is None:
        raise NotFound(f"the pipeline of the execution {execution['id']} is gone")
    found = _indexes(ctx).get(known["digest"])
    if found is None:
        pipeline = records.find(tx, "pipeline", **where)
        assert pipeline is not None
        found = index(ctx, pipeline)
    return found


def _indexes(ctx: Context) -> dict[str, Index]:
    kept: dict[str, Index] = ctx.cache.setdefault("indexes", {})
    return kept


_DIGEST = Prepared(
    sa.select(pipelines_table.c.digest).where(
        pipelines_table.c.project == sa.bindparam("project"),
        pipelines_table.c.name == sa.bindparam("name"),
        pipelines_table.c.version == sa.bindparam("version"),
    )
)


def kind_of(step: Step) -> str:
    """job, register, condition or fail."""
    return str(step.__struct_config__.tag)


def json_output(value: Any) -> dict[str, Any]:
    """What a step that no job ran gives, in the form of a job's output."""
    text = outputs.canonical(value)
    return {
        "format": "json",
        "path": "",
        "size_bytes": len(text),
        "sha256": outputs.digest_of(value),
        "executable": False,
        "value": value,
    }


def facts(tx: Tx, execution: Row) -> dict[str, str]:
    """What values may say about an execution: see ``domain.values.Variable``."""
    started = execution["started_at"] or tx.now
    return {
        "id": execution["id"],
        "pipeline": execution["pipeline"],
        "started_at": _iso(started),
        "now": _iso(tx.now),
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_output(stored: dict[str, Any]) -> Output:
    """A stored output as the value that ``domain.calls`` reads."""
    return msgspec.convert({k: v for k, v in stored.items() if k != "sealed"}, Output)


def pin_assets(tx: Tx, project: str, spec: Index) -> list[dict[str, Any]]:
    """The version of each data asset that the pipeline names, as it is now."""
    wanted = {
        (leaf.asset.name, leaf.asset.version)
        for step in spec.steps.values()
        for value in step.values()
        for leaf in value.leaves()
        if leaf.asset is not UNSET
    }
    pinned = []
    for name, version in sorted(wanted, key=str):
        row = find_asset(tx, project, name, version)
        pinned.append(
            {
                "name": name,
                "wanted": version,
                "version": row["version"],
                "kind": row["kind"],
                "sha256": row["digest"],
                "path": (row["source"] or {}).get("name") or name,
            }
        )
    return pinned


def find_asset(tx: Tx, project: str, name: str, version: int | None) -> Row:
    """A data asset's version, or its newest; raises ``NotFound`` saying what there is."""
    query = sa.select(assets_table).where(assets_table.c.project == project, assets_table.c.name == name)
    if version is not None:
        query = query.where(assets_table.c.version == version)
    row = tx.row(query.order_by(assets_table.c.version.desc()).limit(1))
    if row is None:
        known = tx.rows(sa.select(assets_table.c.name).where(assets_table.c.project == project).distinct())
        names = ", ".join(sorted(item["name"] for item in known)) or "none"
        what = name if version is None else f"{name}:{version}"
        raise NotFound(f"the project {project} has no data asset {what!r}; it has: {names}")
    return row


def tree_files(ctx: Context, tree: str) -> Mapping[str, str]:
    """The digest of each file of a project's tree, by path."""
    kept: dict[str, dict[str, str]] = ctx.cache.setdefault("trees", {})
    if tree not in kept:
        if len(kept) >= MAX_CACHED:
            kept.clear()
        kept[tree] = {entry.path: entry.sha256 for entry in folders.read_manifest(ctx.blobs, tree)}
    return kept[tree]


class StepContext:
    """What the job steps of one execution share: the project's files, its environment and its data."""

    def __init__(self, ctx: Context, tx: Tx, execution: Row, spec: Index) -> None:
        self._ctx, self._spec = ctx, spec
        self.environment = records.get(tx, "environment", execution["environment"])
        self.tree = records.get(tx, "push", execution["push"])["tree"]
        self.assets = {
            (entry["name"], entry["wanted"]): calls.Asset(
                entry["name"], entry["version"], entry["kind"], entry["sha256"], entry["path"]
            )
            for entry in execution["assets"] or ()
        }

    def code_digest(self, step: JobStep) -> str:
        """The digest of the files that the step depends on."""
        key = ("code", self.tree, self._spec.spec.file, step.function, step.code)
        kept: dict[Any, str] = self._ctx.cache.setdefault("code", {})
        if key not in kept:
            if len(kept) >= MAX_CACHED * 16:
                kept.clear()
            kept[key] = calls.digest_code(tree_files(self._ctx, self.tree), self._spec.spec, step)
        return kept[key]

    def job_spec(self, step: JobStep, arguments: Mapping[str, calls.Argument]) -> dict[str, Any]:
        """What ``control.jobs`` runs for a step."""
        places: dict[str, dict[str, str]] = {}

        def locate(given: calls.Input) -> str:
            kind = "folder" if given.format == "folder" else "file"
            places[str(len(places))] = {"sha256": given.sha256, "kind": kind, "name": given.path}
            return str(len(places) - 1)

        limits = dict(step.limits)
        if step.timeout_seconds is not None:
            limits["timeout_seconds"] = step.timeout_seconds
        return {
            **environment_spec(self.environment),
            "tree": self.tree,
            "inputs": places,
            "limits": limits,
            "call": {
                "file": self._spec.spec.file,
                "function": step.function,
                "arguments": calls.call_arguments(arguments, locate),
                "outputs": list(step.outputs),
                "baseline": step.baseline,
            },
        }


def environment_spec(environment: Row) -> dict[str, Any]:
    """The part of a job's spec that names its interpreter."""
    return {
        "python": environment["python"],
        "environment_path": environment["path"],
        "forkserver": f"fork-{environment['key'][:16]}",
    }
