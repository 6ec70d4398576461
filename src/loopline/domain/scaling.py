"""How many servers a variant should have: target tracking, as pure rules over counted requests.

The rule is that of the Kubernetes autoscaler, ``wanted = ceil(servers x metric / target)`` with a tolerance of 10 %
(kubernetes.io, "Horizontal Pod Autoscaling", algorithm details), which for the average of requests in flight says:
as many servers as keep it at its target. The average comes from Little's law (J. Little, "A Proof for the Queuing
Formula L = lambda W", Operations Research 9, 1961): arrivals a second times the time each took. Latency at a percentile
does not fall in proportion, so that by latency the number at most doubles at once, and falls one by one.

A number is lowered only to one at which the metric is expected to stay below 90 % of its target, from the busiest
stretch of the whole cool-down: what was raised at 110 % is never lowered and raised again under the same load.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

TOLERANCE = 0.1
WINDOW_SECONDS = 10  # what counts as "now"
MIN_FOR_P95 = 40  # requests, below which a p95 is the slowest one or two of them
MAX_SERVERS = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """A ``[scaling]`` table. A target that is None is not tracked."""

    min: int = 1
    max: int = 1
    target_in_flight: float | None = None
    target_latency_ms: float | None = None
    target_per_minute: float | None = None
    scale_out_cooldown_seconds: float = 15
    scale_in_cooldown_seconds: float = 120
    idle_seconds: float = 300
    cold_start_seconds: float = 30

    @property
    def least(self) -> int:
        """How many servers there are at least; with ``min`` 0 the one of them starts and stops by itself."""
        return max(1, self.min)


@dataclass(frozen=True, slots=True)
class Load:
    """What a variant had to do. ``in_flight``: requests in flight now, on average, over all its servers; ``busiest``:
    the highest such average in the time that a scale-in looks back; ``p95_ms`` of now, None with too few requests;
    ``per_minute`` and ``busiest_per_minute``: the same two of the rate of requests.
    """

    requests: int
    in_flight: float
    busiest: float
    p95_ms: float | None
    per_minute: float = 0.0
    busiest_per_minute: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """``servers``: how many there should be; ``verdict``: what that means; ``reason`` and ``figures``: why."""

    verdict: Literal["stay", "out", "in"]
    servers: int
    reason: str
    figures: dict[str, Any]


def policy_from(settings: Mapping[str, Any] | None) -> Policy | None:
    """The policy in an endpoint's settings as they are stored; None where the number of servers is fixed."""
    table = (settings or {}).get("scaling")
    return None if table is None else Policy(**table)


def load_from(busy_seconds: Sequence[float], requests: int, p95_ms: float | None, counts: Sequence[float] = ()) -> Load:
    """``busy_seconds``: of each second that a scale-in looks back, the oldest first, the sum of what its requests took;
    ``counts``: how many they were; ``requests`` and ``p95_ms`` of the last ``WINDOW_SECONDS``.
    """
    in_flight, busiest = _averages(busy_seconds)
    rate, fastest = _averages(counts)
    p95 = p95_ms if requests >= MIN_FOR_P95 else None
    return Load(requests, in_flight, busiest, p95, round(60 * rate, 3), round(60 * fastest, 3))


def _averages(seconds: Sequence[float]) -> tuple[float, float]:
    """The average of the last ``WINDOW_SECONDS``, and the highest of any such stretch."""
    width = min(WINDOW_SECONDS, len(seconds)) or 1
    sums = [sum(seconds[:width])]
    for place in range(width, len(seconds)):
        sums.append(sums[-1] + seconds[place] - seconds[place - width])
    return max(0.0, sums[-1] / width), max(0.0, *sums) / width


def decide(policy: Policy, servers: int, load: Load, since_change: float) -> Decision:
    """How many servers there should be, ``since_change`` seconds after their number last changed."""
    figures = {"servers": servers, "since_change_seconds": round(since_change, 1), **asdict(load)}
    bounded = min(max(servers, policy.least), max(policy.max, policy.least))
    if bounded != servers:
        verdict: Literal["out", "in"] = "out" if bounded > servers else "in"
        return Decision(verdict, bounded, f"the limits are {policy.min} and {policy.max}", figures)
    wanted, why = _more(policy, servers, load)
    if wanted > servers:
        wanted = min(wanted, policy.max)
        if wanted == servers:
            return Decision("stay", servers, f"{why}, but max is {policy.max}", figures)
        if since_change < policy.scale_out_cooldown_seconds:
            return Decision("stay", servers, f"{why}; cooling down", figures)
        return Decision("out", wanted, why, figures)
    fewer, why = _fewer(policy, servers, load)
    if fewer < servers and since_change >= policy.scale_in_cooldown_seconds:
        return Decision("in", fewer, why, figures)
    return Decision("stay", servers, "the load is as it should be", figures)


def _more(policy: Policy, servers: int, load: Load) -> tuple[int, str]:
    wanted, why = servers, ""
    target = policy.target_in_flight
    if target and load.in_flight > servers * target * (1 + TOLERANCE):
        wanted = math.ceil(load.in_flight / target)
        why = f"{load.in_flight / servers:.2f} requests in flight per server; the target is {target:g}"
    rate = policy.target_per_minute
    if rate and load.per_minute > servers * rate * (1 + TOLERANCE):
        by_rate = math.ceil(load.per_minute / rate)
        if by_rate > wanted:
            wanted, why = (
                by_rate,
                f"{load.per_minute / servers:.0f} requests a minute per server; the target is {rate:g}",
            )
    slow = policy.target_latency_ms
    if slow and load.p95_ms is not None and load.p95_ms > slow * (1 + TOLERANCE):
        by_latency = math.ceil(servers * min(load.p95_ms / slow, 2.0))
        if by_latency > wanted:
            wanted, why = by_latency, f"p95 is {load.p95_ms:.1f} ms; the target is {slow:g} ms"
    return wanted, why


def _fewer(policy: Policy, servers: int, load: Load) -> tuple[int, str]:
    """The fewest servers at which every target is expected to be kept with room to spare."""
    fewest, words = policy.least, []
    target, slow, rate = policy.target_in_flight, policy.target_latency_ms, policy.target_per_minute
    if target is None and slow is None and rate is None:
        return servers, ""
    if target:
        fewest = max(fewest, math.ceil(load.busiest / (target * (1 - TOLERANCE))))
        words.append(f"at most {load.busiest:.2f} requests in flight")
    if rate:
        fewest = max(fewest, math.ceil(load.busiest_per_minute / (rate * (1 - TOLERANCE))))
        words.append(f"at most {load.busiest_per_minute:.0f} requests a minute")
    if slow and servers > 1:
        expected = 0.0 if load.p95_ms is None else load.p95_ms * servers / (servers - 1)
        fewest = max(fewest, servers - 1 if expected <= slow * (1 - TOLERANCE) else servers)
        words.append("few requests" if load.p95_ms is None else f"p95 {load.p95_ms:.1f} ms")
    return min(fewest, servers), " and ".join(words)
