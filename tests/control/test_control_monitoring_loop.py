"""From drifting requests in a gateway's spool to an alarm, a message and one retraining, by the engine's own tables."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from loopline.control import alarms, topics
from loopline.domain import names
from loopline.domain import projects as loops
from loopline.domain.access import Actor
from loopline.domain.baselines import baseline_from_columns
from loopline.domain.capture import encode_record
from loopline.domain.projects import EndpointTable, Loop, Model, Project, Retrain
from loopline.monitor.process import Monitor
from loopline.outbound.http import Answer
from loopline.store import records
from loopline.store.schema import retrainings
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

NOW = 1_790_000_000.0
ANA = Actor("ana", "admin")
NAMES = ["age", "weight", "height"]
LOOP = Loop(
    project=Project("hospital"),
    model=Model("patients"),
    endpoint=EndpointTable("patients"),
    retrain=Retrain(enabled=True, captured=False),
)


class Outbound:
    """Takes every message, in place of the network."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def post(self, url: str, headers: Any, body: bytes, timeout: float) -> Answer:
        self.sent.append(json.loads(body))
        return Answer(200, b"", 0.01, {})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def installed(tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    """An endpoint whose version has a baseline, watched with the defaults of loop.toml."""
    world = World(tmp_path / "data", clock=clock)
    world.ctx.outbound = Outbound()  # type: ignore[assignment]
    chance = np.random.default_rng(0)
    baseline = baseline_from_columns({name: chance.normal(0, 1, 10_000) for name in NAMES}).to_dict()
    signature = {"features": [{"name": name, "type": "number"} for name in NAMES]}
    with world.ctx.db.transaction() as tx:
        records.create(tx, "project", actor="ana", name="hospital", loop=loops.to_dict(LOOP), changed_at=tx.now)
        version = records.create(
            tx,
            "version",
            actor="ana",
            model="patients",
            number=1,
            handler="predict",
            signature=signature,
            baseline=baseline,
            requested_by="ana",
        )
        settings = {"monitor": loops.to_dict(LOOP)["monitor"]}
        records.create(
            tx,
            "endpoint",
            actor="ana",
            name="patients",
            project="hospital",
            model="patients",
            settings=settings,
            created_by="ana",
        )
        records.create(
            tx,
            "variant",
            actor="ana",
            endpoint="patients",
            name="v1",
            version=version["id"],
            model="patients",
            number=1,
            weight=100.0,
            instances=1,
            digest="d",
        )
        alarms.apply_alarms(world.ctx, tx, actor="ana", project="hospital", endpoint="patients", loop=LOOP)
    topics.create(world.ctx, ANA, name="news", events=["alarm.ALARM", "retraining.*"], project="hospital")
    topics.subscribe(world.ctx, ANA, topic="news", kind="slack", url="https://hooks.example/x")
    yield world
    world.close()


def test_a_change_is_told_within_a_minute_and_retrains_once(installed: World, clock: ManualClock) -> None:
    world, ctx = installed, installed.ctx
    world.step()  # the reaction writes what is to be watched
    monitor = Monitor(ctx.settings, clock.now())
    folder = ctx.settings.dir / "spool" / "gateway-0"
    folder.mkdir(parents=True)
    chance = np.random.default_rng(1)
    numbers = iter(range(1, 10**9))

    def second(shift: float) -> None:
        at = clock.now()
        lines = []
        for values in chance.normal(0, 1, (20, len(NAMES))):
            values[1] += shift
            meta = {
                "id": names.make_id("rq", at, lambda _: next(numbers)),
                "at": at,
                "endpoint": "patients",
                "variant": "v1",
                "version": 1,
                "model": "patients",
                "status": 200,
                "latency_us": 900,
                "content_type": "application/json",
            }
            body = json.dumps({"instances": [values.tolist()]}).encode()
            lines.append(encode_record(meta, body, b'{"predictions": [1]}'))
        with (folder / f"{int(at // 60 * 60000):015d}.seg").open("ab") as file:
            file.write(b"".join(lines))
        clock.advance(1)
        monitor.step(clock.now())
        world.step()

    def status() -> str:
        return str(alarms.show(ctx, ANA, name="patients-drift")["status"])

    for _ in range(300):
        second(0.0)
    assert status() == "OK"
    begun = clock.now()
    while status() != "ALARM" and clock.now() < begun + 60:
        second(1.0)
    assert status() == "ALARM", "not within a minute"
    for _ in range(60):
        second(1.0)
    with ctx.db.read() as tx:
        (retraining,) = tx.rows(sa.select(retrainings))
    assert retraining["cause"]["alarm"] == "patients-drift"
    said = [message["text"] for message in ctx.outbound.sent]  # type: ignore[attr-defined]
    assert [text for text in said if text.startswith("Alarm patients-drift of endpoint patients is ALARM")] == said[:1]
    assert any(text.startswith("Retraining on endpoint patients is Pending") for text in said)
