"""What stands behind a version, for everything that shows one and everything that lets one work."""

from typing import Any

import sqlalchemy as sa

from loopline.domain.states import EvaluationStatus
from loopline.domain.verification import of_evaluation
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import evaluations, versions


def add(tx: Tx, rows: list[Row]) -> None:
    """Say of each of these versions what stands behind it: ``verification``."""
    wanted = {row["evaluation"] for row in rows if row["evaluation"]}
    query = sa.select(evaluations.c.id, evaluations.c.status).where(evaluations.c.id.in_(wanted))
    statuses = {row["id"]: row["status"] for row in tx.rows(query)} if wanted else {}
    for row in rows:
        row["verification"] = str(of_evaluation(statuses.get(row["evaluation"])))


def of_ids(tx: Tx, identifiers: list[str]) -> dict[str, str]:
    """{id of a version: what stands behind it}; versions that are gone are left out."""
    if not identifiers:
        return {}
    query = sa.select(versions.c.id, versions.c.evaluation).where(versions.c.id.in_(set(identifiers)))
    rows = tx.rows(query)
    add(tx, rows)
    return {row["id"]: row["verification"] for row in rows}


def evaluation_of(tx: Tx, row: Row) -> Row | None:
    """The evaluation that a version stands on."""
    return None if row["evaluation"] is None else records.get(tx, "evaluation", row["evaluation"])


def concern(tx: Tx, row: Row) -> str | None:
    """What speaks against a version, whatever its gate's mode, with the command that mends it; None for one that has
    passed."""
    found = evaluation_of(tx, row)
    what = f"{row['model']} version {row['number']}"
    cure = f"run: loopline versions evaluate {row['model']} {row['number']}"
    if found is None:
        return f"{what} has no evaluation; {cure}"
    if found["status"] == EvaluationStatus.PASSED:
        return None
    if found["status"] == EvaluationStatus.CLAIMED:
        return f"{what} has figures that nobody measured here ({found['reason']}); {cure}"
    if found["status"] == EvaluationStatus.FAILED:
        return f"{what} could not be judged: {found['reason']}; {cure}"
    return f"{what} did not pass the gate: {found['reason']}"


def standing(tx: Tx, row: Row) -> dict[str, Any]:
    """The facts of a version's evaluation as evidence keeps them."""
    found = evaluation_of(tx, row)
    return {
        "evaluation": None if found is None else found["id"],
        "verdict": None if found is None else found["verdict"],
        "asset": None if found is None else found["asset"],
        "unverified": found is None or found["status"] != EvaluationStatus.PASSED,
    }
