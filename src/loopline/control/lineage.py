"""Lineage: where a version comes from."""

from typing import Any

import sqlalchemy as sa

from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import executions, pushes, runs


def facts(tx: Tx, row: Row) -> dict[str, Any]:
    """The lineage of a version; of a copy, that of the original as far as its own record does not say."""
    original = row
    if row["copied_from"]:
        original = records.find(tx, "version", id=row["copied_from"]["version"]) or row
    run = tx.row(sa.select(runs).where(runs.c.id == original["run"])) if original["run"] else None
    execution = (
        tx.row(sa.select(executions).where(executions.c.id == original["execution"])) if original["execution"] else None
    )
    push = tx.row(sa.select(pushes).where(pushes.c.id == execution["push"])) if execution else None
    servable = records.find(tx, "servable", id=row["servable"]) if row["servable"] else None
    packages = row["environment"] or (servable or {}).get("environment")
    environment = records.find(tx, "environment", id=packages) if packages else None
    return {
        "model": row["model"],
        "version": row["number"],
        "artifact": (row["artifact"] or {}).get("sha256"),
        "copied_from": row["copied_from"],
        "run": None if run is None else run["id"],
        "execution": None if execution is None else execution["id"],
        "pipeline": None if execution is None else f"{execution['pipeline']}:{execution['pipeline_version']}",
        "trigger": None if execution is None else execution["trigger"],
        "commit": None if push is None else push["commit"],
        "branch": None if push is None else push["branch"],
        "dirty": None if push is None else push["dirty"],
        "tree": row["tree"],
        "objects": None if servable is None else servable["source"],
        "data": [] if run is None else run["inputs"] or [],
        "parameters": {} if run is None else run["parameters"] or {},
        "environment": None if environment is None else environment["key"],
        "requested_by": row["requested_by"],
        "decided_by": row["decided_by"],
        "policy": row["policy"],
        "comment": row["comment"],
    }
