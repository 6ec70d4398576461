"""Fill a data directory before it is served, through control: versions of one model, and runs with metrics."""

import random
from pathlib import Path

from loopline import config
from loopline.control import registry, tracking
from loopline.control.context import SYSTEM
from loopline.server import open_context
from loopline.store import metrics

MODEL, PROJECT = "large", "archive"
BATCH = 1000


def fill(folder: Path, versions: int, runs: int) -> None:
    """Add a model with so many versions and a project with so many runs, each with metrics and tags."""
    ctx = open_context(config.load({}, dir=str(folder)))
    chance = random.Random(1)
    registry.create_model(ctx, SYSTEM, name=MODEL)
    for start in range(0, versions, BATCH):
        with ctx.db.transaction() as tx:
            for number in range(start, min(start + BATCH, versions)):
                registry.register(
                    tx,
                    model=MODEL,
                    actor=SYSTEM.name,
                    artifact={"format": "joblib", "sha256": f"{number:064x}", "size_bytes": 1, "kind": "file"},
                    handler="predict",
                    metrics={"accuracy": chance.random(), "loss": chance.random()},
                    metadata={"tags": {"team": f"team-{number % 10}"}},
                )
    for start in range(0, runs, BATCH):
        with ctx.db.transaction() as tx:
            for number in range(start, min(start + BATCH, runs)):
                row = tracking.start(
                    tx,
                    project=PROJECT,
                    name=f"run {number}",
                    actor=SYSTEM.name,
                    parameters={"depth": number % 12, "rate": chance.random()},
                    tags={"team": f"team-{number % 10}"},
                    dirty=False,
                )
                points = [(key, chance.random(), 0, tx.now) for key in ("accuracy", "loss", "seconds")]
                metrics.log_points(tx, row["id"], points)
    ctx.db.close()
