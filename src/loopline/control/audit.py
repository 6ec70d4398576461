"""The audit chain: each event's digest covers the event and the digest before it, so that what happened cannot be
changed afterwards without it being seen."""

import hashlib
import json
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.errors import Conflict, InvalidInput
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import audit, consumers, events

CONSUMER = "audit"
START = "0" * 64  # what the first event's digest covers in place of a previous one
BATCH = 1000

_LAST = Prepared(sa.select(audit).order_by(audit.c.number.desc()).limit(1))
_APPEND = Prepared(audit.insert().values({c.name: sa.bindparam(c.name) for c in audit.c}))


def digest_of(event: Row, previous: str) -> str:
    """SHA-256 over the canonical JSON (sorted keys, no spaces) of the event row and the previous digest."""
    fields = {column.name: event[column.name] for column in events.c}
    text = json.dumps({**fields, "previous": previous}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def chain(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: append an event to the chain. Events come in order; one that the chain holds already is passed over.

    Raises ``Conflict`` when the chain has gone past the event without it: a gap is never closed silently.
    """
    last = tx.fetch_one(_LAST)
    if last is not None and event["number"] <= last["number"]:
        if tx.row(sa.select(audit.c.number).where(audit.c.number == event["number"])) is None:
            raise Conflict(f"the audit chain has gone past event {event['number']}; run: loopline audit verify")
        return
    previous = START if last is None else last["digest"]
    digest = digest_of(event, previous)
    tx.change(_APPEND, number=event["number"], previous=previous, digest=digest)


# -- verifying --------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """The first event at which log and chain disagree. ``kind``: edited, deleted, inserted or relinked."""

    number: int
    kind: str
    message: str


def head(ctx: Context, actor: Actor) -> dict[str, Any]:
    """The chain's newest link. Whoever keeps its ``anchor`` elsewhere can prove later that nothing changed."""
    with ctx.db.read() as tx:
        last = tx.fetch_one(_LAST)
        return {**_describe(last), "waiting": _waiting(tx, last)}


def _describe(last: Row | None) -> dict[str, Any]:
    number, digest = (0, START) if last is None else (int(last["number"]), str(last["digest"]))
    return {"number": number, "digest": digest, "anchor": f"{number}:{digest}"}


def _waiting(tx: Tx, last: Row | None) -> int:
    """How many events were written but are not chained yet."""
    number = 0 if last is None else last["number"]
    query = sa.select(sa.func.count()).select_from(events).where(events.c.number > number)
    return int(tx.execute(query).scalar_one())


def verify(ctx: Context, actor: Actor, *, anchor: str | None = None) -> dict[str, Any]:
    """Compute the whole chain anew from the log and compare.

    ``anchor``: a head that was noted earlier (see ``head``); it finds a chain that was computed anew after a change.
    Gives ``valid``, the number of ``events`` that hold, the ``head``, how many are ``waiting`` to be chained, and the
    first ``problem`` with its event number.
    """
    known = _parse_anchor(anchor)
    with ctx.db.read() as tx:
        last = tx.fetch_one(_LAST)
        waiting = _waiting(tx, last)
        problem = _ends_well(tx, last)
    end = 0 if last is None else int(last["number"])
    found, checked = _walk(ctx, end, known)
    problem = found or problem
    if problem is None and known is not None and known[0] > end:
        problem = Problem(known[0], "deleted", f"the chain ends at event {end}, before the anchor's event {known[0]}")
    return {
        "valid": problem is None,
        "events": checked,
        "head": _describe(last),
        "waiting": waiting,
        "problem": None if problem is None else problem._asdict(),
    }


def _parse_anchor(anchor: str | None) -> tuple[int, str] | None:
    if anchor is None:
        return None
    number, _, digest = anchor.partition(":")
    if not number.isascii() or not number.isdecimal() or len(number) > 18 or len(digest) != len(START):
        raise InvalidInput(f"{anchor!r} is not an anchor: write NUMBER:DIGEST as `loopline audit head` shows it")
    return int(number), digest


def _ends_well(tx: Tx, last: Row | None) -> Problem | None:
    """The chain must reach as far as its consumer has come: a tail that was cut off shows there."""
    position = tx.row(sa.select(consumers.c.position).where(consumers.c.name == CONSUMER))
    end = 0 if last is None else int(last["number"])
    if position is not None and position["position"] > end:
        text = f"the chain ends at event {end}, but had reached event {position['position']}"
        return Problem(end + 1, "deleted", text)
    return None


def _walk(ctx: Context, end: int, known: tuple[int, str] | None) -> tuple[Problem | None, int]:
    """Compare events and links up to ``end``, batch by batch; the first problem, and how many hold before it."""
    position, previous, checked = -(1 << 62), START, 0  # a number below the first is not ours either
    while position < end:
        with ctx.db.read() as tx:
            after = (audit.c.number > position, audit.c.number <= end)
            links = tx.rows(sa.select(audit).where(*after).order_by(audit.c.number).limit(BATCH))
            upper = links[-1]["number"] if len(links) == BATCH else end
            within = (events.c.number > position, events.c.number <= upper)
            rows = tx.rows(sa.select(events).where(*within).order_by(events.c.number))
        chained = {int(link["number"]): link for link in links}
        logged = {int(row["number"]): row for row in rows}
        for number in sorted(chained.keys() | logged.keys()):
            problem = _compare(number, logged.get(number), chained.get(number), previous)
            if problem is None and known is not None and known[0] == number and known[1] != chained[number]["digest"]:
                problem = Problem(number, "relinked", f"event {number} had another digest when the anchor was noted")
            if problem is not None:
                return problem, checked
            previous = chained[number]["digest"]
            checked += 1
        position = upper
    return None, checked


def _compare(number: int, event: Row | None, link: Row | None, previous: str) -> Problem | None:
    if link is None:
        return Problem(
            number, "inserted", f"event {number} was put into the log after its time: the chain passed it by"
        )
    if event is None:
        return Problem(number, "deleted", f"event {number} is gone from the log")
    if link["previous"] != previous:
        text = f"event {number} does not follow the one before it: events between them are gone, or a link was changed"
        return Problem(number, "relinked", text)
    if link["digest"] != digest_of(event, previous):
        return Problem(number, "edited", f"event {number} is not as it was when it was chained")
    return None
