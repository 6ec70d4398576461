"""When triggers are due: cron expressions in UTC, and the names and settings of triggers. Pure functions."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cronsim import CronSim, CronSimError

from loopline.domain.objects import check_bucket
from loopline.domain.projects import TriggerTable
from loopline.errors import InvalidInput

MAX_COUNTED = 1000  # missed times beyond this are not counted one by one

# What the platform itself adds to a data asset starts nothing: a version from a push comes with an execution already,
# one from captured traffic belongs to a retraining that starts its own.
# An object that a job wrote starts nothing either: a pipeline whose output it watches would start itself for ever.
OWN_SOURCES = frozenset({"project", "captured", "job"})


class Due(NamedTuple):
    """A cron trigger that is due: the time it stands for, the earlier times that were missed, the next one."""

    scheduled_at: float
    missed: int
    missed_from_at: float | None
    next_at: float | None


def _times(expression: str, after: float, *, reverse: bool = False) -> Iterator[datetime]:
    try:
        yield from CronSim(expression, datetime.fromtimestamp(after, UTC), reverse=reverse)
    except CronSimError as error:
        raise InvalidInput(f"{expression!r} is not a cron expression: {error}") from None


def next_time(expression: str, after: float) -> float | None:
    """The first time after ``after`` (seconds since the epoch) that a five-field cron expression means, in UTC.

    None when it never comes; raises ``InvalidInput`` for text that is no cron expression.
    """
    found = next(_times(expression, after), None)
    return None if found is None else found.timestamp()


def due(expression: str, next_at: float, now: float) -> Due:
    """What a trigger whose next time was ``next_at <= now`` does: it runs once, for the latest time that has come.

    ``missed`` counts the times from ``next_at`` up to that one, at most `MAX_COUNTED`.
    """
    latest = next(_times(expression, now + 1, reverse=True), None)
    scheduled = next_at if latest is None else max(next_at, latest.timestamp())
    missed = 0
    if scheduled > next_at:
        missed = 1
        for moment in _times(expression, next_at):
            if moment.timestamp() >= scheduled or missed == MAX_COUNTED:
                break
            missed += 1
    return Due(scheduled, missed, next_at if missed else None, next_time(expression, now))


def name_of(project: str, table: TriggerTable) -> str:
    """The name under which a trigger is kept: ``project/name``; without a name, from its kind and content."""
    if table.name:
        return f"{project}/{table.name}"
    text = json.dumps(settings_of(table), sort_keys=True, separators=(",", ":"))
    return f"{project}/{table.kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def settings_of(table: TriggerTable) -> dict[str, Any]:
    """What is kept of a ``[[triggers]]`` table beside its name and kind."""
    if table.kind == "cron":
        return {"cron": table.cron, "parameters": table.parameters}
    if table.kind == "object":
        watched = {"bucket": table.bucket, "prefix": table.prefix, "suffix": table.suffix}
        return {**watched, "every": max(1, table.every), "parameters": table.parameters}
    return {"asset": table.asset.partition(":")[0], "every": max(1, table.every), "parameters": table.parameters}


def watches(settings: dict[str, Any], bucket: str, key: str) -> bool:
    """Whether a trigger of the kind ``object`` counts an object."""
    if settings["bucket"] != bucket:
        return False
    return key.startswith(settings["prefix"]) and key.endswith(settings["suffix"])


def cron_mistake(expression: str) -> str | None:
    """What is wrong with a cron expression of five fields in UTC, or None."""
    if len(expression.split()) != 5:
        return f"{expression!r} has {len(expression.split())} fields, not 5"
    try:
        next(CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        return f"{expression!r} is not a cron expression: {error}"
    except StopIteration:
        return f"{expression!r} never comes"
    return None


def bucket_mistake(table: TriggerTable) -> str | None:
    """What is wrong with the bucket that a trigger watches, or None."""
    if not table.bucket:
        return "an object trigger without a bucket"
    try:
        check_bucket(table.bucket)
    except InvalidInput as error:
        return error.message
    return None
