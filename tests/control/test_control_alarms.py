"""Alarms fire and clear on what was measured, and act once: notify, rollback, retrain."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from loopline.config import load
from loopline.control import alarms, datapoints, labels, monitoring
from loopline.control.context import Context, Ids
from loopline.domain import projects as loops
from loopline.domain.access import Actor
from loopline.domain.baselines import baseline_from_columns
from loopline.domain.drift import DriftPolicy, report
from loopline.domain.latency import Histogram
from loopline.domain.projects import AlarmTable, EndpointTable, Loop, Model, Project, Retrain
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.monitor.reports import ReportStream
from loopline.outbound.http import Sender
from loopline.store import records
from loopline.store.blobs import LocalBlobs
from loopline.store.db import Db
from loopline.store.schema import events, metadata, queue, retrainings
from loopline.store.secrets import Secrets
from loopline.testing.clock import ManualClock

NOW = 1_790_000_040.0  # a whole minute
ANA = Actor("ana", "editor")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests report is complete."""
    monkeypatch.setattr(alarms, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def ctx(tmp_path: Path, clock: ManualClock) -> Iterator[Context]:
    settings = load({}, dir=str(tmp_path / "data"))
    settings.dir.mkdir()
    ids = Ids(clock, seed="1")
    db = Db(settings.database, clock=clock.now, new_id=ids.new)
    metadata.create_all(db.engine)
    unused: Any = None
    yield Context(
        settings=settings,
        db=db,
        blobs=LocalBlobs(tmp_path / "blobs"),
        secrets=Secrets(db, settings.dir / "keys"),
        signer=unused,
        compute=unused,
        environments=unused,
        outbound=Sender(),
        clock=clock,
        ids=ids,
        host="here",
    )
    db.close()


def loop(*tables: AlarmTable, **retrain: Any) -> Loop:
    return Loop(
        project=Project("hospital"),
        model=Model("patients"),
        endpoint=EndpointTable("patients"),
        alarms=tables,
        retrain=Retrain(**retrain),
    )


def install(ctx: Context, wanted: Loop) -> list[dict[str, Any]]:
    """What applying loop.toml does for alarms."""
    with ctx.db.transaction() as tx:
        project = records.find(tx, "project", name="hospital")
        if project is None:
            records.create(tx, "project", actor="ana", name="hospital", loop=loops.to_dict(wanted), changed_at=tx.now)
            row = records.create(
                tx,
                "endpoint",
                actor="ana",
                name="patients",
                project="hospital",
                settings={"positive": "ill"},
                created_by="ana",
            )
            assert row["id"]
            records.create(
                tx,
                "variant",
                actor="ana",
                endpoint="patients",
                name="v1",
                weight=100.0,
                instances=1,
                digest="d",
            )
        else:
            records.set(tx, "project", project["id"], actor="ana", loop=loops.to_dict(wanted))
        return alarms.apply_alarms(ctx, tx, actor="ana", project="hospital", endpoint="patients", loop=wanted)


@pytest.fixture
def tell(ctx: Context) -> Callable[[list[dict[str, Any]]], None]:
    """Report rows as the monitor does, and take them in."""
    out = ReportStream(ctx.settings.dir / "spool" / "monitor")

    def _tell(rows: list[dict[str, Any]]) -> None:
        out.append(ctx.clock.now(), {}, rows)
        monitoring.ingest(ctx)

    return _tell


def traffic(at: float, count: int, latency_ms: float = 10.0, errors: int = 0) -> dict[str, Any]:
    buckets = Histogram.of([latency_ms * 1000] * count).buckets
    return {
        "kind": "traffic",
        "endpoint": "patients",
        "variant": "v1",
        "at": int(at),
        "count": count,
        "errors_4xx": 0,
        "errors_5xx": errors,
        "latency": {str(k): v for k, v in buckets.items()},
    }


def state(ctx: Context, name: str) -> str:
    return str(alarms.show(ctx, ANA, name=name)["status"])


def rows(ctx: Context, table: sa.Table) -> list[dict[str, Any]]:
    with ctx.db.read() as tx:
        return tx.rows(sa.select(table))


def actions(ctx: Context, name: str) -> list[tuple[str, str]]:
    found = alarms.history(ctx, ANA, name=name)["items"]
    return [(each["kind"], each["data"]["action"]) for each in found if each["kind"] in ("acted", "refused")]


# -- the three of every endpoint --------------------------------------------------------------------------------------

P99 = AlarmTable("p99", "latency_ms", 2000, statistic="p99", period_seconds=60)
ERRORS = AlarmTable("5xx", "error_rate", 0.05, period_seconds=60)
SILENCE = AlarmTable(
    "silence",
    "requests",
    1,
    statistic="Sum",
    comparison="<",
    period_seconds=300,
    evaluation_periods=6,
    missing="breaching",
)


def test_latency_errors_and_silence_fire_and_clear(ctx: Context, clock: ManualClock, tell: Any) -> None:
    install(ctx, loop(P99, ERRORS, SILENCE))
    tell([traffic(NOW - 60 * n - 30, 100) for n in range(30)])
    alarms.evaluate(ctx)
    names = ("patients-p99", "patients-5xx", "patients-silence")
    assert [state(ctx, name) for name in names] == ["OK", "OK", "OK"]
    tell([traffic(NOW + 10, 98), traffic(NOW + 20, 10, latency_ms=2500, errors=10)])
    clock.advance(60)
    alarms.evaluate(ctx)
    assert [state(ctx, name) for name in names] == ["ALARM", "ALARM", "OK"]
    clock.advance(1500)
    alarms.evaluate(ctx)
    assert state(ctx, "patients-silence") == "OK"
    clock.advance(300 + 2 * 300 + 300)  # the evaluation range holds two periods more than the six that decide
    alarms.evaluate(ctx)
    assert state(ctx, "patients-silence") == "ALARM"
    tell([traffic(clock.now() + n, 50) for n in range(60)])
    clock.advance(300)
    clock.advance(60)
    tell([traffic(clock.now() - 30, 50)])
    alarms.evaluate(ctx)
    assert [state(ctx, name) for name in names] == ["OK", "OK", "OK"]


@pytest.mark.parametrize(
    ("metric", "statistic", "value"),
    [
        ("requests", "Sum", 40.0),
        ("requests", "Average", 40.0),
        ("requests", "SampleCount", 40.0),
        ("errors_5xx", "Sum", 4.0),
        ("error_rate", "Average", 0.1),
        ("latency_ms", "p99", 20.0),
        ("latency_ms", "Maximum", 20.0),
        ("latency_ms", "SampleCount", 40.0),
    ],
)
def test_what_each_metric_of_traffic_means(
    ctx: Context, clock: ManualClock, tell: Any, metric: str, statistic: str, value: float
) -> None:
    install(ctx, loop(AlarmTable("a", metric, 1e9, statistic=statistic, period_seconds=10)))
    tell([traffic(NOW + n, 10, latency_ms=20.0, errors=1) for n in (0, 3, 6, 9)])
    clock.advance(10)
    points = alarms.show(ctx, ANA, name="patients-a")["evaluation"]["datapoints"]
    assert [point["value"] for point in points] == [pytest.approx(value, rel=0.02)]


def test_a_period_is_judged_when_its_last_requests_have_been_reported(
    ctx: Context, clock: ManualClock, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "SETTLE_SECONDS", 2.0)
    install(ctx, loop(AlarmTable("few", "requests", 100, statistic="Sum", comparison="<", period_seconds=60)))
    tell([traffic(NOW + 10, 60)])
    clock.advance(60)
    alarms.evaluate(ctx)
    assert state(ctx, "patients-few") == "INSUFFICIENT_DATA"
    tell([traffic(NOW + 59, 60)])
    clock.advance(2)
    alarms.evaluate(ctx)
    assert state(ctx, "patients-few") == "OK"


def test_a_metric_that_nothing_measures_is_refused(ctx: Context) -> None:
    install(ctx, loop())
    for metric in ("cpu", "psi", "psi.", "roc_auc", ""):
        with pytest.raises(InvalidInput, match="metric"):
            datapoints.check_metric(metric)
        with pytest.raises(InvalidInput):
            alarms.put(ctx, ANA, name="a", endpoint="patients", metric=metric, threshold=1)


def test_accuracy_of_labels_that_arrive_late_fires_when_they_arrive(ctx: Context, clock: ManualClock) -> None:
    install(ctx, loop(AlarmTable("acc", "accuracy", 0.8, comparison="<", period_seconds=60)))
    with ctx.db.transaction() as tx:
        yesterday = NOW - 86_400
        pairs = [labels._Joined("v1", yesterday + n, "ill", "ill" if n < 5 else "well") for n in range(10)]
        labels._count(tx, "patients", pairs, "ill")
    clock.advance(60)
    alarms.evaluate(ctx)
    assert state(ctx, "patients-acc") == "ALARM"


# -- loop.toml --------------------------------------------------------------------------------------------------------


def test_applying_the_same_file_again_changes_nothing_and_keeps_states(
    ctx: Context, clock: ManualClock, tell: Any
) -> None:
    first = install(ctx, loop(P99, ERRORS))
    assert [(each["name"], each["change"]) for each in first] == [
        ("patients-p99", "created"),
        ("patients-5xx", "created"),
        ("patients-drift", "created"),
    ]
    tell([traffic(NOW + 10, 100, errors=50)])
    clock.advance(60)
    alarms.evaluate(ctx)
    assert install(ctx, loop(P99, ERRORS)) == []
    assert state(ctx, "patients-5xx") == "ALARM"
    milder = AlarmTable("5xx", "error_rate", 0.9, period_seconds=60)
    assert install(ctx, loop(milder)) == [
        {"noun": "alarm", "name": "patients-5xx", "change": "changed"},
        {"noun": "alarm", "name": "patients-p99", "change": "deleted"},
    ]
    assert state(ctx, "patients-5xx") == "ALARM"
    alarms.evaluate(ctx)
    assert state(ctx, "patients-5xx") == "OK"


def test_alarms_by_hand_live_beside_those_of_the_file(ctx: Context) -> None:
    install(ctx, loop(P99))
    made = alarms.put(ctx, ANA, name="mine", endpoint="patients", metric="psi.age", threshold=0.2, actions=["notify"])
    assert made["status"] == "INSUFFICIENT_DATA"
    install(ctx, loop(P99))
    assert {row["name"] for row in alarms.list_(ctx, ANA, endpoint="patients")["items"]} == {
        "mine",
        "patients-drift",
        "patients-p99",
    }
    for name in ("patients-p99", "patients-drift"):
        with pytest.raises(Conflict, match=r"loop\.toml"):
            alarms.delete(ctx, ANA, name=name)
    alarms.delete(ctx, ANA, name="mine")
    with pytest.raises(NotFound):
        alarms.show(ctx, ANA, name="mine")
    with pytest.raises(NotFound):
        alarms.put(ctx, ANA, name="x", endpoint="nobody", metric="requests", threshold=1)
    with pytest.raises(InvalidInput, match="not an action"):
        alarms.put(ctx, ANA, name="x", endpoint="patients", metric="requests", threshold=1, actions=["page"])


# -- actions ----------------------------------------------------------------------------------------------------------


def test_one_alarm_notifies_rolls_back_and_retrains_and_records_all_three(
    ctx: Context, clock: ManualClock, tell: Any
) -> None:
    table = AlarmTable("5xx", "error_rate", 0.05, period_seconds=60, actions=("notify", "rollback", "retrain"))
    install(ctx, loop(table, enabled=True, asset="visits", cooldown_seconds=0))
    tell([traffic(NOW + 10, 100, errors=50)])
    clock.advance(60)
    for _ in range(5):
        alarms.evaluate(ctx)
        clock.advance(1)
    assert sorted(actions(ctx, "patients-5xx")) == [("acted", "notify"), ("acted", "retrain"), ("acted", "rollback")]
    asked = {(row["kind"], row["key"]) for row in rows(ctx, queue)}
    (retraining,) = rows(ctx, retrainings)
    assert asked == {("endpoint.rollback", "patients"), ("retraining.advance", retraining["id"])}
    assert retraining["status"] == "Pending" and retraining["asset"] == "visits"
    assert retraining["cause"]["alarm"] == "patients-5xx" and retraining["cause"]["evidence"]["datapoints"]


def psi_report(wanted: float) -> dict[str, Any]:
    """A monitor's report, under the rule "psi > 0.1", of a window whose PSI is as near as can be to ``wanted``."""
    chance = np.random.default_rng(0)
    baseline = baseline_from_columns({"age": chance.normal(50, 10, 20_000)})
    drawn = chance.normal(0, 1, 20_000)
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        found = report(baseline, baseline.count({"age": 50 + middle + 10 * drawn}), DriftPolicy(rule="psi > 0.1"))
        low, high = (middle, high) if found.features[0].psi < wanted else (low, middle)
    assert found.features[0].psi == pytest.approx(wanted, abs=0.005)
    return found.to_dict()


def drift_row(at: float, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "drift",
        "endpoint": "patients",
        "variant": "v1",
        "version": "ve_1",
        "start_at": at - 10,
        "end_at": at,
        "fired": bool(body["drifted"]),
        "body": body,
    }


def run_for(ctx: Context, clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        clock.advance(1)
        alarms.evaluate(ctx)


def test_psi_of_0_08_starts_nothing_and_0_12_starts_exactly_one_retraining(
    ctx: Context, clock: ManualClock, tell: Any
) -> None:
    install(ctx, loop(enabled=True, cooldown_seconds=86_400))
    below, above = psi_report(0.08), psi_report(0.12)
    for _ in range(20):
        tell([drift_row(clock.now(), below)])
        run_for(ctx, clock, 3)
    assert state(ctx, "patients-drift") == "OK" and rows(ctx, retrainings) == []
    begun = clock.now()
    for _ in range(20):
        tell([drift_row(clock.now(), above)])
        run_for(ctx, clock, 3)
        if state(ctx, "patients-drift") == "ALARM":
            break
    assert clock.now() - begun <= 15
    for _ in range(20):
        tell([drift_row(clock.now(), above)])
        run_for(ctx, clock, 3)
    assert len(rows(ctx, retrainings)) == 1


def test_the_same_literal_limit_as_an_alarm_on_a_feature(ctx: Context, clock: ManualClock, tell: Any) -> None:
    table = AlarmTable("age", "psi.age", 0.1, period_seconds=10, missing="ignore", actions=("retrain",))
    install(ctx, loop(table, enabled=True))
    tell([drift_row(NOW, psi_report(0.08))])
    run_for(ctx, clock, 15)
    assert state(ctx, "patients-age") == "OK" and rows(ctx, retrainings) == []
    tell([drift_row(clock.now(), psi_report(0.12))])
    run_for(ctx, clock, 15)
    assert state(ctx, "patients-age") == "ALARM" and len(rows(ctx, retrainings)) == 1


def flap(ctx: Context, clock: ManualClock, tell: Any, bodies: Any, times: int) -> None:
    for body in itertools.islice(itertools.cycle(bodies), times):
        tell([drift_row(clock.now(), body)])
        run_for(ctx, clock, 12)


def test_flapping_drift_retrains_once_within_the_cool_down_and_says_why_not_more(
    ctx: Context, clock: ManualClock, tell: Any
) -> None:
    install(ctx, loop(enabled=True, cooldown_seconds=3600, budget=2, budget_window_seconds=86_400))
    bodies = (psi_report(0.12), psi_report(0.02))
    flap(ctx, clock, tell, bodies, 4)
    (only,) = rows(ctx, retrainings)
    assert actions(ctx, "patients-drift").count(("refused", "retrain")) == 1
    with ctx.db.transaction() as tx:
        records.move(tx, "retraining", only["id"], "Failed", actor="test", push="pu_1")
    flap(ctx, clock, tell, bodies, 4)
    assert len(rows(ctx, retrainings)) == 1
    reasons = [each["reason"] for each in rows(ctx, events) if each["kind"] == "refused"]
    assert "still Pending" in reasons[0] and "Cooling down" in reasons[-1]
    clock.advance(3600)
    flap(ctx, clock, tell, bodies, 2)
    assert len(rows(ctx, retrainings)) == 2
    with ctx.db.transaction() as tx:
        records.move(tx, "retraining", rows(ctx, retrainings)[1]["id"], "Failed", actor="test", push="pu_1")
    clock.advance(3600)
    flap(ctx, clock, tell, bodies, 2)
    assert len(rows(ctx, retrainings)) == 2
    assert "budget" in [each["reason"] for each in rows(ctx, events) if each["kind"] == "refused"][-1]


def test_retraining_is_off_until_it_is_switched_on(ctx: Context, clock: ManualClock, tell: Any) -> None:
    table = AlarmTable("age", "psi.age", 0.1, period_seconds=10, missing="ignore", actions=("retrain",))
    install(ctx, loop(table))
    tell([drift_row(NOW, psi_report(0.12))])
    run_for(ctx, clock, 15)
    assert state(ctx, "patients-age") == "ALARM" and rows(ctx, retrainings) == []
    (refused,) = [each for each in rows(ctx, events) if each["kind"] == "refused"]
    assert "enabled = true" in refused["reason"]
