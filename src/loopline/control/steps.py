"""Steps of an execution as one decision sees and starts them: from the cache, on the spot, or as a job."""

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from loopline.control import jobs, registrations, specs, staging
from loopline.control.context import SYSTEM, Context
from loopline.domain import calls
from loopline.domain.pipelines import ActionStep, ConditionStep, FailStep, JobStep, Output, RegisterStep, ScriptStep
from loopline.domain.states import StepStatus
from loopline.domain.values import Value
from loopline.errors import LooplineError
from loopline.store import queue, records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import cache, steps


class View:
    """An execution as one decision sees it."""

    def __init__(self, ctx: Context, tx: Tx, execution: Row) -> None:
        self.ctx, self.tx, self.execution = ctx, tx, execution
        self.index = specs.index_of(ctx, tx, execution)
        self.rows = {row["name"]: row for row in tx.fetch(_STEPS, execution=execution["id"])}
        self.statuses = {name: row["status"] for name, row in self.rows.items()}
        self.running = sum(1 for row in self.rows.values() if row["status"] == StepStatus.RUNNING)
        self.outputs = _Outputs(tx, execution["id"], self.statuses)
        self.facts = specs.facts(tx, execution)
        self.results = {
            name: bool(self.outputs[name]["result"].value)
            for name, step in self.index.steps.items()
            if isinstance(step, ConditionStep) and name in self.outputs
        }
        self._shared: dict[str, Any] = {}

    def shared(self, key: str, make: Any) -> Any:
        """Something that several steps of one decision need, read once."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def resolve(self, value: Value) -> Any:
        """The JSON that a value of a step stands for now."""
        return calls.resolve_value(value, self.execution["parameters"], self.outputs, self.facts)

    def move(self, name: str, status: StepStatus, **values: Any) -> Row:
        known = self.rows[name]
        row = records.move(self.tx, "step", known["id"], status, actor=SYSTEM.name, known=known, **values)
        self.rows[name] = row
        self.statuses[name] = row["status"]
        return row

    def end(self, name: str, status: StepStatus, **values: Any) -> None:
        if status == StepStatus.SKIPPED:
            self.move(name, status, **values)
            return
        values.setdefault("started_at", self.rows[name]["started_at"] or self.tx.now)
        self.move(name, status, ended_at=self.tx.now, **values)

    def succeed(self, name: str, given: dict[str, Any], **values: Any) -> None:
        self.end(name, StepStatus.SUCCEEDED, outputs=given, **values)
        self.outputs.keep(name, given)
        if isinstance(self.index.steps[name], ConditionStep):
            self.results[name] = bool(given["result"]["value"])


class _Outputs(Mapping[str, Mapping[str, Output]]):
    """What the steps that succeeded gave. Of many steps a decision needs few: each is read when it is asked for."""

    def __init__(self, tx: Tx, execution: str, statuses: Mapping[str, str]) -> None:
        self._tx, self._execution, self._statuses = tx, execution, statuses
        self._read: dict[str, dict[str, Output]] = {}

    def keep(self, name: str, given: dict[str, Any]) -> None:
        """Of a step that has just succeeded."""
        self._read[name] = {key: specs.as_output(value) for key, value in given.items()}

    def __getitem__(self, name: str) -> dict[str, Output]:
        if name not in self._read:
            if name not in self:
                raise KeyError(name)
            row = self._tx.fetch_one(_GIVEN, execution=self._execution, name=name)
            self.keep(name, (row or {}).get("outputs") or {})
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return self._statuses.get(str(name)) == StepStatus.SUCCEEDED

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._statuses if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_STEPS = Prepared(  # what a decision looks at; there may be thousands of steps
    sa.select(
        *(steps.c[name] for name in ("id", "name", "status", "run", "reason", "started_at")),
    ).where(steps.c.execution == sa.bindparam("execution"))
)
_GIVEN = Prepared(
    sa.select(steps.c.outputs).where(
        steps.c.execution == sa.bindparam("execution"), steps.c.name == sa.bindparam("name")
    )
)
_CACHED = Prepared(sa.select(cache).where(cache.c.key == sa.bindparam("key")))
_SET_JOB = Prepared(
    steps.update().where(steps.c.id == sa.bindparam("step")).values(job=sa.bindparam("new_job", type_=sa.String))
)


def start(view: View, name: str) -> bool:
    """Start one step; True when its end is known already, so that others may follow at once."""
    step = view.index.steps[name]
    try:
        if isinstance(step, ConditionStep):
            parameters = view.execution["parameters"]
            holds = calls.evaluate_condition(step.condition, parameters, view.outputs, view.facts)
            view.succeed(name, {"result": specs.json_output(holds)})
            return True
        if isinstance(step, FailStep):
            view.end(name, StepStatus.FAILED, reason=" ".join(str(view.resolve(part)) for part in step.message))
            return True
        if isinstance(step, ActionStep):
            row = view.move(name, StepStatus.RUNNING, started_at=view.tx.now)
            queue.ask(view.tx, "execution.action", row["id"])
            return False
        if isinstance(step, RegisterStep):
            view.move(name, StepStatus.RUNNING, started_at=view.tx.now)
            registrations.begin(view.ctx, view.tx, view.execution, view.rows[name], step, view.outputs)
            return False
        if isinstance(step, ScriptStep):
            return _start_script(view, name, step)
        return _start_job(view, name, step)
    except LooplineError as error:
        view.end(name, StepStatus.FAILED, reason=error.message)
        return True


def _start_script(view: View, name: str, step: ScriptStep) -> bool:
    if view.running < view.execution["max_parallel"]:
        view.running += 1
        row = view.move(name, StepStatus.RUNNING, started_at=view.tx.now)
        staging.begin(view.tx, execution=view.execution, row=row, step=step, resolve=view.resolve)
    return False


def _start_job(view: View, name: str, step: JobStep) -> bool:
    if view.running >= view.execution["max_parallel"] and not step.cache:
        return False
    ctx, tx, execution = view.ctx, view.tx, view.execution
    context = view.shared("context", lambda: specs.StepContext(ctx, tx, execution, view.index))
    arguments = calls.resolve_arguments(step, execution["parameters"], view.outputs, context.assets, view.facts)
    key = calls.cache_key(view.index.spec, step, context.code_digest(step), context.environment["key"], arguments)
    if step.cache and execution["cache"]:
        hit = tx.fetch_one(_CACHED, key=key)
        if hit is not None:
            view.succeed(name, hit["outputs"], cached_from=hit["execution"], cache_key=key)
            return True
    if view.running >= execution["max_parallel"]:
        return False
    view.running += 1
    row = view.move(name, StepStatus.RUNNING, started_at=tx.now, cache_key=key)
    job = jobs.submit(
        ctx,
        tx,
        owner="step",
        owner_id=row["id"],
        name=name,
        kind="step",
        spec=context.job_spec(step, arguments),
        actor=SYSTEM.name,
        max_tries=step.retries + 1,
        backoff_seconds=step.backoff_seconds,
    )
    tx.change(_SET_JOB, step=row["id"], new_job=job["id"])
    view.rows[name]["job"] = job["id"]
    return False
