"""Variants: a version behind an endpoint, and the share of the traffic it gets."""

from typing import Any

import sqlalchemy as sa

from loopline.control import snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain import names
from loopline.domain.states import VariantStatus
from loopline.errors import Conflict
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import variants

_OVER = (VariantStatus.STOPPED, VariantStatus.FAILED)
_MAX_FOLLOWERS = 10_000


def ensure(tx: Tx, endpoint: Row, version: Row, actor: str, name: str | None = None) -> Row:
    """The endpoint's variant for a version: the one that is there already, or a new one called ``name``.

    Raises ``Conflict`` when the version runs under another name, or another version under this one.
    """
    row = _of_version(tx, endpoint["name"], version["id"], name)
    if row is not None and row["status"] not in _OVER and name not in (None, row["name"]):
        raise Conflict(f"{version['model']} version {version['number']} runs as {row['name']} already")
    if row is None:
        name = _free(tx, endpoint, name or default_name(endpoint, version))
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
    if row["status"] in _OVER:
        renamed: dict[str, Any] = {"name": _free(tx, endpoint, name)} if name and name != row["name"] else {}
        row = records.move(
            tx,
            "variant",
            row["id"],
            VariantStatus.STARTING,
            actor=actor,
            server=None,
            weight=0.0,
            shadow=None,
            instances=int((endpoint["settings"] or {}).get("instances", 1)),
            **renamed,
        )
    return row


def follow(tx: Tx, endpoint: Row, servable: Row, actor: str, *, called: str, instances: int) -> Row:
    """A new variant for a servable that callers know as ``called``, beside those of that name that serve now."""
    names.check_name(called, "a variant")
    taken = {row["name"] for row in of_endpoint(tx, endpoint["name"])}
    free = (name for n in range(1, _MAX_FOLLOWERS) if (name := called if n == 1 else f"{called[:56]}-{n}") not in taken)
    return records.create(
        tx,
        "variant",
        actor=actor,
        endpoint=endpoint["name"],
        name=next(free),
        called=called,
        version=servable["version"],
        servable=servable["id"],
        model=servable["model"],
        number=servable["number"],
        weight=0.0,
        instances=instances,
        digest=(servable["artifact"] or {}).get("sha256", ""),
    )


def start_again(tx: Tx, row: Row, actor: str) -> None:
    """Let a variant that has ended start once more, as it was."""
    if row["status"] in _OVER:
        again: dict[str, Any] = {"server": None, "weight": 0.0, "shadow": None}
        records.move(tx, "variant", row["id"], VariantStatus.STARTING, actor=actor, **again)


def arriving(tx: Tx, rollout: Row) -> list[Row]:
    """The variants that a rollout brings: as a rule one, of a blueprint all of them; the one it is named by first."""
    plan = rollout["plan"] or {}
    others = {*(plan.get("group") or ()), *(plan.get("copies") or ())} - {rollout["variant"]}
    return [records.get(tx, "variant", identifier) for identifier in (rollout["variant"], *sorted(others))]


def default_name(endpoint: Row, version: Row) -> str:
    """What a variant is called unless somebody chooses."""
    name = f"v{version['number']}"
    return name if endpoint["model"] is not None else f"{version['model']}-{name}"


def _of_version(tx: Tx, endpoint: str, version: str, name: str | None) -> Row | None:
    """A variant of this version: one that runs before one that does not, one of this name before others."""
    query = sa.select(variants).where(variants.c.endpoint == endpoint, variants.c.version == version)
    found = tx.rows(query.order_by(variants.c.created_at.desc()))
    return min(found, key=lambda row: (row["status"] in _OVER, row["name"] != name), default=None)


def _free(tx: Tx, endpoint: Row, name: str) -> str:
    """``name``, once a variant that had it and has ended is called by its version again."""
    names.check_name(name, "a variant")
    found = records.find(tx, "variant", endpoint=endpoint["name"], name=name)
    if found is None:
        return name
    if found["status"] not in _OVER:
        raise Conflict(f"{name} is {found['model']} version {found['number']}; choose another name, or stop it first")
    former = default_name(endpoint, found)
    if former == name or records.find(tx, "variant", endpoint=endpoint["name"], name=former) is not None:
        former = f"{name[:40]}-{found['id'][-8:]}"
    records.set(tx, "variant", found["id"], actor=SYSTEM.name, name=former)
    return name


def of_endpoint(tx: Tx, endpoint: str) -> list[Row]:
    """All variants of an endpoint, those that have ended included."""
    return tx.rows(sa.select(variants).where(variants.c.endpoint == endpoint).order_by(variants.c.name))


def weights(tx: Tx, endpoint: str) -> dict[str, float]:
    """{id: weight} of the variants that take traffic."""
    return {row["id"]: row["weight"] for row in of_endpoint(tx, endpoint) if row["weight"] > 0}


def shift(tx: Tx, row: Row, share: float) -> None:
    """Give a rollout's variants their share (percent), and the rest to those that served before, each in its
    proportion."""
    plan = row["plan"] or {}
    group = plan.get("group") or {row["variant"]: 1.0}
    before = plan.get("before") or ({row["predecessor"]: 1.0} if row["predecessor"] else {})
    others = {identifier: weight for identifier, weight in before.items() if identifier not in group}
    wanted = {**_parts(others, 100.0 - share), **_parts(group, share)}
    for variant in of_endpoint(tx, row["endpoint"]):
        values: dict[str, Any] = {"weight": wanted.get(variant["id"], 0.0)}
        if values["weight"] > 0 and variant["shadow"]:
            values["shadow"] = None
        if any(variant[key] != value for key, value in values.items()):
            records.set(tx, "variant", variant["id"], actor=SYSTEM.name, **values)


def _parts(weights: dict[str, float], share: float) -> dict[str, float]:
    total = sum(weights.values())
    return {identifier: share * weight / total for identifier, weight in weights.items()}


def leave_warm(tx: Tx, variant: Row, actor: str, keep_seconds: float) -> None:
    """Keep a variant that takes no traffic any more, for a quick way back."""
    if variant["status"] == VariantStatus.READY:
        records.move(tx, "variant", variant["id"], VariantStatus.WARM, actor=actor, warm_until=tx.now + keep_seconds)


def keep_seconds(endpoint: Row) -> float:
    """How long an endpoint keeps what has left."""
    return float((endpoint["settings"] or {}).get("keep_warm_seconds", 3600))


def snapshot(ctx: Context, tx: Tx, row: Row) -> dict[str, Any]:
    """Write the traffic as it is now; gives what a rollout remembers of it."""
    return {"snapshot": snapshots.write(ctx, tx, actor=row["by"], reason=f"rollout {row['id']}"), "step_at": tx.now}
