"""Release, canary, going back: what the tables, the snapshot and the registry say at each point."""

import pytest

from loopline.control import endpoints, registry, rollbacks, rollouts
from loopline.domain.access import Actor
from loopline.domain.latency import Histogram
from loopline.errors import Conflict, Forbidden, GateRefused
from loopline.store import metrics
from loopline.store.metrics import Traffic
from loopline.testing.stage import Stage

ADMIN = Actor("admin", "admin")


def test_the_first_approved_version_takes_all_traffic_at_once(versions: Stage) -> None:
    versions.approve(1)
    done = versions.until("Succeeded")
    assert done["plan"]["shares"] == [100.0]
    assert versions.fleet.weights("boxes") == {"v1": 100.0}
    assert endpoints.show(versions.world.ctx, versions.world.actor, endpoint="boxes")["status"] == "InService"
    assert registry.show_model(versions.world.ctx, versions.world.actor, model="boxes")["aliases"] == {"champion": 1}


def test_a_canary_goes_up_step_by_step_with_its_figures_and_keeps_the_old_one_warm(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    before = versions.clock.now()
    versions.approve(2)
    versions.until("Baking", count=2)
    assert versions.fleet.weights("boxes") == {"v1": 95.0, "v2": 5.0}
    done = versions.until("Succeeded", count=2)
    assert [note["share"] for note in done["decisions"]] == [5.0, 50.0, 100.0]
    assert all(note["figures"]["elapsed_seconds"] >= 30 for note in done["decisions"])
    assert versions.fleet.weights("boxes") == {"v2": 100.0}
    states = {v["name"]: v["status"] for v in endpoints.show(versions.world.ctx, ADMIN, endpoint="boxes")["variants"]}
    assert states == {"v2": "Ready", "v1": "Warm"}
    then = endpoints.live(versions.world.ctx, ADMIN, at=before)["items"]
    assert [(item["version"], item["share"]) for item in then] == [(1, 1.0)]
    now = endpoints.live(versions.world.ctx, ADMIN)["items"]
    assert [(item["version"], item["share"]) for item in now] == [(2, 1.0)]


def test_a_canary_whose_answers_are_errors_goes_back_by_itself(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Baking", count=2)
    versions.clock.advance(3)
    versions.answer("v1", 400)
    versions.answer("v2", 20, errors=12)
    done = versions.until("RolledBack")
    assert "12 of 20 answers were 5xx" in done["reason"]
    assert done["decisions"][-1]["figures"]["candidate"]["errors_5xx"] == 12
    assert versions.fleet.weights("boxes") == {"v1": 100.0}
    assert versions.status(2) == "Rejected" and versions.status(1) == "Approved"


def test_a_canary_that_is_slower_goes_back_by_itself(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Baking", count=2)
    versions.clock.advance(3)
    versions.answer("v1", 400, milliseconds=2)
    versions.answer("v2", 400, milliseconds=40)
    reason = versions.until("RolledBack")["reason"]
    assert "p50 was" in reason and "the limit is 2 times as much" in reason


def test_a_canary_whose_slowest_answers_are_slow_second_after_second_goes_back(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Baking", count=2)
    for _ in range(3):
        versions.clock.advance(1.5)
        versions.answer("v1", 400, milliseconds=2)
        versions.answer("v2", 390, milliseconds=2)
        versions.answer("v2", 10, milliseconds=80)
    assert "p99 was" in versions.until("RolledBack")["reason"]


def test_a_version_whose_server_does_not_start_never_takes_traffic(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    with versions.world.ctx.db.read() as tx:
        version = registry.version_row(tx, "boxes", 2)
    versions.approve(2)

    def starting() -> bool:
        for row in endpoints.show(versions.world.ctx, ADMIN, endpoint="boxes")["variants"]:
            if row["version"] == version["id"]:
                versions.fleet.broken[row["id"]] = "ImportError: No module named 'lightgbm'"
        versions.fleet.act()
        versions.clock.advance(0.2)
        return versions.rollouts()[0]["status"] == "Failed"

    versions.world.settle(starting)
    assert "lightgbm" in versions.rollouts()[0]["reason"]
    assert versions.fleet.weights("boxes") == {"v1": 100.0}


def test_rollback_switches_everything_in_one_go(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Succeeded", count=2)
    versions.fleet.acknowledging = True
    number, row = rollbacks.begin(versions.world.ctx, "admin", "boxes", "wrong prices")
    assert number is not None
    assert versions.fleet.weights("boxes") == {"v1": 100.0}
    assert versions.status(2) == "Rejected" and versions.status(1) == "Approved"
    assert registry.show_model(versions.world.ctx, ADMIN, model="boxes")["aliases"] == {"champion": 1}
    assert versions.until("Succeeded", count=3)["id"] == row["id"]
    with pytest.raises(Conflict, match="none to go back to"):
        rollbacks.begin(versions.world.ctx, "admin", "boxes", "again")


def test_a_rollout_that_is_baking_is_turned_back_by_rollback(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Baking", count=2)
    rollbacks.begin(versions.world.ctx, "admin", "boxes", "a feeling")
    assert versions.fleet.weights("boxes") == {"v1": 100.0}
    assert versions.until("RolledBack")["reason"] == "a feeling"


def test_what_is_not_approved_is_not_released_unless_forced_by_an_approver(versions: Stage) -> None:
    with pytest.raises(GateRefused, match="loopline approve boxes 1"):
        rollouts.release(versions.world.ctx, ADMIN, endpoint="boxes", number=1)
    with pytest.raises(Forbidden):
        rollouts.release(versions.world.ctx, Actor("eve", "editor"), endpoint="boxes", number=1, force=True, reason="x")
    rollouts.release(versions.world.ctx, ADMIN, endpoint="boxes", number=1, force=True, reason="demo for a customer")
    assert versions.until("Succeeded")["plan"]["number"] == 1
    history = registry.show_version(versions.world.ctx, ADMIN, model="boxes", number=1)["history"]
    assert ("forced", "demo for a customer") in [(event["kind"], event["reason"]) for event in history]


def test_warm_variants_stop_when_their_time_is_over(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    versions.until("Succeeded", count=2)
    assert len(versions.fleet.processes()) == 2
    versions.clock.advance(601)
    versions.world.settle(lambda: len(versions.fleet.processes()) == 1)


def test_a_burst_in_the_very_second_of_the_switch_is_not_overlooked(versions: Stage) -> None:
    versions.approve(1)
    versions.until("Succeeded")
    versions.approve(2)
    baking = versions.until("Baking", count=2)
    latency = {str(bucket): n for bucket, n in Histogram.of([2000.0] * 30).buckets.items()}
    with versions.world.ctx.db.transaction() as tx:
        metrics.add_traffic(tx, [Traffic("boxes", "v2", 1, int(baking["step_at"]), 30, 0, 30, latency)])
    assert "30 of 30 answers were 5xx" in versions.until("RolledBack", count=2)["reason"]
