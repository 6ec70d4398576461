"""Tasks: work that is asked for by ``store.queue.ask`` and done under a lease.

A task is called with its key; it gives None when it is done, or the seconds after which it wants to be called again.
"""

from collections.abc import Callable, Mapping

from loopline.control import (
    batches,
    compilations,
    deliveries,
    environments,
    executions,
    functions,
    gates,
    invocations,
    jobs,
    labels,
    modelstores,
    multimodel,
    pushes,
    release_tests,
    retraining,
    rollbacks,
    rollouts,
    servables,
    shadows,
    shifts,
)
from loopline.control.context import Context
from loopline.store.db import Row, Tx

Task = Callable[[Context, str], float | None]

TASKS: Mapping[str, Task] = {
    "delivery.send": deliveries.send,
    "endpoint.rollback": rollbacks.by_alarm,
    "environment.build": environments.build_again,
    "evaluation.judge": gates.judge,
    "execution.action": executions.act,
    "execution.advance": executions.advance,
    "execution.registration": executions.check_registration,
    "execution.script": executions.advance_script,
    "function.advance": functions.advance,
    "invocation.start": invocations.start,
    "jobs.start": jobs.start_ready,
    "jobs.stop": jobs.stop_attempts,
    "labels.join": labels.join,
    "modelstore.fetch": modelstores.fetch,
    "modelstore.open": modelstores.open_,
    "multimodel.follow": multimodel.follow,
    "push.advance": pushes.advance,
    "retraining.advance": retraining.advance,
    "rollout.advance": shifts.advance,
    "rollout.request": rollouts.request,
    "servable.prepare": servables.prepare,
    "shadow.compare": shadows.compare_windows,
    "test_run.advance": release_tests.advance,
}

# Tasks that may take long (a build, a large file, a slow receiver); they never hold up the others.
SLOW = frozenset(
    {
        "delivery.send",
        "environment.build",
        "evaluation.judge",
        "execution.script",
        "function.advance",
        "labels.join",
        "multimodel.follow",
        "push.advance",
        "retraining.advance",
        "servable.prepare",
        "shadow.compare",
        "test_run.advance",
    }
)

# Who is told, in the same transaction, that a job of theirs has ended.
JOB_OWNERS: Mapping[str, Callable[[Context, Tx, Row], None]] = {
    "batch": batches.job_ended,
    "compilation": compilations.job_ended,
    "evaluation": gates.job_ended,
    "push": pushes.job_ended,
    "step": executions.job_ended,
}
