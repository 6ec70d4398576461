"""Model servers that a gateway took out of service, told in the event log.

A gateway keeps the newest of them in its state file. Each is recorded once: what was read of a gateway's list is stored
with the events that it became.
"""

import json
from typing import Any

import sqlalchemy as sa

from loopline.control.context import SYSTEM, Context
from loopline.domain.access import FUNCTION_SCOPE
from loopline.store import records
from loopline.store.db import Tx
from loopline.store.schema import consumers


def watch(ctx: Context) -> None:
    """Tick: record what gateways have reported since the last look."""
    seen: dict[str, float] = ctx.cache.setdefault("ejections", {})
    for path in ctx.settings.run_dir.glob("gateway-*.json"):
        try:
            found = json.loads(path.read_text()).get("ejections") or []
            newest = max((float(each["at"]) for each in found), default=0.0)
            if newest > seen.get(path.stem, 0.0):
                _record(ctx, path.stem, found)
                seen[path.stem] = newest
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it is written anew shortly


def _record(ctx: Context, gateway: str, found: list[dict[str, Any]]) -> None:
    name = f"ejections {gateway}"
    with ctx.db.transaction() as tx:
        row = tx.row(sa.select(consumers).where(consumers.c.name == name))
        position = 0 if row is None else int(row["position"])
        fresh = [each for each in found if _moment(each) > position]
        for each in fresh:
            _note(tx, each, gateway)
        if fresh:
            reached = max(map(_moment, fresh))
            tx.upsert(consumers, [{"name": name, "position": reached}], ("name",), ("position",))


def _moment(ejection: dict[str, Any]) -> int:
    return int(float(ejection["at"]) * 1e6)


def _note(tx: Tx, ejection: dict[str, Any], gateway: str) -> None:
    endpoint = str(ejection["endpoint"])
    kind, _, function = endpoint.partition(":")
    noun = "function" if kind == FUNCTION_SCOPE and function else "variant"
    if noun == "function":
        row = records.find(tx, "function", name=function)
    else:
        row = records.find(tx, "variant", endpoint=endpoint, name=str(ejection["variant"]))
    if row is not None:  # else it has gone meanwhile
        server, reason = str(ejection["server"]), str(ejection["reason"])
        data = {"server": server, "gateway": gateway, "endpoint": endpoint}
        records.note(tx, noun, row["id"], "ejected", actor=SYSTEM.name, reason=f"{server}: {reason}", **data)
