"""Aliases: names of versions that move, such as champion: the version that serves, or served last."""

from typing import Any

from loopline.control import registry
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.errors import NotFound
from loopline.store import records
from loopline.store.db import Row, Tx

CHAMPION = "champion"


def set_alias(ctx: Context, actor: Actor, *, model: str, alias: str, number: int) -> dict[str, Any]:
    """Point an alias at a version."""
    with ctx.db.transaction(durable=True) as tx:
        return set_alias_in(tx, model, alias, number, actor=actor.name)


def set_alias_in(tx: Tx, model: str, alias: str, number: int, *, actor: str, reason: str | None = None) -> Row:
    """Point an alias at a version, in the caller's transaction."""
    names.check_name(alias, "an alias")
    registry.version_row(tx, model, number)
    row = records.find(tx, "alias", model=model, name=alias)
    values = {"number": number, "changed_at": tx.now}
    if row is None:
        return records.create(tx, "alias", actor=actor, reason=reason, model=model, name=alias, **values)
    if row["number"] != number:
        records.set(tx, "alias", row["id"], actor=actor, reason=reason, model=model, name=alias, **values)
    return {**row, **values}


def delete_alias(ctx: Context, actor: Actor, *, model: str, alias: str) -> dict[str, Any]:
    """Remove an alias."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.find(tx, "alias", model=model, name=alias)
        if row is None:
            raise NotFound(f"the model {model!r} has no alias {alias!r}")
        records.delete(tx, "alias", row["id"], actor=actor.name)
    return {"model": model, "alias": alias}


def by_alias(tx: Tx, model: str, alias: str) -> Row | None:
    """The version that an alias points at."""
    row = records.find(tx, "alias", model=model, name=alias)
    return None if row is None else records.find(tx, "version", model=model, number=row["number"])


def champion_or(tx: Tx, model: str, number: int | None) -> Row:
    """The version with this number, or the champion when none is said; raises ``NotFound``."""
    if number is not None:
        return registry.version_row(tx, model, number)
    registry.model_row(tx, model)
    champion = by_alias(tx, model, CHAMPION)
    if champion is None:
        raise NotFound(f"the model {model!r} has no champion; say which version: {model}:1")
    return champion
