"""Reactions: what follows by itself from an event. Each is given every event in order, and keeps its own position."""

from collections.abc import Callable
from typing import NamedTuple

from loopline.control import audit, firings, monitoring, retraining, rollouts, topics
from loopline.control.context import Context
from loopline.store.db import Row, Tx


class Reaction(NamedTuple):
    """A reader of the event log; ``react`` runs in the transaction that moves its position."""

    name: str
    react: Callable[[Context, Tx, Row], None]


REACTIONS = (
    Reaction("audit", audit.chain),
    Reaction("release", rollouts.react),
    Reaction("notify", topics.notify),
    Reaction("triggers", firings.react),
    Reaction("retraining", retraining.react),
    Reaction("monitors", monitoring.react),
)
