"""Champion and challenger: two variants that answer at the same time, compared on one metric while they do.

The figures are confidence sequences (``domain.sequences``): they may be looked at as often as anybody likes. A rollout
can wait for their verdict at its first step (``[comparison]``).
"""

import math
from typing import Any, Literal, NamedTuple

from loopline.control import endpoints, labels, monitoring, snapshots, traffic, variants
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.latency import GAMMA
from loopline.domain.quality import Classes, Numbers, Quality
from loopline.domain.sequences import Comparison, Means, Shares, compare
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store.db import Row, Tx

HIGHER_IS_BETTER = {"error_rate": False, "latency": False, "accuracy": True, "label_rate": True, "mae": False}


class Decided(NamedTuple):
    """``verdict``: wait, go or back; ``promote``: to all traffic at once."""

    verdict: Literal["wait", "go", "back"]
    reason: str
    figures: dict[str, Any]
    promote: bool = False


def decide(ctx: Context, rollout: Row, variant: Row, predecessor: Row, now: float) -> Decided:
    """What a rollout's comparison says by now, from the traffic since its step began."""
    rule = rollout["plan"]["comparison"]
    with ctx.db.read() as tx:
        found = _compare(
            tx,
            rollout["endpoint"],
            predecessor["name"],
            variant["name"],
            (rollout["step_at"], now),
            metric=rule["metric"],
            alpha=rule["alpha"],
            min_effect=rule["min_effect"],
            slow_ms=rule["slow_ms"],
        )
    figures = {"comparison": found.to_dict()}
    if found.verdict == "worse":
        return Decided("back", found.words(), figures)
    if found.verdict == "better":
        return Decided("go", found.words(), figures, promote=rule["on_better"] == "promote")
    if found.verdict == "same":
        return Decided("go", found.words(), figures)
    if now - rollout["step_at"] < rule["max_seconds"]:
        return Decided("wait", found.words(), figures)
    reason = f"no verdict within {rule['max_seconds']:g} s; {found.words()}"
    return Decided("back" if rule["on_undecided"] == "back" else "go", reason, figures)


def show(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    metric: str = "error_rate",
    champion: str | None = None,
    challenger: str | None = None,
    alpha: float = 0.05,
    min_effect: float = 0.0,
    slow_ms: float = 100.0,
    start: float | None = None,
) -> dict[str, Any]:
    """Compare two variants of an endpoint on ``metric``: error_rate, latency (the share slower than ``slow_ms``),
    accuracy, label_rate (the share of labels that are the positive class) or mae.

    Champion and challenger default to those with most traffic and second most; ``start`` to when the weights last
    changed. Raises ``Conflict`` when fewer than two answer.
    """
    _check(metric, alpha, min_effect, slow_ms)
    now = ctx.clock.now()
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
        names = _sides(tx, endpoint, champion, challenger)
        since = snapshots.unchanged_since(tx, endpoint) if start is None else start
        if since is None or since >= now:
            raise InvalidInput("start lies in the future")
        found = _compare(
            tx, endpoint, *names, (since, now), metric=metric, alpha=alpha, min_effect=min_effect, slow_ms=slow_ms
        )
    return {
        "endpoint": endpoint,
        "champion_variant": names[0],
        "challenger_variant": names[1],
        "start_at": since,
        "end_at": now,
        **found.to_dict(),
        "summary": found.words(),
    }


def _check(metric: str, alpha: float, min_effect: float, slow_ms: float) -> None:
    if metric not in HIGHER_IS_BETTER:
        raise InvalidInput(f"{metric!r} cannot be compared live; metrics: {', '.join(HIGHER_IS_BETTER)}")
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha lies between 0 and 1, unlike {alpha:g}")
    if not (0 <= min_effect < math.inf and 0 < slow_ms < math.inf):
        raise InvalidInput("min_effect is 0 or more, and slow_ms above 0")


def _sides(tx: Tx, endpoint: str, champion: str | None, challenger: str | None) -> tuple[str, str]:
    """The names of the two variants."""
    rows = {row["name"]: row for row in variants.of_endpoint(tx, endpoint)}
    for name in (champion, challenger):
        if name is not None and name not in rows:
            raise NotFound(f"the endpoint {endpoint!r} has no variant {name!r}; it has: {', '.join(rows) or 'none'}")
    ranked = sorted((row for row in rows.values() if row["weight"] > 0), key=lambda row: -row["weight"])
    left = [row["name"] for row in ranked if row["name"] not in (champion, challenger)]
    first = champion or (left.pop(0) if left else None)
    second = challenger or (left.pop(0) if left else None)
    if first is None or second is None:
        raise Conflict(
            f"only {first or second or 'nothing'} answers for {endpoint}: two variants need traffic at the same time; "
            f"name them, or see: loopline endpoints traffic {endpoint} --set"
        )
    if first == second:
        raise InvalidInput(f"{first} cannot be compared with itself")
    return first, second


def _compare(
    tx: Tx,
    endpoint: str,
    champion: str,
    challenger: str,
    between: tuple[float, float],
    *,
    metric: str,
    alpha: float,
    min_effect: float,
    slow_ms: float,
) -> Comparison:
    first, second = (_side(tx, endpoint, name, between, metric, slow_ms) for name in (champion, challenger))
    higher = HIGHER_IS_BETTER[metric]
    return compare(metric, first, second, higher_is_better=higher, alpha=alpha, min_effect=min_effect)


def _side(
    tx: Tx, endpoint: str, variant: str, between: tuple[float, float], metric: str, slow_ms: float
) -> Shares | Means:
    """What one variant showed in a stretch of time."""
    start, end = between
    if metric in ("error_rate", "latency"):
        found = traffic.counted(tx, endpoint, variant, start, end)
        if metric == "error_rate":
            return Shares(found.count, found.errors_5xx)
        limit = math.ceil(math.log(max(slow_ms * 1000, 1.0)) / math.log(GAMMA))  # the bucket that holds slow_ms
        return Shares(found.count, sum(n for bucket, n in found.latency.items() if int(bucket) > limit))
    whole: Quality | None = None
    for sums in labels.merged(tx, endpoint, labels.QUALITY, start, end, variant=variant).values():
        whole = sums if whole is None else labels.add(whole, sums)
    return _labelled(whole, metric, (monitoring.endpoint_row(tx, endpoint)["settings"] or {}).get("positive"))


def _labelled(sums: Quality | None, metric: str, positive: Any) -> Shares | Means:
    if metric == "mae":
        if isinstance(sums, Classes):
            raise InvalidInput("mae is a measure of numbers; this endpoint predicts classes: compare accuracy")
        return Means(0, 0.0, 0.0) if sums is None else Means(sums.count, sums.absolute, sums.square)
    if isinstance(sums, Numbers):
        raise InvalidInput(f"{metric} is a measure of classes; this endpoint predicts numbers: compare mae")
    if metric == "accuracy":
        return Shares(0, 0) if sums is None else Shares(sums.count, sums.right)
    if positive is None:
        raise InvalidInput("label_rate needs to know the positive class: [gate] positive, or the endpoint's setting")
    if sums is None:
        return Shares(0, 0)
    key = next(iter(Classes.of([(positive, positive)]).confusion))[0]
    return Shares(sums.count, sum(n for (label, _), n in sums.confusion.items() if label == key))
