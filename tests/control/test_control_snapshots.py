"""Old snapshots become the ledger of what was live when: it says what it said, and takes no more room than that."""

import json
from typing import Any

import sqlalchemy as sa

from loopline.control import access, endpoints, snapshots
from loopline.store import records
from loopline.store.schema import snapshots as table
from loopline.testing.clock import ManualClock
from loopline.testing.world import World


class Traffic:
    """An endpoint with two variants, whose weights are moved by hand."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, ManualClock(world.ctx.clock.now())
        world.ctx.clock = self.clock
        world.ctx.db.use_clock(self.clock.now)
        access.create_user(world.ctx, world.actor, name="ann", role="editor")
        endpoints.create(world.ctx, world.actor, name="boxes")
        with world.ctx.db.transaction() as tx:
            self.ids = {
                number: records.create(
                    tx,
                    "variant",
                    actor="ann",
                    status="Ready",
                    endpoint="boxes",
                    name=f"v{number}",
                    model="boxes",
                    number=number,
                    weight=0.0,
                    instances=1,
                    digest="",
                    server=[{"socket": f"/run/{number}.sock", "process": {}}],
                )["id"]
                for number in (1, 2)
            }
        self.clock.advance(1)

    def move(self, *weights: float) -> None:
        with self.world.ctx.db.transaction() as tx:
            for number, weight in enumerate(weights, 1):
                records.set(tx, "variant", self.ids[number], actor="ann", weight=weight)
            snapshots.write(self.world.ctx, tx, actor="ann", reason="by hand")
        self.clock.advance(1)

    def told(self, at: float | None) -> list[tuple[Any, ...]]:
        items = endpoints.live(self.world.ctx, self.world.actor, at=at)["items"]
        return [(each["variant"], each["version"], each["share"], each["since_at"]) for each in items]

    def rows(self) -> list[dict[str, Any]]:
        with self.world.ctx.db.read() as tx:
            return tx.rows(sa.select(table).order_by(table.c.number))

    def keys(self, count: int) -> None:
        for _ in range(count):
            name = f"at-{self.clock.now():.0f}"
            access.create_key(self.world.ctx, self.world.actor, user="ann", name=name)
            self.clock.advance(1)


def test_what_was_live_when_is_told_as_before_by_a_few_small_rows(world: World) -> None:
    traffic = Traffic(world)
    began = traffic.clock.now() - 1
    for weights in ((100, 0), (95, 5), (0, 100)):
        traffic.move(*weights)
        traffic.keys(4)
    times = [began + second for second in range(17)]
    before = {at: traffic.told(at) for at in (*times, None)}
    newest = traffic.rows()[-1]
    assert len({str(said) for said in before.values()}) == 4  # nothing, and three splits

    assert snapshots.prune(world.ctx) == 0
    traffic.clock.advance(snapshots.KEPT_SECONDS + 1)
    removed = snapshots.prune(world.ctx)

    rows = traffic.rows()
    assert removed > 10 and len(rows) == 5
    assert {at: traffic.told(at) for at in (*times, None)} == before
    assert rows[-1] == newest and "sha256" in json.dumps(newest["body"])
    assert "sha256" not in json.dumps(rows[:-1]) and ".sock" not in json.dumps(rows[:-1])
    assert snapshots.prune(world.ctx) == 0 and traffic.rows() == rows


def test_gateways_follow_the_same_snapshot_before_and_after(world: World) -> None:
    traffic = Traffic(world)
    traffic.move(100, 0)
    traffic.keys(3)
    file = world.ctx.settings.dir / "snapshot.json"
    published = json.loads(file.read_text())
    traffic.clock.advance(snapshots.KEPT_SECONDS + 1)

    assert snapshots.prune(world.ctx) > 0
    assert json.loads(file.read_text()) == published
    file.unlink()
    world.ctx.cache.clear()  # as after a start
    assert snapshots.publish(world.ctx) == published["number"]
    assert json.loads(file.read_text())["keys"] == published["keys"]
    traffic.move(0, 100)
    assert json.loads(file.read_text())["number"] == published["number"] + 1


def test_a_ledger_that_was_pruned_goes_on_where_it_was(world: World) -> None:
    traffic = Traffic(world)
    told = []
    for weights in ((100, 0), (50, 50)) * 2:
        traffic.move(*weights)
        traffic.keys(2)
        traffic.clock.advance(snapshots.KEPT_SECONDS + 1)
        snapshots.prune(world.ctx)
        told.append((traffic.clock.now() - 1, traffic.told(None)))

    assert [traffic.told(at) for at, _ in told] == [said for _, said in told]
    with world.ctx.db.read() as tx:
        assert snapshots.unchanged_since(tx, "boxes") == traffic.told(None)[0][-1]
    assert len(traffic.rows()) <= 7


def test_a_ledger_longer_than_one_look_at_it_says_what_it_said(world: World) -> None:
    traffic = Traffic(world)
    for weight in range(snapshots.ROWS + 3):
        traffic.move(100 - weight, weight)
        traffic.keys(1 if weight % 2 else 0)
    traffic.keys(snapshots.ROWS + 3)
    times = [row["at"] for row in traffic.rows()]
    before = {at: traffic.told(at) for at in times}
    traffic.clock.advance(snapshots.KEPT_SECONDS + 1)

    assert snapshots.prune(world.ctx) > snapshots.ROWS
    assert {at: traffic.told(at) for at in times} == before
    assert ".sock" not in json.dumps(traffic.rows()[:-1])
    assert snapshots.prune(world.ctx) == 0
