"""Target tracking: what it wants for a load, and that it neither runs away nor swings."""

import math
import random

import pytest

from loopline.domain import loopfile
from loopline.domain.scaling import Decision, Load, Policy, decide, load_from, policy_from
from loopline.errors import InvalidInput

FLIGHT = Policy(min=1, max=20, target_in_flight=4)
LATENCY = Policy(min=1, max=20, target_latency_ms=100)


def load(in_flight: float, p95_ms: float | None = None, busiest: float | None = None) -> Load:
    return Load(1000, in_flight, in_flight if busiest is None else busiest, p95_ms)


@pytest.mark.parametrize(
    ("policy", "servers", "now", "wanted"),
    [
        (FLIGHT, 1, load(30), 8),  # ceil(30 / 4)
        (FLIGHT, 2, load(8.7), 2),  # within the tolerance
        (FLIGHT, 2, load(9.0), 3),
        (FLIGHT, 8, load(10), 3),  # ceil(10 / 3.6)
        (FLIGHT, 8, load(2, busiest=28), 8),  # the busiest stretch of the cool-down decides
        (FLIGHT, 4, load(500), 20),
        (FLIGHT, 30, load(0), 20),
        (LATENCY, 2, load(0, p95_ms=900), 4),  # at most doubled
        (LATENCY, 2, load(0, p95_ms=130), 3),
        (LATENCY, 4, load(0, p95_ms=20), 3),  # one by one
        (LATENCY, 4, load(0, p95_ms=70), 4),  # 70 x 4 / 3 is no longer below 90
        (LATENCY, 4, load(0), 3),
        (Policy(min=0, max=3, target_in_flight=1), 1, load(0), 1),  # the last one stops by itself
        (Policy(min=2, max=3, target_in_flight=1), 1, load(0), 2),
        (Policy(min=1, max=9, target_in_flight=4, target_latency_ms=100), 2, load(20, 300), 5),
    ],
)
def test_what_is_wanted(policy: Policy, servers: int, now: Load, wanted: int) -> None:
    found = decide(policy, servers, now, since_change=1000)
    assert found.servers == wanted, found
    assert found.figures["servers"] == servers
    assert found.verdict == ("stay" if wanted == servers else "out" if wanted > servers else "in")


def test_cool_downs_hold_it_back_and_limits_do_not_wait() -> None:
    assert decide(FLIGHT, 1, load(30), 5).servers == 1
    assert decide(FLIGHT, 8, load(1), 60).servers == 8
    assert decide(FLIGHT, 8, load(1), 130).servers == 1
    assert decide(FLIGHT, 25, load(100), 0).servers == 20


def test_any_load_is_answered_within_the_limits_and_by_one_number() -> None:
    """Under a load that stays, the number settles after at most one change each way, and then stays."""
    generator = random.Random(3)
    for _ in range(2000):
        least = generator.randrange(0, 5)
        policy = Policy(least, least + generator.randrange(1, 40), target_in_flight=generator.uniform(0.2, 50))
        servers, flight = generator.randrange(1, 45), generator.uniform(0, 1500)
        seen = [servers]
        for _ in range(6):
            servers = decide(policy, servers, load(flight), math.inf).servers
            assert policy.least <= servers <= max(policy.max, policy.least)
            seen.append(servers)
        assert len(set(seen[3:])) == 1, (policy, flight, seen)


def test_latency_that_falls_with_servers_settles_too() -> None:
    generator = random.Random(4)
    for _ in range(2000):
        policy = Policy(1, generator.randrange(1, 64), target_latency_ms=generator.uniform(1, 500))
        work, servers = generator.uniform(1, 20000), generator.randrange(1, 20)
        seen = []
        for _ in range(80):
            servers = decide(policy, servers, load(0, p95_ms=work / servers), math.inf).servers
            assert 1 <= servers <= policy.max
            seen.append(servers)
        assert len(set(seen[70:])) == 1, (policy, work, seen)


def test_the_load_is_what_requests_took_a_second() -> None:
    quiet, busy = [0.0] * 30, [12.0] * 10
    found = load_from([*quiet, *busy], 500, 80.0)
    assert (found.in_flight, found.busiest, found.p95_ms) == (12.0, 12.0, 80.0)
    found = load_from([*busy, *quiet], 3, 80.0)
    assert (found.in_flight, found.busiest, found.p95_ms) == (0.0, 12.0, None)
    assert load_from([], 0, None) == Load(0, 0.0, 0.0, None)


def test_the_table_of_an_endpoint() -> None:
    assert policy_from({"instances": 3}) is None
    assert policy_from({"scaling": {"max": 4, "target_in_flight": 2}}) == Policy(max=4, target_in_flight=2)
    for wrong, said in (
        ({"min": 3, "max": 2}, "min is 3, max 2"),
        ({"max": 4}, "says nothing of when"),
        ({"max": 100, "target_in_flight": 1}, "max cannot be 100"),
        ({"target_inflight": 1}, "did you mean 'target_in_flight'"),
    ):
        with pytest.raises(InvalidInput, match=said):
            loopfile.check_endpoint("a", "m", {"scaling": wrong})
    loopfile.check_endpoint("a", "m", {"scaling": {"min": 0}, "memory_mb": 500, "threads": 2})


def test_a_decision_says_why() -> None:
    found = decide(FLIGHT, 1, load(30), 1000)
    assert found == Decision("out", 8, "30.00 requests in flight per server; the target is 4", found.figures)
