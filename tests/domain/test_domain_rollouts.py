"""The plans of rollouts: which shares, one after the other, each strategy gives; and what a step is judged by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.rollouts import STRATEGIES, Rules, Side, batches, judge, plan
from loopline.errors import InvalidInput


def test_each_strategy_has_its_shares() -> None:
    assert plan("canary", {"steps": [5, 50]}, first=False) == [5.0, 50.0, 100.0]
    assert plan("linear", {"step_percent": 30}, first=False) == [30.0, 60.0, 90.0, 100.0]
    assert plan("rolling", {"batch": 1}, first=False, servers=4) == [25.0, 50.0, 75.0, 100.0]
    assert plan("rolling", {"batch": 3}, first=False, servers=4) == [75.0, 100.0]
    assert plan("blue-green", {}, first=False) == plan("all-at-once", {}, first=False) == [100.0]
    assert plan("shadow", {}, first=False) == plan("standby", {}, first=False) == []


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each not in ("shadow", "standby")])
def test_the_first_version_takes_everything_at_once(strategy: str) -> None:
    assert plan(strategy, {}, first=True, servers=3) == [100.0]


@given(st.floats(0.5, 100))
def test_a_linear_rollout_rises_evenly_to_everything(step: float) -> None:
    shares = plan("linear", {"step_percent": step}, first=False)
    rises = [later - earlier for earlier, later in zip([0.0, *shares], shares, strict=False)]
    assert shares[-1] == 100.0
    assert all(0 < rise <= step + 1e-5 for rise in rises)


@given(st.integers(1, 64), st.integers(1, 70))
def test_a_rolling_replacement_replaces_each_server_once(servers: int, batch: int) -> None:
    counts = batches(servers, batch)
    assert counts[-1] == servers and sorted(set(counts)) == counts
    assert all(later - earlier <= batch for earlier, later in zip([0, *counts], counts, strict=False))


def test_what_is_no_plan_is_refused() -> None:
    for strategy, settings in (("canary", {"steps": [50, 5]}), ("linear", {"step_percent": 0}), ("teleport", {})):
        with pytest.raises(InvalidInput):
            plan(strategy, settings, first=False)


RULES = Rules(bake_seconds=10, min_requests=0, max_error_rate=0.05, max_latency_ratio=2.0, max_p99_ms=None)
QUICK = Side(1000, 0, 2.0, 4.0, (4.0,) * 10)


def verdict(periods: list[float], elapsed: float, *, p50: float = 2.0, rules: Rules = RULES) -> str:
    return judge(rules, Side(1000, 0, p50, 60.0, tuple(periods)), QUICK, elapsed).verdict


def test_one_hiccup_of_the_machine_is_no_evidence_and_slowness_that_lasts_is() -> None:
    assert verdict([4.0, 90.0, 4.0], 4) == "wait"
    assert verdict([4.0, 90.0, 4.0, 90.0, 4.0], 6) == "wait"
    assert verdict([90.0, 90.0, 4.0, 90.0], 5) == "back"
    assert verdict([4.0] * 9 + [90.0], 11) == "go"
    assert verdict([90.0, 90.0], 11) == "back"  # all that there is by the end of the bake time
    assert verdict([4.0, 90.0], 11) == "go"


def test_a_limit_in_milliseconds_asks_for_slowness_that_lasts_too() -> None:
    rules = Rules(bake_seconds=10, min_requests=0, max_error_rate=0.05, max_latency_ratio=100.0, max_p99_ms=50.0)
    assert verdict([4.0, 90.0, 90.0, 4.0], 5, rules=rules) == "wait"
    assert verdict([90.0, 90.0, 90.0], 5, rules=rules) == "back"


def test_a_median_that_is_slower_is_evidence_at_once() -> None:
    assert verdict([4.0, 60.0], 3, p50=30.0) == "back"


def test_what_is_kept_of_a_side_does_not_grow_with_the_step() -> None:
    decided = judge(RULES, QUICK, QUICK, 5)
    assert decided.figures["candidate"] == {"requests": 1000, "errors_5xx": 0, "p50_ms": 2.0, "p99_ms": 4.0}
