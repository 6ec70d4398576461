"""Ticks: what is looked at again and again, whatever wake-ups were missed. Each is quick and safe to repeat."""

from collections.abc import Callable
from typing import NamedTuple

from loopline.control import (
    alarms,
    attempts,
    batches,
    blobs,
    captures,
    ejections,
    endpoints,
    firings,
    invocations,
    jobs,
    metrics,
    modelstores,
    monitoring,
    repositories,
    scaling,
    snapshots,
    unpacked,
    uploads,
)
from loopline.control.context import Context


class Tick(NamedTuple):
    """``run`` is called every ``every_seconds``, by one process at a time."""

    name: str
    every_seconds: float
    run: Callable[[Context], object]


TICKS = (
    Tick("jobs.watch", 1.0, jobs.watch),
    Tick("jobs.tidy", 5.0, jobs.tidy),
    Tick("attempts.prune", 60.0, attempts.prune),
    Tick("batches.watch", 1.0, batches.watch),
    Tick("batches.prune", 600.0, batches.prune),
    Tick("invocations.prune", 60.0, invocations.prune),
    Tick("captures.export", 5.0, captures.export),
    Tick("snapshots.publish", 5.0, snapshots.publish),
    Tick("snapshots.prune", 600.0, snapshots.prune),
    Tick("ejections.watch", 1.0, ejections.watch),
    Tick("endpoints.retire", 5.0, endpoints.retire),
    Tick("modelstores.refresh", 5.0, modelstores.refresh),
    Tick("scaling.adjust", 1.0, scaling.adjust),
    Tick("monitoring.ingest", 0.5, monitoring.ingest),
    Tick("monitoring.prune", 60.0, monitoring.prune),
    Tick("blobs.free", 600.0, blobs.free),
    Tick("unpacked.prune", 600.0, unpacked.prune),
    Tick("uploads.prune", 600.0, uploads.prune),
    Tick("metrics.prune", 60.0, metrics.prune),
    Tick("alarms.evaluate", 1.0, alarms.evaluate),
    Tick("triggers.cron", 1.0, firings.cron),
    Tick("repositories.sweep", 2.0, repositories.sweep),
)
