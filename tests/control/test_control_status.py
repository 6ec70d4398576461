"""The loop at a glance."""

from loopline.control import endpoints, status
from loopline.domain.latency import Histogram
from loopline.store import metrics
from loopline.store.metrics import Traffic
from loopline.testing.world import World


def count(world: World, variant: str, seconds_ago: float, requests: int, errors: int, period: int = 60) -> None:
    latency = {str(bucket): n for bucket, n in Histogram.of([1000.0] * requests).buckets.items()}
    at = int(world.ctx.clock.now() - seconds_ago) // period * period
    with world.ctx.db.transaction() as tx:
        metrics.add_traffic(tx, [Traffic("boxes", variant, period, at, requests, 0, errors, latency)])


def test_the_last_hour_counts_every_variant_once_stopped_ones_too(world: World) -> None:
    endpoints.create(world.ctx, world.actor, name="boxes")
    count(world, "v1", 3000, 700, 1)
    count(world, "v2", 120, 40, 9)  # went back and was stopped since
    count(world, "v1", 30, 300, 0)
    count(world, "v1", 30, 300, 0, period=1)  # the same requests, counted finer
    count(world, "v1", 7300, 5000, 50)
    found = status.overview(world.ctx, world.actor)["endpoints"][0]
    assert found["last_hour"] == {"requests": 1040, "errors_4xx": 0, "errors_5xx": 10}
