"""Weights by hand, variants that stand by, shadows and their reports, live comparisons."""

import json
from typing import Any

import pytest

from loopline.control import (
    comparisons,
    endpoint_tests,
    endpoints,
    labels,
    monitoring,
    registry,
    release_tests,
    requests,
    rollbacks,
    rollouts,
    shadows,
    snapshots,
    status,
)
from loopline.control import weights as weights_
from loopline.domain.access import Actor
from loopline.domain.capture import encode_record
from loopline.domain.names import make_id
from loopline.domain.states import CheckupStatus
from loopline.errors import Conflict, GateRefused, InvalidInput, NotFound
from loopline.store import metrics, records
from loopline.store.metrics import Traffic
from loopline.testing.boxes import LOOP
from loopline.testing.stage import ENDPOINT, Stage

ADMIN = Actor("admin", "admin")
BY_HAND = ENDPOINT.replace("[rollout]", "deploy_on_approval = false\n\n[rollout]")
COMPARED = BY_HAND + '\n[comparison]\nmetric = "error_rate"\nmax_seconds = 600\n'


@pytest.fixture
def pair(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Version 1 serves as ``v1``, version 2 stands by as ``green``; gateways switch as soon as somebody waits."""
    real = snapshots.acknowledged

    def acknowledged(ctx: Any, number: int) -> bool:
        stage.fleet.act()
        return real(ctx, number)

    monkeypatch.setattr(snapshots, "acknowledged", acknowledged)
    stage.register(LOOP + BY_HAND)
    for number in (1, 2):
        stage.approve(number)
    stage.release(1)
    stage.until("Succeeded")
    stage.release(2, strategy="standby", variant="green")
    stage.until("Succeeded", count=2)
    return stage


def _set(stage: Stage, **weights: float) -> dict[str, Any]:
    return weights_.set_weights(stage.world.ctx, ADMIN, endpoint="boxes", weights=weights)


# -- standing by ------------------------------------------------------------------------------------------------------


def test_a_version_without_traffic_runs_and_can_be_reached_and_changes_nothing_else(pair: Stage) -> None:
    assert pair.fleet.weights("boxes") == {"v1": 100.0}
    assert {name: row["status"] for name, row in pair.variants().items()} == {"v1": "Ready", "green": "Ready"}
    published = pair.fleet.snapshot()["endpoints"]["boxes"]["variants"]
    assert all(variant["servers"] for variant in published)
    assert pair.champion() == 1
    pair.clock.advance(100_000)  # it stands by until somebody stops it
    pair.world.settle(lambda: not pair.world.step())
    assert "green" in pair.variants()


def test_a_variant_that_stands_by_is_stopped_by_hand_and_one_with_traffic_is_not(pair: Stage) -> None:
    with pytest.raises(Conflict, match="takes traffic"):
        weights_.stop(pair.world.ctx, ADMIN, endpoint="boxes", variant="v1")
    weights_.stop(pair.world.ctx, ADMIN, endpoint="boxes", variant="green")
    assert list(pair.variants()) == ["v1"] and len(pair.fleet.processes()) == 1


def test_a_name_is_free_again_for_another_version_once_its_variant_has_stopped(pair: Stage) -> None:
    with pytest.raises(Conflict, match="runs as green already"):
        pair.release(2, variant="blue")
    weights_.stop(pair.world.ctx, ADMIN, endpoint="boxes", variant="green")
    pair.register(LOOP + BY_HAND, count=1)
    pair.release(3, strategy="standby", variant="green")
    pair.until("Succeeded", count=3)
    assert pair.variants()["green"]["number"] == 3
    pair.release(2, strategy="standby")
    pair.until("Succeeded", count=4)
    assert pair.variants()["v2"]["number"] == 2


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_relative_and_acknowledged_and_in_the_history(pair: Stage) -> None:
    found = _set(pair, v1=9, green=1)
    assert [(row["name"], row["share"]) for row in found["items"]] == [("v1", 0.9), ("green", 0.1)]
    assert pair.fleet.snapshot()["number"] >= found["snapshot"]
    assert pair.fleet.weights("boxes") == {"v1": 9.0, "green": 1.0}
    newest = pair.rollouts()[0]
    assert (newest["kind"], newest["status"], newest["by"]) == ("weights", "Succeeded", "admin")
    assert newest["reason"] == "v1=9, green=1"
    live = endpoints.live(pair.world.ctx, ADMIN)["items"]
    assert {(item["variant"], item["share"]) for item in live} == {("v1", 0.9), ("green", 0.1)}
    assert pair.champion() == 1


def test_what_gets_no_weight_any_more_is_kept_warm_and_the_champion_has_most(pair: Stage) -> None:
    _set(pair, v1=10, green=90)
    assert pair.champion() == 2
    _set(pair, green=1)
    assert {name: row["status"] for name, row in pair.variants().items()} == {"green": "Ready", "v1": "Warm"}
    _set(pair, v1=1)
    assert {name: row["status"] for name, row in pair.variants().items()} == {"v1": "Ready", "green": "Warm"}


def test_a_variant_that_stands_by_takes_traffic_once_it_has_passed_the_endpoints_tests(pair: Stage) -> None:
    ctx = pair.world.ctx
    definition = {"kind": "golden", "cases": [{"request": {"instances": [{"size": 1}]}, "expected": ["small"]}]}

    def run(passed: bool) -> None:
        status_ = CheckupStatus.PASSED if passed else CheckupStatus.FAILED
        pair.clock.advance(1)
        with ctx.db.transaction() as tx:
            row = release_tests._create(tx, green(tx), rows(tx), stage="by hand", actor="a")
            records.move(tx, "test_run", row["id"], CheckupStatus.RUNNING, actor="a", started_at=tx.now)
            results = [{"test": name, "status": str(status_)} for name in row["tests"]]
            records.move(tx, "test_run", row["id"], status_, actor="a", results=results, reason="known: as asked")

    def green(tx: Any) -> dict[str, Any]:
        return records.find(tx, "variant", endpoint="boxes", name="green") or {}

    def rows(tx: Any) -> list[dict[str, Any]]:
        return endpoint_tests.rows_of(tx, "boxes")

    def refused(match: str) -> None:
        with pytest.raises(GateRefused, match=match):
            _set(pair, v1=1, green=1)
        assert pair.fleet.weights("boxes") == {"v1": 100.0}

    endpoint_tests.put(ctx, ADMIN, endpoint="boxes", name="known", definition=definition)
    refused("loopline tests run boxes --variant green")
    run(passed=False)
    refused("known failed with the variant green: known: as asked")
    run(passed=True)
    pair.clock.advance(1)
    endpoint_tests.put(ctx, ADMIN, endpoint="boxes", name="known", definition={**definition, "min_share": 0.9})
    refused("has not passed the test known yet")
    run(passed=True)
    _set(pair, v1=1, green=1)
    assert pair.fleet.weights("boxes") == {"v1": 1.0, "green": 1.0}


def test_after_weights_by_hand_a_rollback_finds_its_way(pair: Stage) -> None:
    _set(pair, green=100)
    rollbacks.begin(pair.world.ctx, "admin", "boxes", "no")
    pair.until("Succeeded", count=4)
    assert pair.fleet.weights("boxes") == {"v1": 100.0}
    assert pair.status(2) == "Rejected"


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"v1": 1, "red": 1}, NotFound, "running: green, v1"),
        ({"v1": -1}, InvalidInput, "from 0"),
        ({"v1": 0}, InvalidInput, "above 0"),
        ({"v1": float("nan")}, InvalidInput, "from 0"),
        ({"v1": True}, InvalidInput, "from 0"),
        ({}, InvalidInput, "above 0"),
    ],
)
def test_what_is_no_split_is_refused(pair: Stage, given: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _set(pair, **given)
    assert pair.fleet.weights("boxes") == {"v1": 100.0}


def test_a_rejected_version_gets_no_weight_and_one_that_has_stopped_has_to_be_started(pair: Stage) -> None:
    registry.reject(pair.world.ctx, ADMIN, model="boxes", number=2, comment="no")
    with pytest.raises(GateRefused):
        _set(pair, v1=1, green=1)
    weights_.stop(pair.world.ctx, ADMIN, endpoint="boxes", variant="green")
    with pytest.raises(Conflict, match="--no-traffic"):
        _set(pair, v1=1, green=1)


def test_weights_wait_for_no_rollout(pair: Stage) -> None:
    pair.release(2)
    with pytest.raises(Conflict, match="is going on"):
        _set(pair, v1=1, green=1)


def test_a_release_keeps_the_split_among_the_others_and_gives_it_back(pair: Stage) -> None:
    _set(pair, v1=75, green=25)
    pair.register(LOOP + BY_HAND, count=1)
    pair.release(3)
    pair.until("Baking", count=4)
    assert pair.fleet.weights("boxes") == {"v1": 71.25, "green": 23.75, "v3": 5.0}
    pair.clock.advance(3)
    pair.answer("v3", 40, errors=30)
    pair.until("RolledBack", count=4)
    assert pair.fleet.weights("boxes") == {"v1": 75.0, "green": 25.0}


def test_rejecting_what_serves_says_that_it_goes_on_serving(pair: Stage) -> None:
    assert registry.reject(pair.world.ctx, ADMIN, model="boxes", number=1, comment="late")["serving"] == ["boxes"]
    assert pair.fleet.weights("boxes") == {"v1": 100.0}


# -- shadows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shadowed(pair: Stage) -> Stage:
    weights_.stop(pair.world.ctx, ADMIN, endpoint="boxes", variant="green")
    pair.release(2, strategy="shadow", share=20)
    pair.until("Succeeded", count=3)
    return pair


def _capture(stage: Stage, answers: list[tuple[str, str | None]]) -> None:
    """What a gateway would have written: for each request the caller's answer and the shadow's, if it got a copy."""
    folder = stage.world.ctx.settings.dir / "spool" / "gateway-0"
    folder.mkdir(parents=True, exist_ok=True)
    now, records = stage.clock.now(), []
    for place, (ours, theirs) in enumerate(answers):
        at = now + place * 0.01
        meta = {
            "id": make_id("rq", at, lambda bits: bits),
            "at": at,
            "endpoint": "boxes",
            "content_type": "",
            "key": "",
        }
        sides = (("v1", 1, ours, False), ("green", 2, theirs, True))
        for variant, version, answer, shadow in sides:
            if answer is not None:
                status = 429 if answer == "" else 200
                body = json.dumps({"predictions": [answer]}).encode() if answer else b""
                more = {"variant": variant, "version": version, "status": status, "latency_us": 900, "shadow": shadow}
                records.append(encode_record({**meta, **more}, b'{"instances": [{"size": 1}]}', body))
    (folder / f"{int(now * 1000):015d}.seg").write_bytes(b"".join(records))


def test_a_shadow_takes_no_traffic_and_the_snapshot_says_its_share(shadowed: Stage) -> None:
    assert shadowed.fleet.weights("boxes") == {"v1": 100.0}
    published = {each["name"]: each for each in shadowed.fleet.snapshot()["endpoints"]["boxes"]["variants"]}
    assert published["green"]["shadow"] == 0.2 and "shadow" not in published["v1"]
    assert shadowed.champion() == 1


def test_the_report_adds_up_what_was_compared_in_time_and_what_was_not_yet(shadowed: Stage) -> None:
    _capture(shadowed, [("large", "large"), ("large", "small"), ("small", None), ("small", "")])
    shadowed.clock.advance(1)
    found = shadows.show(shadowed.world.ctx, ADMIN, endpoint="boxes")
    assert (found["compared"], found["differing"], found["dropped"], found["copy_percent"]) == (2, 1, 1, 20.0)
    shadowed.clock.advance(100)
    shadowed.world.settle(lambda: not shadowed.world.step())
    _capture(shadowed, [("small", "small")])
    shadowed.clock.advance(1)
    found = shadows.show(shadowed.world.ctx, ADMIN, endpoint="boxes")
    assert (found["compared"], found["differing"], len(found["examples"])) == (3, 1, 1)
    assert {(cell["caller"], cell["shadow"]): cell["rows"] for cell in found["labels"]} == {
        ("large", "large"): 1,
        ("large", "small"): 1,
        ("small", "small"): 1,
    }


def test_a_shadow_that_is_stopped_leaves_its_report(shadowed: Stage) -> None:
    _capture(shadowed, [("large", "small")])
    shadowed.clock.advance(1)
    listed = requests.list_(shadowed.world.ctx, ADMIN, endpoint="boxes")["items"]
    assert [each["variant"] for each in listed] == ["v1"]
    assert requests.find_by_id(shadowed.world.ctx, [listed[0]["id"]])[listed[0]["id"]].meta["variant"] == "v1"
    weights_.stop(shadowed.world.ctx, ADMIN, endpoint="boxes", variant="green")
    found = shadows.show(shadowed.world.ctx, ADMIN, endpoint="boxes")
    assert (found["compared"], found["copy_percent"], found["status"]) == (1, None, "Stopped")
    assert all("shadow" not in each for each in shadowed.fleet.snapshot()["endpoints"]["boxes"]["variants"])


def test_a_shadow_is_promoted_by_an_ordinary_release_without_a_start(shadowed: Stage) -> None:
    running = {entry["id"] for entry in shadowed.fleet.processes()}
    shadowed.release(2)
    shadowed.until("Succeeded", count=4)
    assert shadowed.fleet.weights("boxes") == {"green": 100.0}
    assert {entry["id"] for entry in shadowed.fleet.processes()} == running
    assert shadowed.variants()["green"]["shadow"] is None


def test_a_shadow_needs_somebody_to_shadow(stage: Stage) -> None:
    stage.register(LOOP + BY_HAND, count=1)
    with pytest.raises(Conflict, match="nothing serves boxes"):
        stage.release(1, strategy="shadow")
    with pytest.raises(InvalidInput, match="share"):
        stage.release(1, share=5)


def test_an_endpoint_that_never_had_a_shadow_says_how_to_start_one(pair: Stage) -> None:
    with pytest.raises(NotFound, match="--strategy shadow"):
        shadows.show(pair.world.ctx, ADMIN, endpoint="boxes")


def test_copies_to_a_shadow_are_in_no_total(shadowed: Stage) -> None:
    with shadowed.world.ctx.db.transaction() as tx:
        at = int(tx.now) // 60 * 60
        rows = [Traffic("boxes", "v1", 60, at, 100, 0, 1), Traffic("boxes", "green/shadow", 60, at, 80, 0, 80)]
        metrics.add_traffic(tx, rows)
    shadowed.clock.advance(60)
    found = monitoring.traffic(shadowed.world.ctx, ADMIN, endpoint="boxes")
    assert found["total"]["requests"] == 100 and found["total"]["errors_5xx"] == 1
    assert {name: row["requests"] for name, row in found["variants"].items()} == {"v1": 100, "green/shadow": 80}
    shown = status.overview(shadowed.world.ctx, ADMIN)["endpoints"][0]
    assert shown["last_hour"] == {"requests": 100, "errors_4xx": 0, "errors_5xx": 1}


# -- live comparisons -------------------------------------------------------------------------------------------------


def test_two_variants_are_compared_on_what_they_answer(pair: Stage) -> None:
    _set(pair, v1=50, green=50)
    pair.clock.advance(3)
    pair.answer("v1", 4000, errors=400, milliseconds=5)
    pair.answer("green", 4000, errors=200, milliseconds=200)
    pair.clock.advance(2)
    found = comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1")
    assert (found["verdict"], found["champion_n"], found["challenger_n"]) == ("better", 4000, 4000)
    assert found["interval"][1] < 0 and "the challenger is better" in found["summary"]
    slower = comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1", metric="latency", slow_ms=100)
    assert (slower["verdict"], slower["champion"], slower["challenger"]) == ("worse", 0.0, 1.0)


def test_labels_that_arrive_later_compare_accuracy_and_what_the_labels_are(pair: Stage) -> None:
    _set(pair, v1=50, green=50)
    minute = int(pair.clock.now()) // 60 * 60 + 60
    pair.clock.advance(minute + 90 - pair.clock.now())
    with pair.world.ctx.db.transaction() as tx:
        for variant, right in (("v1", 700), ("green", 900)):
            joined = [
                labels._Joined(variant, float(minute), "large", "large" if n < right else "small") for n in range(1000)
            ]
            labels._count(tx, "boxes", joined, "large")
    found = comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1", metric="accuracy")
    assert (found["verdict"], found["champion"], found["challenger"]) == ("better", 0.7, 0.9)
    rate = comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1", metric="label_rate")
    assert (rate["verdict"], rate["challenger"]) == ("better", 0.9)
    with pytest.raises(InvalidInput, match="compare accuracy"):
        comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1", metric="mae")


def test_what_cannot_be_compared_says_why(pair: Stage) -> None:
    with pytest.raises(Conflict, match="only v1 answers"):
        comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes")
    with pytest.raises(NotFound, match="it has: green, v1"):
        comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", challenger="red")
    with pytest.raises(InvalidInput, match="cannot be compared with itself"):
        comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", champion="v1", challenger="v1")
    with pytest.raises(InvalidInput, match="metrics: error_rate"):
        comparisons.show(pair.world.ctx, ADMIN, endpoint="boxes", metric="beauty")


@pytest.fixture
def compared(stage: Stage) -> Stage:
    """A canary that waits for a verdict at its first step."""
    stage.register(LOOP + COMPARED)
    stage.release(1)
    stage.until("Succeeded")
    stage.release(2)
    stage.until("Baking", count=2)
    stage.clock.advance(40)
    for _ in range(10):
        stage.turn()
        stage.world.step()
    assert stage.rollouts()[0]["status"] == "Baking", "its time at the step is over, and nothing is shown yet"
    return stage


def _answers(stage: Stage, ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    stage.answer("v1", *ours)
    stage.answer("v2", *theirs)


def test_a_canary_that_is_shown_to_be_better_is_promoted(compared: Stage) -> None:
    _answers(compared, (4000, 300), (4000, 100))
    done = compared.until("Succeeded", count=2)
    assert [note["share"] for note in done["decisions"]] == [5.0, 100.0]
    assert "the challenger is better" in done["decisions"][0]["reason"]
    assert done["decisions"][0]["figures"]["comparison"]["verdict"] == "better"


def test_a_canary_that_is_shown_to_be_worse_goes_back_below_the_limit_of_the_alarms(compared: Stage) -> None:
    _answers(compared, (4000, 20), (4000, 160))
    done = compared.until("RolledBack", count=2)
    assert "the challenger is worse" in done["reason"]
    assert compared.status(2) == "Rejected"


def test_a_canary_without_a_verdict_in_time_goes_back(compared: Stage) -> None:
    _answers(compared, (400, 8), (400, 8))
    compared.clock.advance(600)
    assert "no verdict within 600 s" in compared.until("RolledBack", count=2)["reason"]


@pytest.mark.parametrize("ask", [endpoints.live, rollouts.list_])
def test_an_endpoint_that_never_was_has_no_history_and_one_that_was_keeps_its_own(pair: Stage, ask: Any) -> None:
    with pytest.raises(NotFound, match=r"there is no endpoint 'boxs'; did you mean 'boxes'\?"):
        ask(pair.world.ctx, ADMIN, endpoint="boxs")
    assert ask(pair.world.ctx, ADMIN, endpoint="boxes")["items"]
    endpoints.delete(pair.world.ctx, ADMIN, endpoint="boxes")
    ask(pair.world.ctx, ADMIN, endpoint="boxes")
