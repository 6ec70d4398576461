"""What an alarm may start: a retraining, where loop.toml allows it, within its cool-down and its budget."""

from typing import Any

import sqlalchemy as sa

from loopline.control.context import SYSTEM
from loopline.domain import alarms as rules
from loopline.domain import projects as loops
from loopline.domain import states
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import retrainings

TASK = "retraining.advance"


def ask(tx: Tx, alarm: Row, evidence: dict[str, Any]) -> tuple[str | None, str | None]:
    """Create a Pending retraining for an alarm that has just begun: (what was done, None) or (None, why not)."""
    project = records.find(tx, "project", name=alarm["project"]) if alarm["project"] else None
    if project is None or not project["loop"]:
        return None, "the endpoint belongs to no project, so that nothing says how to retrain"
    retrain = loops.from_dict(project["loop"]).retrain
    if not retrain.enabled:
        return None, "retraining is off: [retrain] enabled = true in loop.toml switches it on"
    mine = sa.select(retrainings).where(
        retrainings.c.project == alarm["project"], retrainings.c.endpoint == alarm["endpoint"]
    )
    before = tx.rows(mine.order_by(retrainings.c.created_at.desc()).limit(1000))
    running = [row for row in before if not states.is_terminal("retraining", row["status"])]
    if running:
        return None, f"the retraining {running[0]['id']} is still {running[0]['status']}"
    allowed, why = rules.may_act(
        [row["created_at"] for row in before if row["push"]],  # one that started nothing has spent nothing
        tx.now,
        cooldown_seconds=retrain.cooldown_seconds,
        budget=retrain.budget,
        budget_window_seconds=retrain.budget_window_seconds,
    )
    if not allowed:
        return None, why
    row = records.create(
        tx,
        "retraining",
        actor=SYSTEM.name,
        reason=alarm["reason"],
        project=alarm["project"],
        endpoint=alarm["endpoint"],
        cause={"kind": "alarm", "alarm": alarm["name"], "metric": alarm["definition"]["metric"], "evidence": evidence},
        delivery=f"alarm:{alarm['name']}:{alarm['since_at']!r}",
        asset=retrain.asset or None,
        by=SYSTEM.name,
    )
    queue.ask(tx, TASK, row["id"])
    return f"asked for the retraining {row['id']}", None
