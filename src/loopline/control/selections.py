"""Selections: an execution that runs some steps anew, and takes what the others gave from an earlier execution."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from loopline.control.context import SYSTEM
from loopline.domain import decisions
from loopline.domain.pipelines import Index
from loopline.domain.states import TERMINAL, StepStatus
from loopline.errors import InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import executions, steps


def choose(
    tx: Tx, index: Index, *, project: str, pipeline: str, selected: Sequence[str], source: str | None
) -> dict[str, Any]:
    """What an execution keeps about its selection: {"steps", "source"}.

    ``source``: an earlier execution of the pipeline; the newest that is over when none is named. Raises
    ``InvalidInput`` when a step that is not selected, but needed, has given nothing there.
    """
    left = decisions.unselected(index, selected)
    row = _source(tx, project, pipeline, source)
    given = _given(tx, row["id"])
    missing = [name for name, needed in left.items() if needed and name not in given]
    if missing:
        raise InvalidInput(
            f"the step {missing[0]!r} has given nothing in the execution {row['id']}, "
            "and a step that is selected needs it: select it, too"
        )
    return {"steps": sorted(set(selected)), "source": row["id"]}


def _source(tx: Tx, project: str, pipeline: str, source: str | None) -> Row:
    c = executions.c
    query = sa.select(executions).where(c.project == project, c.pipeline == pipeline)
    if source is not None:
        row = tx.row(query.where(c.id == source))
        if row is None:
            raise NotFound(f"the pipeline {pipeline!r} has no execution {source!r}")
        if row["status"] not in TERMINAL["execution"]:
            raise InvalidInput(f"the execution {source} is {row['status']}: take one that is over")
        return row
    over = c.status.in_(sorted(TERMINAL["execution"]))
    row = tx.row(query.where(over).order_by(c.created_at.desc(), c.id.desc()).limit(1))
    if row is None:
        raise InvalidInput(f"no execution of {pipeline!r} is over yet: there is nothing to take results from")
    return row


def _given(tx: Tx, execution: str) -> dict[str, Row]:
    """The steps of an execution that gave something, by name."""
    query = sa.select(steps).where(steps.c.execution == execution, steps.c.status == StepStatus.SUCCEEDED)
    return {row["name"]: row for row in tx.rows(query)}


def apply(tx: Tx, execution: Row, index: Index) -> None:
    """End the steps of an execution that has just begun which are not selected: with the earlier results, or left
    out."""
    selection = execution["selection"]
    if selection is None:
        return
    given = _given(tx, selection["source"])
    for name, needed in decisions.unselected(index, selection["steps"]).items():
        row = records.find(tx, "step", execution=execution["id"], name=name)
        assert row is not None
        if not needed:
            records.move(
                tx, "step", row["id"], StepStatus.SKIPPED, actor=SYSTEM.name, known=row, reason="it was not selected"
            )
            continue
        taken: dict[str, Any] = {
            "outputs": given[name]["outputs"],
            "cached_from": selection["source"],
            "started_at": tx.now,
            "ended_at": tx.now,
        }
        reason = f"not selected: as in the execution {selection['source']}"
        records.move(tx, "step", row["id"], StepStatus.SUCCEEDED, actor=SYSTEM.name, known=row, reason=reason, **taken)


def runs(execution: Row, step: str) -> bool:
    """Whether a step of the execution is one that runs."""
    return execution["selection"] is None or step in execution["selection"]["steps"]
