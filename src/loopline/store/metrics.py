"""Numbers over time: the metrics of runs, the counters of traffic, and any other series.

They are written in bulk and change no record, so that they write no events. NaN and the infinities are stored and come
back; NaN stands in the database as null.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from loopline.errors import InvalidInput
from loopline.store import schema
from loopline.store.db import Prepared, Tx

MAX_KEY_LENGTH = 250
RAW_PERIOD_SECONDS = 1  # the finest counters, which prune() removes

_INT64 = 1 << 63
_LOCK_RUN, _LOCK_TRAFFIC = 0x72756E, 0x747266  # constants of our own: classes of advisory locks


class Point(NamedTuple):
    """One value of a run's metric. ``number`` tells apart, in the order of logging, the values of one step."""

    step: int
    number: int
    value: float
    at: float


@dataclass(frozen=True)
class Last:
    """The value of a metric at its highest step (of several there, the one logged last), and how many there are."""

    value: float
    step: int
    at: float
    count: int


@dataclass(frozen=True)
class SeriesPoint:
    """One value of a series; ``at``: start of its window, ``count``: how many observations it rests on."""

    at: int
    value: float
    count: int


@dataclass(frozen=True)
class Traffic:
    """Requests of a variant in one period that starts ``at``. ``latency``: requests per bucket, empty ones left out."""

    endpoint: str
    variant: str
    period_seconds: int
    at: int
    count: int
    errors_4xx: int
    errors_5xx: int
    latency: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells one row from another."""
        return self.endpoint, self.variant, self.period_seconds, self.at

    def plus(self, other: "Traffic") -> "Traffic":
        """Both together."""
        latency = dict(self.latency)
        for bucket, requests in other.latency.items():
            latency[bucket] = latency.get(bucket, 0) + requests
        return Traffic(
            *self.key,
            self.count + other.count,
            self.errors_4xx + other.errors_4xx,
            self.errors_5xx + other.errors_5xx,
            latency,
        )


# -- metrics of runs --------------------------------------------------------------------------------------------------


def log_points(tx: Tx, run: str, points: Sequence[tuple[str, float, int, float]]) -> None:
    """Append (key, value, step, at) to a run, in order. Raises ``InvalidInput`` for a key or a step out of range."""
    if not points:
        return
    if max(points, key=_step)[2] >= _INT64 or min(points, key=_step)[2] < -_INT64:
        raise InvalidInput("a step must fit into 64 bits")
    _serialise(tx, _LOCK_RUN, run)
    logged = _check_keys({point[0] for point in points})
    last = _last_rows(tx, run, logged)
    counts = {key: found.count for key, found in last.items()}
    rows = []
    for key, value, step, at in points:
        number = counts.get(key, 0)
        counts[key] = number + 1
        rows.append((run, key, step, number, value if value == value else None, at))  # noqa: PLR0124 - NaN is not itself
        if number == 0 or step >= last[key].step:
            last[key] = Last(value, step, at, 0)
    values = [(run, key, _null(x.value), x.step, x.at, counts[key]) for key, x in last.items() if key in logged]
    tx.write_many(_INSERT_POINTS, rows)
    tx.write_many(_UPSERT_VALUES, values)


def points(tx: Tx, run: str, key: str, limit: int = 10_000, after: tuple[int, int] | None = None) -> list[Point]:
    """A metric's values by step; ``after``: (step, number) of the last one that the caller has."""
    c = schema.run_metrics.c
    statement = sa.select(c.step, c.number, c.value, c.at).where(c.run == run, c.key == key)
    if after is not None:
        statement = statement.where(sa.tuple_(c.step, c.number) > sa.tuple_(*after))
    rows = tx.execute(statement.order_by(c.step, c.number).limit(limit))
    return [Point(row.step, row.number, _nan(row.value), row.at) for row in rows]


def last_values(tx: Tx, run: str) -> dict[str, Last]:
    """The last value of each of a run's metrics, by key."""
    return _last_rows(tx, run, None)


def _last_rows(tx: Tx, run: str, keys: set[str] | None) -> dict[str, Last]:
    if keys is not None and len(keys) <= _FEW_KEYS:
        rows = [row for key in sorted(keys) if (row := tx.fetch_one(_ONE_VALUE, run=run, key=key)) is not None]
    else:
        rows = tx.fetch(_ALL_VALUES, run=run)
    return {row["key"]: Last(_nan(row["value"]), row["step"], row["at"], row["count"]) for row in rows}


def _check_keys(keys: set[str]) -> set[str]:
    for key in keys:
        if not key or len(key) > MAX_KEY_LENGTH or "\0" in key:
            raise InvalidInput(f"a metric's name has 1 to {MAX_KEY_LENGTH} characters, unlike {key[:80]!r}")
    return keys


def _step(point: tuple[str, float, int, float]) -> int:
    return point[2]


_FEW_KEYS = 20  # beyond it, reading all of a run's is quicker than one after the other
_ALL_VALUES = Prepared(
    sa.select(*(schema.run_values.c[name] for name in ("key", "value", "step", "at", "count")))
    .where(schema.run_values.c.run == sa.bindparam("run"))
    .order_by(schema.run_values.c.key)
)
_ONE_VALUE = Prepared(_ALL_VALUES.statement.where(schema.run_values.c.key == sa.bindparam("key")))
_INSERT_POINTS = "INSERT INTO run_metrics (run, key, step, number, value, at) VALUES (?, ?, ?, ?, ?, ?)"
_UPSERT_VALUES = (
    "INSERT INTO run_values (run, key, value, step, at, count) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, key) DO "
    "UPDATE SET value = excluded.value, step = excluded.step, at = excluded.at, count = excluded.count"
)

# -- traffic ----------------------------------------------------------------------------------------------------------


def add_traffic(tx: Tx, rows: Iterable[Traffic]) -> None:
    """Add counters to those that are there for the same endpoint, variant and period."""
    sums: dict[tuple[str, str, int, int], Traffic] = {}
    for row in rows:
        sums[row.key] = sums[row.key].plus(row) if row.key in sums else row
    if not sums:
        return
    _serialise(tx, _LOCK_TRAFFIC, "")
    c = schema.traffic.c
    key = sa.tuple_(c.endpoint, c.variant, c.period_seconds, c.at)
    for there in tx.execute(sa.select(schema.traffic).where(key.in_(list(sums)))):
        found = Traffic(**there._mapping)
        sums[found.key] = found.plus(sums[found.key])
    values = [vars(total) for total in sums.values()]
    tx.upsert(
        schema.traffic,
        values,
        ("endpoint", "variant", "period_seconds", "at"),
        ("count", "errors_4xx", "errors_5xx", "latency"),
    )


def traffic(
    tx: Tx, endpoint: str, variant: str | None, start: float, end: float, *, period_seconds: int
) -> list[Traffic]:
    """The counters of periods with ``start <= at < end``, by time; of all variants, one row each, for ``None``."""
    c = schema.traffic.c
    statement = sa.select(schema.traffic).where(
        c.endpoint == endpoint, c.period_seconds == period_seconds, c.at >= start, c.at < end
    )
    if variant is not None:
        statement = statement.where(c.variant == variant)
    return [Traffic(**row._mapping) for row in tx.execute(statement.order_by(c.at, c.variant))]


def prune(tx: Tx, before: float) -> int:
    """Remove the one-second counters of before a time; gives their number. Those of longer periods stay."""
    c = schema.traffic.c
    statement = schema.traffic.delete().where(c.period_seconds == RAW_PERIOD_SECONDS, c.at < before)
    return tx.execute(statement).rowcount


# -- any other number over time ---------------------------------------------------------------------------------------


def set_series(tx: Tx, scope: str, name: str, points: Iterable[SeriesPoint]) -> None:
    """Write points of a series, in place of those at the same times."""
    by_time = {
        x.at: {"scope": scope, "name": name, "at": x.at, "value": _null(x.value), "count": x.count} for x in points
    }
    tx.upsert(schema.series, list(by_time.values()), ("scope", "name", "at"), ("value", "count"))


def get_series(
    tx: Tx, scope: str, name: str, start: float, end: float, *, limit: int | None = None
) -> list[SeriesPoint]:
    """The points with ``start <= at < end``, by time; with ``limit`` the newest so many of them."""
    c = schema.series.c
    statement = sa.select(c.at, c.value, c.count).where(c.scope == scope, c.name == name, c.at >= start, c.at < end)
    rows = tx.execute(statement.order_by(c.at.desc()).limit(limit)).all()
    return [SeriesPoint(at, _nan(value), count) for at, value, count in reversed(rows)]


def _serialise(tx: Tx, lock: int, name: str) -> None:
    """Let one transaction at a time read and then write the same rows (SQLite has one writer anyhow)."""
    if tx.postgres:
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(:lock, hashtext(:name))"), {"lock": lock, "name": name})


def _null(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
