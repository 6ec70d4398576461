"""Variants: a version behind an endpoint, and the share of the traffic it gets."""

from typing import Any

import sqlalchemy as sa

from loopline.control import snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain.states import VariantStatus
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import variants


def ensure(tx: Tx, endpoint: Row, version: Row, actor: str) -> Row:
    """The endpoint's variant for a version: the one that is there already, or a new one."""
    name = f"v{version['number']}"
    if endpoint["model"] is None:
        name = f"{version['model']}-{name}"
    row = records.find(tx, "variant", endpoint=endpoint["name"], name=name)
    if row is None:
        return records.create(
            tx,
            "variant",
            actor=actor,
            endpoint=endpoint["name"],
            name=name,
            version=version["id"],
            model=version["model"],
            number=version["number"],
            weight=0.0,
            instances=int((endpoint["settings"] or {}).get("instances", 1)),
            digest=version["artifact"]["sha256"],
        )
    if row["status"] in (VariantStatus.STOPPED, VariantStatus.FAILED):
        row = records.move(tx, "variant", row["id"], VariantStatus.STARTING, actor=actor, server=None, weight=0.0)
    return row


def shift(ctx: Context, tx: Tx, row: Row, share: float) -> None:
    """Give the new variant its share and the predecessor the rest."""
    for variant in tx.rows(sa.select(variants).where(variants.c.endpoint == row["endpoint"])):
        weight = share if variant["id"] == row["variant"] else 0.0
        if variant["id"] == row["predecessor"]:
            weight = 100.0 - share
        if variant["weight"] != weight:
            records.set(tx, "variant", variant["id"], actor=SYSTEM.name, weight=weight)


def snapshot(ctx: Context, tx: Tx, row: Row) -> dict[str, Any]:
    """Write the traffic as it is now; gives what a rollout remembers of it."""
    return {"snapshot": snapshots.write(ctx, tx, actor=row["by"], reason=f"rollout {row['id']}"), "step_at": tx.now}
