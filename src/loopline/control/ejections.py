"""Model servers that are sick, told in the event log: what gateways saw of them, and what the supervisor did about it.

Both keep the newest in their state files: a gateway whom it took out of service (``ejected``) and who fails whatever it
is asked (``failing``), the supervisor whom it ``replaced``, ``restarted`` or ``left`` as it is. Each is recorded once:
what was read of a list is stored with the events that it became.
"""

import json
from typing import Any

import sqlalchemy as sa

from loopline.control.context import SYSTEM, Context
from loopline.domain.access import FUNCTION_SCOPE
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import consumers


def watch(ctx: Context) -> None:
    """Tick: record what gateways and the supervisor have reported since the last look."""
    seen: dict[str, float] = ctx.cache.setdefault("ejections", {})
    run_dir = ctx.settings.run_dir
    for path in (*run_dir.glob("gateway-*.json"), run_dir / "supervisor.json"):
        try:
            state = json.loads(path.read_text())
            found = state.get("ejections") or state.get("replacements") or []
            newest = max((float(each["at"]) for each in found), default=0.0)
            if newest > seen.get(path.stem, 0.0):
                _record(ctx, path.stem, found)
                seen[path.stem] = newest
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it is written anew shortly


def _record(ctx: Context, reporter: str, found: list[dict[str, Any]]) -> None:
    name = f"ejections {reporter}"
    with ctx.db.transaction() as tx:
        row = tx.row(sa.select(consumers).where(consumers.c.name == name))
        position = 0 if row is None else int(row["position"])
        fresh = [each for each in found if _moment(each) > position]
        for each in fresh:
            _note(tx, each, reporter)
        if fresh:
            reached = max(map(_moment, fresh))
            tx.upsert(consumers, [{"name": name, "position": reached}], ("name",), ("position",))


def _moment(ejection: dict[str, Any]) -> int:
    return int(float(ejection["at"]) * 1e6)


def _note(tx: Tx, told: dict[str, Any], reporter: str) -> None:
    server, reason, kind = str(told["server"]), str(told["reason"]), str(told.get("kind") or "ejected")
    noun, row = _record_of(tx, told)
    if row is None:
        return  # it has gone meanwhile
    by = {"endpoint": told["endpoint"], "gateway": reporter} if "endpoint" in told else {}
    records.note(tx, noun, row["id"], kind, actor=SYSTEM.name, reason=f"{server}: {reason}", server=server, **by)


def _record_of(tx: Tx, told: dict[str, Any]) -> tuple[str, Row | None]:
    """Whose server it is. A gateway says it by endpoint and variant; the supervisor knows servers only, whose names
    begin with their owner's id."""
    if "endpoint" not in told:
        return "variant", records.find(tx, "variant", id=str(told["server"]).rpartition("-")[0])
    endpoint = str(told["endpoint"])
    kind, _, function = endpoint.partition(":")
    if kind == FUNCTION_SCOPE and function:
        return "function", records.find(tx, "function", name=function)
    return "variant", records.find(tx, "variant", endpoint=endpoint, name=str(told["variant"]))
