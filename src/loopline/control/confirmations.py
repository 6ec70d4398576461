"""Whether a receiver wants what somebody subscribed it to: e-mail addresses and SNS endpoints are asked first.

The message that asks carries a token, which is kept sealed and is in no list; whoever shows it has received the
message. Until then nothing else is sent there.
"""

import hmac
import secrets
from typing import Any

from loopline.control import deliveries
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx

KINDS = ("email", "sns")
VALID_SECONDS = 3 * 86_400


def ask(ctx: Context, tx: Tx, row: Row, *, actor: str) -> float:
    """Send a subscription's receiver a message that asks; gives the time until which it may say yes."""
    ctx.secrets.set(tx, deliveries.confirmation_secret(row["id"]), secrets.token_hex(24))
    number = records.note(tx, "subscription", row["id"], "asked", actor=actor)
    event = {
        "number": number,
        "at": tx.now,
        "actor": actor,
        "noun": "subscription",
        "record": row["id"],
        "kind": deliveries.CONFIRM,
        "reason": None,
    }
    said = f"Confirm the subscription to the topic {row['topic']}"
    deliveries.create(tx, row, event, {"topic": row["topic"], "said": said})
    return tx.now + VALID_SECONDS


def ask_again(ctx: Context, actor: Actor, *, subscription: str) -> dict[str, Any]:
    """Send the message anew, with another token; raises ``Conflict`` for one that is confirmed."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "subscription", subscription)
        if row["pending_until"] is None:
            raise Conflict("this subscription is confirmed")
        until = ask(ctx, tx, row, actor=actor.name)
        records.set(tx, "subscription", subscription, actor=actor.name, pending_until=until)
    ctx.wake()
    return {**row, "pending_until": until}


def confirm(ctx: Context, actor: Actor, *, token: str) -> dict[str, Any]:
    """What the link in the message does: from now on the receiver gets the topic's messages.

    Raises ``NotFound`` for a token that no message carried, or one that is used or too old.
    """
    identifier, secret = read_token(token)
    with ctx.db.transaction() as tx:
        row = records.find(tx, "subscription", id=identifier)
        name = deliveries.confirmation_secret(identifier)
        waiting = row is not None and row["pending_until"] is not None and name in ctx.secrets.names(tx)
        if row is None or not waiting or not hmac.compare_digest(ctx.secrets.get(tx, name), secret):
            raise NotFound("there is no subscription that this token confirms")
        if row["pending_until"] < tx.now:
            raise NotFound("this token is too old; subscribe again")
        ctx.secrets.delete(tx, name)
        records.set(tx, "subscription", identifier, actor=actor.name, reason="confirmed", pending_until=None)
    return {**row, "pending_until": None}


def read_token(token: str) -> tuple[str, str]:
    """(subscription, secret) of a token; raises ``InvalidInput`` for any other text."""
    try:
        identifier, colon, secret = bytes.fromhex(token).decode("ascii").partition(":")
    except ValueError:
        raise InvalidInput("this is not a token of a subscription") from None
    if not colon:
        raise InvalidInput("this is not a token of a subscription")
    return identifier, secret
