"""A stage for rollouts: an installation with a clock of its own, processes that only say what they would do, and two
versions of the boxes project that have passed the gate."""

from pathlib import Path
from typing import Any

from loopline.control import endpoints, pushes, registry, rollouts
from loopline.domain.latency import Histogram
from loopline.store import metrics
from loopline.store.metrics import Traffic
from loopline.testing.boxes import LOOP, follow, project
from loopline.testing.clock import ManualClock
from loopline.testing.fleet import Fleet
from loopline.testing.world import World

ENDPOINT = """
[endpoint]
name = "boxes"
keep_warm_seconds = 600

[rollout]
steps = [5, 50]
bake_seconds = 30
"""


class Stage:
    """The installation, its clock and its fleet; the endpoint is called ``boxes``, and so is the model."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.clock = ManualClock(self.world.ctx.clock.now())
        self.world.ctx.clock = self.clock
        self.world.ctx.db.use_clock(self.clock.now)
        self.fleet = Fleet(self.world.ctx)

    def close(self) -> None:
        """Close the database."""
        self.world.close()

    def register(self, loop_toml: str = LOOP + ENDPOINT, count: int = 2) -> None:
        """Train versions that pass the gate and wait for approval."""
        for number in range(count):
            tree = self.world.tree(project(loop_toml=loop_toml))
            push = pushes.run(self.world.ctx, self.world.actor, tree=tree, parameters={"shift": 0.05 * number})["id"]
            shown = follow(self.world, push)
            assert shown["status"] == "Succeeded", shown["reason"]

    def until(self, status: str, *, count: int = 1) -> dict[str, Any]:
        """Move on until there are ``count`` rollouts and the newest has this status."""

        def reached() -> bool:
            self.turn()
            items = self.rollouts()
            return len(items) >= count and items[0]["status"] == status

        self.world.settle(reached)
        return self.rollouts()[0]

    def turn(self) -> None:
        """Let the processes act, and a moment pass."""
        self.fleet.act()
        self.clock.advance(0.2)

    def rollouts(self) -> list[dict[str, Any]]:
        """The endpoint's rollouts, newest first."""
        found: list[dict[str, Any]] = rollouts.list_(self.world.ctx, self.world.actor, endpoint="boxes")["items"]
        return found

    def approve(self, number: int, **given: Any) -> None:
        """Approve a version; the endpoint follows."""
        registry.approve(self.world.ctx, self.world.actor, model="boxes", number=number, **given)

    def release(self, number: int, **given: Any) -> dict[str, Any]:
        """Release a version by hand, whatever its status."""
        given = {"force": True, "reason": "a test", **given}
        return rollouts.release(self.world.ctx, self.world.actor, endpoint="boxes", number=number, **given)

    def status(self, number: int) -> str:
        """A version's status."""
        return str(registry.show_version(self.world.ctx, self.world.actor, model="boxes", number=number)["status"])

    def variants(self) -> dict[str, dict[str, Any]]:
        """The endpoint's variants that have not stopped, by name."""
        shown = endpoints.show(self.world.ctx, self.world.actor, endpoint="boxes")["variants"]
        return {row["name"]: row for row in shown}

    def champion(self) -> int | None:
        """The version that the model's alias points at."""
        found = registry.show_model(self.world.ctx, self.world.actor, model="boxes")["aliases"].get("champion")
        return None if found is None else int(found)

    def answer(self, variant: str, requests: int, errors: int = 0, milliseconds: float = 2.0) -> None:
        """Count requests in the second that has just gone by."""
        latency = {str(bucket): n for bucket, n in Histogram.of([milliseconds * 1000] * requests).buckets.items()}
        row = Traffic("boxes", variant, 1, int(self.clock.now()) - 1, requests, 0, errors, latency)
        with self.world.ctx.db.transaction() as tx:
            metrics.add_traffic(tx, [row])
