"""How traffic moves: the plan of a rollout, and the built-in alarms that judge each of its steps.

Pure rules over counted requests. A step is bad when the evidence says so, good when it has baked long enough without,
and open until then; every answer carries the figures that decided.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loopline.domain.distributions import wilson
from loopline.errors import InvalidInput

CONFIDENCE = 0.95
MIN_ERRORS = 2  # one error is an accident
MIN_FOR_P99 = 200  # requests on each side, below which a p99 is the slowest one or two of them
MIN_SLOW_PERIODS = 3  # what one hiccup of the machine delays is delayed together: it is one accident, not many
MIN_FOR_P50 = 30
COUNTED_AFTER_SECONDS = 1.0  # an answer is counted by then; the end of a step must not outrun its evidence
# A ratio of two tiny latencies says nothing; a p99 is also what the machine's own hiccups make of it.
MIN_SLOWER_P50_MS = 5.0
MIN_SLOWER_P99_MS = 20.0

STRATEGIES = ("canary", "linear", "rolling", "blue-green", "all-at-once", "shadow", "standby")
IDLE = ("shadow", "standby")  # the version is started and tested, and takes no caller's request


@dataclass(frozen=True, slots=True)
class Side:
    """What one variant answered during a step. Latencies in milliseconds, None without requests.

    ``p99s_ms``: the p99 of each second, or each minute of a long step, in which it answered anything.
    """

    requests: int
    errors_5xx: int
    p50_ms: float | None
    p99_ms: float | None
    p99s_ms: tuple[float, ...] = ()

    @property
    def error_rate(self) -> float:
        """Share of 5xx answers; 0 without requests."""
        return self.errors_5xx / self.requests if self.requests else 0.0

    def figures(self) -> dict[str, Any]:
        """What is kept of it: everything but the single periods."""
        return {name: value for name, value in asdict(self).items() if name != "p99s_ms"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The built-in alarms and the bake time of a step (see ``[rollout]``)."""

    bake_seconds: float
    min_requests: int
    max_error_rate: float
    max_latency_ratio: float
    max_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Decision:
    """``verdict``: wait, go on, or go back; ``reason`` in words; ``figures``: what it was decided on."""

    verdict: Literal["wait", "go", "back"]
    reason: str
    figures: dict[str, Any]


def plan(strategy: str, settings: Mapping[str, Any], *, first: bool, servers: int = 1) -> list[float]:
    """The shares (percent) that the new version gets, one step after the other; the last is 100.

    ``settings``: a ``[rollout]`` table as it is stored. ``first``: nothing serves yet, so that there is nothing to go
    back to and all traffic goes over at once. ``servers``: how many each side has when it has all traffic. A strategy
    that moves no traffic has no shares.
    """
    if strategy not in STRATEGIES:
        raise InvalidInput(f"{strategy!r} is not a strategy; strategies: {', '.join(STRATEGIES)}")
    if strategy in IDLE:
        return []
    if first or strategy in ("all-at-once", "blue-green"):
        return [100.0]
    if strategy == "linear":
        return _linear(float(settings.get("step_percent", 10)))
    if strategy == "rolling":
        return [100.0 * count / servers for count in batches(servers, int(settings.get("batch", 1)))]
    steps = settings.get("steps", (5.0, 50.0))
    shares = [float(share) for share in steps if share < 100]
    if not shares or sorted(set(shares)) != shares or shares[0] <= 0:
        raise InvalidInput(f"canary steps must rise and lie between 0 and 100 percent, unlike {list(steps)}")
    return [*shares, 100.0]


def _linear(step: float) -> list[float]:
    if not 0 < step <= 100:
        raise InvalidInput(f"step_percent must lie above 0 and be at most 100, unlike {step:g}")
    whole = math.ceil(100 / step - 1e-9)
    return [*(round(step * count, 6) for count in range(1, whole)), 100.0]


def batches(servers: int, batch: int) -> list[int]:
    """How many of ``servers`` run the new version after each step of a rolling replacement."""
    if batch < 1:
        raise InvalidInput(f"batch must be 1 or more, unlike {batch}")
    return [min(count, servers) for count in range(batch, servers + batch, batch)]


def judge(rules: Rules, candidate: Side, predecessor: Side | None, elapsed_seconds: float) -> Decision:
    """What a step's evidence says so far.

    Errors: back when the lower end of the 95 % Wilson interval of the candidate's 5xx share is above the limit, there
    were at least two, and the predecessor does no worse. Latency: back when p99 (with at least 200 requests on both
    sides) exceeds the predecessor's by the ratio and by 20 ms, or p50 (from 30 on) by the ratio and by 5 ms, or p99 the
    absolute limit. A p99 counts when it is too high in three periods one by one; in all of them where the bake time is
    over before there are three.
    """
    figures = {
        "elapsed_seconds": round(elapsed_seconds, 3),
        "candidate": candidate.figures(),
        "predecessor": None if predecessor is None else predecessor.figures(),
    }
    baked = elapsed_seconds >= rules.bake_seconds + COUNTED_AFTER_SECONDS
    if problem := _errors(rules, candidate, predecessor) or _latency(rules, candidate, predecessor, baked):
        return Decision("back", problem, figures)
    if not baked:
        return Decision("wait", f"baking: {elapsed_seconds:.1f} of {rules.bake_seconds:g} s", figures)
    if candidate.requests < rules.min_requests:
        text = f"waiting for traffic: {candidate.requests} of {rules.min_requests} requests"
        return Decision("wait", text, figures)
    return Decision("go", _good(candidate, predecessor), figures)


def _errors(rules: Rules, candidate: Side, predecessor: Side | None) -> str | None:
    if candidate.errors_5xx < MIN_ERRORS:
        return None
    low, _ = wilson(candidate.errors_5xx, candidate.requests, CONFIDENCE)
    other = predecessor.error_rate if predecessor else 0.0
    if low <= rules.max_error_rate or candidate.error_rate <= other:
        return None
    return (
        f"{candidate.errors_5xx} of {candidate.requests} answers were 5xx ({candidate.error_rate:.1%}, "
        f"at least {low:.1%} with 95 % confidence); the limit is {rules.max_error_rate:.1%}"
    )


def _latency(rules: Rules, candidate: Side, predecessor: Side | None, baked: bool) -> str | None:
    if (
        rules.max_p99_ms is not None
        and candidate.requests >= MIN_FOR_P50
        and (candidate.p99_ms or 0) > rules.max_p99_ms
        and _lasts(candidate, rules.max_p99_ms, baked)
    ):
        return f"p99 was {candidate.p99_ms:.1f} ms; the limit is {rules.max_p99_ms:g} ms"
    if predecessor is None:
        return None
    for name, least, slower, ours, theirs in (
        ("p99", MIN_FOR_P99, MIN_SLOWER_P99_MS, candidate.p99_ms, predecessor.p99_ms),
        ("p50", MIN_FOR_P50, MIN_SLOWER_P50_MS, candidate.p50_ms, predecessor.p50_ms),
    ):
        if min(candidate.requests, predecessor.requests) < least or ours is None or theirs is None:
            continue
        limit = max(theirs * rules.max_latency_ratio, theirs + slower)
        if ours > limit and (name == "p50" or _lasts(candidate, limit, baked)):
            return (
                f"{name} was {ours:.1f} ms against {theirs:.1f} ms before; "
                f"the limit is {rules.max_latency_ratio:g} times as much"
            )
    return None


def _lasts(candidate: Side, limit_ms: float, baked: bool) -> bool:
    """Whether the candidate's p99 was above the limit again and again."""
    slow = sum(each > limit_ms for each in candidate.p99s_ms)
    return slow >= (min(MIN_SLOW_PERIODS, len(candidate.p99s_ms)) if baked else MIN_SLOW_PERIODS)


def _good(candidate: Side, predecessor: Side | None) -> str:
    text = f"{candidate.requests} requests, {candidate.errors_5xx} answered 5xx"
    if candidate.p99_ms is not None:
        text += f", p99 {candidate.p99_ms:.1f} ms"
    if predecessor is not None and predecessor.p99_ms is not None:
        text += f" against {predecessor.p99_ms:.1f} ms"
    return text


def rules_from(settings: Mapping[str, Any]) -> Rules:
    """The rules in a ``[rollout]`` table as it is stored."""
    return Rules(
        bake_seconds=float(settings.get("bake_seconds", 60)),
        min_requests=int(settings.get("min_requests", 0)),
        max_error_rate=float(settings.get("max_error_rate", 0.05)),
        max_latency_ratio=float(settings.get("max_latency_ratio", 2.0)),
        max_p99_ms=settings.get("max_p99_ms"),
    )
