"""Images: the packages that stand for a container image's name, of this installation and those known anywhere."""

from typing import Any

import sqlalchemy as sa

from loopline.compute.environments import parse_requirements
from loopline.control.context import Context
from loopline.domain import images as rules
from loopline.domain.access import Actor
from loopline.domain.images import Chosen
from loopline.errors import Conflict, NotFound
from loopline.store import records
from loopline.store.db import Tx
from loopline.store.schema import images


def choose(ctx: Context, tx: Tx, image: str) -> Chosen:
    """The packages of an image, and a warning where another's stand for it. Raises ``InvalidInput``."""
    query = sa.select(images.c.name, images.c.requirements).where(
        images.c.name.in_([*rules.names_of(image), *rules.names_of(ctx.settings.default_image)])
    )
    own = {row["name"]: row["requirements"] for row in tx.rows(query)}
    return rules.choose(image, own, ctx.settings.default_image)


def put(ctx: Context, actor: Actor, *, image: str, requirements: str) -> dict[str, Any]:
    """Give an image its packages (a requirements.txt; empty: the standard library alone), in place of any before."""
    rules.check_image(image)
    parse_requirements(requirements)
    with ctx.db.transaction(durable=True) as tx:
        row = records.find(tx, "image", name=image)
        if row is None:
            made: dict[str, Any] = {"name": image, "requirements": requirements, "by": actor.name, "changed_at": tx.now}
            return records.create(tx, "image", actor=actor.name, **made)
        changed: dict[str, Any] = {"requirements": requirements, "by": actor.name, "changed_at": tx.now}
        records.set(tx, "image", row["id"], actor=actor.name, **changed)
        return {**row, **changed}


def name(ctx: Context, actor: Actor, *, image: str) -> dict[str, Any]:
    """Let an image have a name of its own, with the packages that stand for it now. Raises ``Conflict`` for one that
    has it."""
    rules.check_image(image)
    with ctx.db.transaction(durable=True) as tx:
        if records.find(tx, "image", name=image) is not None:
            raise Conflict(f"the image {image!r} has its packages")
        chosen = choose(ctx, tx, image)
        made: dict[str, Any] = {"requirements": chosen.requirements, "by": actor.name, "changed_at": tx.now}
        return records.create(tx, "image", actor=actor.name, name=image, **made)


def delete(ctx: Context, actor: Actor, *, image: str) -> dict[str, Any]:
    """Forget what was given for an image; where it is known anywhere, that counts again."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.find(tx, "image", name=image)
        if row is None:
            raise NotFound(f"nothing was given for the image {image!r}")
        records.delete(tx, "image", row["id"], actor=actor.name)
    return row


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Every image that is known: ``own`` of this installation, or known anywhere."""
    with ctx.db.read() as tx:
        own = {row["name"]: row for row in tx.rows(sa.select(images))}
    known = [{"name": name, "requirements": text, "own": False} for name, text in rules.BUILT_IN.items()]
    items = [entry for entry in known if entry["name"] not in own]
    items += [{**row, "own": True} for row in own.values()]
    return {"items": sorted(items, key=lambda entry: str(entry["name"])), "next": None}
