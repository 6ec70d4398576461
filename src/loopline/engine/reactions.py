"""Reactions: what follows by itself from an event. Each is given every event in order, and keeps its own position."""

from collections.abc import Callable
from typing import NamedTuple

from loopline.control import (
    audit,
    endpoint_tests,
    firings,
    monitoring,
    multimodel,
    object_notices,
    retraining,
    rollouts,
    topics,
)
from loopline.control.context import Context
from loopline.store.db import Row, Tx
from loopline.store.schema import NOUNS


class Reaction(NamedTuple):
    """A reader of the event log; ``react`` runs in the transaction that moves its position."""

    name: str
    react: Callable[[Context, Tx, Row], None]
    nouns: frozenset[str] | None = None  # None: every event


# What people are told about; attempts, jobs and runs are parts of steps and executions.
TOLD = frozenset(NOUNS) - {"attempt", "delivery", "job", "object", "run", "subscription", "topic", "upload"}

REACTIONS = (
    Reaction("audit", audit.chain),
    Reaction("release", rollouts.react, frozenset({"evaluation", "version"})),
    Reaction("multimodel", multimodel.react, frozenset({"endpoint", "version"})),
    Reaction("notify", topics.notify, TOLD),
    Reaction("objects", object_notices.react, frozenset({"object"})),
    Reaction("triggers", firings.react, frozenset({"asset", "object"})),
    Reaction("retraining", retraining.react, frozenset({"execution", "push", "retraining"})),
    Reaction("tests", endpoint_tests.react, frozenset({"endpoint"})),
    Reaction("monitors", monitoring.react, frozenset({"endpoint", "variant", "version"})),
)
