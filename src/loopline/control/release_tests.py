"""Runs of an endpoint's tests against one variant: before traffic moves to it, and whenever a person asks.

A rollout calls ``begin`` in the transaction in which it stops to be tested, and ``verdict`` until there is one. A run
asks over the gateways' private sockets, so that a variant without traffic is tested as callers would meet it, and
nothing of it counts in a metric. What each test found is kept as soon as it is over: a run that was cut off goes on
behind it.
"""

import time
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from loopline.control import endpoint_tests, endpoints, invoking, loads
from loopline.control.context import SYSTEM, Context
from loopline.domain import endpoint_tests as rules
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.domain.endpoint_tests import Failure
from loopline.domain.projects import EndpointTest
from loopline.domain.states import CheckupStatus, RolloutStatus, VariantStatus, is_terminal
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound, Unavailable
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import test_runs

STAGING = "staging"  # the stage before a version takes any traffic
BY_HAND = "by hand"
MANY_RUNS = 200  # of one variant are looked through
LOADTEST = "loadtest"
SLACK_SECONDS = 300.0  # beyond the tests' own limits: while other work is done, or control is started again
BUSY_SECONDS = 0.5  # until a request that an endpoint had no room for is asked again
GATEWAY_SECONDS = 10.0  # within which a gateway that died is there again


class Verdict(NamedTuple):
    """``status``: pending, passed or failed; ``reason`` in words; ``report``: what each test found."""

    status: str
    reason: str
    report: list[dict[str, Any]]


# -- for rollouts -----------------------------------------------------------------------------------------------------


def begin(ctx: Context, tx: Tx, rollout: Row, stage: str) -> str | None:
    """Ask for the tests that stand before a stage of a rollout; gives the run's id, or None when there are none.

    ``stage``: ``STAGING`` before the version takes any traffic, any other text before a later step.
    """
    wanted = [
        row
        for row in endpoint_tests.rows_of(tx, rollout["endpoint"])
        if stage == STAGING or rules.stages_of(endpoint_tests.test_of(row)) == "every"
    ]
    if not wanted:
        return None
    variant = records.get(tx, "variant", rollout["variant"])
    run = _create(tx, variant, wanted, stage=stage, actor=rollout["by"], rollout=rollout["id"])
    return str(run["id"])


def verdict(ctx: Context, tx: Tx, run: str) -> Verdict:
    """What a run says by now. One that has not ended long after it should have counts as failed."""
    row = records.get(tx, "test_run", run)
    report = row["results"] or []
    if row["status"] == CheckupStatus.PASSED:
        return Verdict("passed", str(row["reason"]), report)
    if is_terminal("test_run", row["status"]):
        return Verdict("failed", str(row["reason"]), report)
    if tx.now > row["deadline_at"]:
        return Verdict("failed", "the tests did not end in time", report)
    return Verdict("pending", f"{len(report)} of {len(row['tests'])} tests have run", report)


def unproven(tx: Tx, variant: Row) -> str | None:
    """What an endpoint's tests say against giving traffic to a variant that has none: one has failed, or was not run
    against it since it was made or changed. None when all passed, or there are none."""
    left = {row["name"]: row["changed_at"] for row in endpoint_tests.rows_of(tx, variant["endpoint"])}
    mine = (test_runs.c[name] == variant[name] for name in ("endpoint", "model", "number"))
    query = sa.select(test_runs).where(*mine, test_runs.c.variant == variant["name"], test_runs.c.stage != LOADTEST)
    for run in tx.rows(query.order_by(test_runs.c.created_at.desc(), test_runs.c.id.desc()).limit(MANY_RUNS)):
        for result in run["results"] or ():
            changed_at = left.get(result["test"])
            if changed_at is None or run["created_at"] < changed_at:
                continue
            if result["status"] != CheckupStatus.PASSED:
                return f"the test {result['test']} failed with the variant {variant['name']}: {run['reason']}"
            del left[result["test"]]
    command = f"loopline tests run {variant['endpoint']} --variant {variant['name']}"
    return f"the variant {variant['name']} has not passed the test {min(left)} yet; run it: {command}" if left else None


def _create(tx: Tx, variant: Row, tests: list[Row], *, stage: str, actor: str, rollout: str | None = None) -> Row:
    limit = sum(float(row["definition"]["timeout_seconds"]) for row in tests)
    row = records.create(
        tx,
        "test_run",
        actor=actor,
        endpoint=variant["endpoint"],
        variant=variant["name"],
        model=variant["model"],
        number=variant["number"],
        rollout=rollout,
        stage=stage,
        tests=[each["name"] for each in tests],
        results=[],
        deadline_at=tx.now + limit + SLACK_SECONDS,
        by=actor,
    )
    queue.ask(tx, "test_run.advance", row["id"])
    return row


# -- by hand ----------------------------------------------------------------------------------------------------------


def start(
    ctx: Context, actor: Actor, *, endpoint: str, variant: str | None = None, tests: list[str] | None = None
) -> dict[str, Any]:
    """Run an endpoint's tests (all, or those named) against a variant: by name, or the one that serves most."""
    with ctx.db.transaction() as tx:
        endpoints.endpoint_row(tx, endpoint)
        rows = endpoint_tests.rows_of(tx, endpoint)
        known = [row["name"] for row in rows]
        unknown = [name for name in tests or () if name not in known]
        if unknown:
            raise NotFound(f"the endpoint {endpoint!r} has no test {unknown[0]!r}{names.meant(unknown[0], known)}")
        wanted = [row for row in rows if tests is None or row["name"] in tests]
        if not wanted:
            raise Conflict(f"the endpoint {endpoint!r} has no tests; make one: loopline tests put, or [[tests]]")
        return _create(tx, _variant(tx, endpoint, variant), wanted, stage=BY_HAND, actor=actor.name)


def _variant(tx: Tx, endpoint: str, name: str | None) -> Row:
    row = endpoints.serving(tx, endpoint) if name is None else records.find(tx, "variant", endpoint=endpoint, name=name)
    if row is None:
        raise NotFound(f"the endpoint {endpoint!r} has no variant {name!r}" if name else f"nothing serves {endpoint!r}")
    if row["status"] not in (VariantStatus.READY, VariantStatus.WARM):
        raise Conflict(f"the variant {row['name']} of {endpoint} is {row['status']}; only one that runs can be tested")
    return row


def list_(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    number: int | None = None,
    rollout: str | None = None,
    status: str | None = None,
    limit: int = 50,
) -> dict[str, Any]:
    """Runs of tests and saved load tests, the newest first: of an endpoint, a version, a rollout."""
    query = sa.select(test_runs).order_by(test_runs.c.created_at.desc(), test_runs.c.id.desc()).limit(limit)
    for name, value in (("endpoint", endpoint), ("model", model), ("number", number), ("rollout", rollout)):
        if value is not None:
            query = query.where(test_runs.c[name] == value)
    if status is not None:
        query = query.where(test_runs.c.status == status)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query), "next": None}


def show(ctx: Context, actor: Actor, *, run: str) -> dict[str, Any]:
    """One run with what each test found."""
    with ctx.db.read() as tx:
        return records.get(tx, "test_run", run)


def save_load(
    ctx: Context, actor: Actor, *, endpoint: str, figures: dict[str, Any], limits: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Keep a load test that was made from outside with the version that answered it.

    ``figures``: as ``loopline loadtest --json`` prints them; ``limits``: as in a test of kind load. Raises
    ``InvalidInput`` when more than one version answered, or none.
    """
    try:
        measured = msgspec.to_builtins(msgspec.convert(figures, loads.Figures))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"figures: {error}") from None
    answered = [name for name in measured["variants"] if name != "none"]
    if len(answered) != 1:
        raise InvalidInput(f"figures: {len(answered)} variants answered; a load test is kept with one")
    given = {"name": LOADTEST, "kind": "load", "max_error_share": 1.0, **(limits or {})}
    try:
        test = msgspec.convert(given, EndpointTest)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"limits: {error}") from None
    result = _result(test, 1, rules.judge_load(test, measured), measured["seconds"], measured)
    with ctx.db.transaction() as tx:
        endpoints.endpoint_row(tx, endpoint)
        variant = records.find(tx, "variant", endpoint=endpoint, name=answered[0])
        if variant is None:
            raise NotFound(f"the endpoint {endpoint!r} has no variant {answered[0]!r}")
        row = records.create(
            tx,
            "test_run",
            actor=actor.name,
            endpoint=endpoint,
            variant=variant["name"],
            model=variant["model"],
            number=variant["number"],
            stage=LOADTEST,
            tests=[LOADTEST],
            results=[],
            by=actor.name,
        )
        records.move(tx, "test_run", row["id"], CheckupStatus.RUNNING, actor=actor.name, started_at=tx.now)
        return _end(tx, row["id"], [result], actor.name)


# -- running ----------------------------------------------------------------------------------------------------------


def advance(ctx: Context, run: str) -> float | None:
    """Task: run what is left of a run's tests, one after the other, and record what each found."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "test_run", run)
        if is_terminal("test_run", row["status"]):
            return None
        if row["status"] == CheckupStatus.PENDING:
            records.move(tx, "test_run", run, CheckupStatus.RUNNING, actor=SYSTEM.name, started_at=tx.now)
    results = list(row["results"] or ())
    done = {result["test"] for result in results}
    for name in row["tests"]:
        if name in done:
            continue
        if _is_over(ctx, row):
            _stop(ctx, run)
            return None
        result = _run_one(ctx, row, name)
        if result is not None:
            results.append(result)
            with ctx.db.transaction() as tx:
                if is_terminal("test_run", records.get(tx, "test_run", run)["status"]):
                    return None  # another worker took over while this one stood still, and has finished
                records.set(tx, "test_run", run, actor=SYSTEM.name, results=results)
    with ctx.db.transaction(durable=True) as tx:
        if is_terminal("test_run", records.get(tx, "test_run", run)["status"]):
            return None
        _end(tx, run, results, SYSTEM.name)
        if row["rollout"]:
            queue.ask(tx, "rollout.advance", row["rollout"])
    return None


def _is_over(ctx: Context, row: Row) -> bool:
    """Whether the rollout that asked has ended or turned back."""
    if row["rollout"] is None:
        return False
    with ctx.db.read() as tx:
        status = records.get(tx, "rollout", row["rollout"])["status"]
    return status == RolloutStatus.ROLLING_BACK or is_terminal("rollout", status)


def _stop(ctx: Context, run: str) -> None:
    with ctx.db.transaction() as tx:
        reason = "the rollout that asked for the tests is over"
        records.move(tx, "test_run", run, CheckupStatus.STOPPED, actor=SYSTEM.name, reason=reason, ended_at=tx.now)


def _end(tx: Tx, run: str, results: list[dict[str, Any]], actor: str) -> Row:
    """Record how a run ended."""
    failed = any(result["failed"] for result in results)
    status = CheckupStatus.FAILED if failed else CheckupStatus.PASSED
    return records.move(
        tx, "test_run", run, status, actor=actor, reason=rules.summary(results), results=results, ended_at=tx.now
    )


def _result(
    test: EndpointTest, checks: int, failed: list[Failure], seconds: float, figures: dict[str, Any]
) -> dict[str, Any]:
    return {
        "test": test.name,
        "kind": test.kind,
        "status": str(CheckupStatus.FAILED if failed else CheckupStatus.PASSED),
        "checks": checks,
        "failures": len(failed),
        "failed": [msgspec.to_builtins(each) for each in failed[: rules.MAX_FAILURES]],
        "seconds": round(seconds, 3),
        "figures": figures,
    }


def _run_one(ctx: Context, run: Row, name: str) -> dict[str, Any] | None:
    """One test's result; None when it was removed while the run went on."""
    with ctx.db.read() as tx:
        row = records.find(tx, "test", endpoint=run["endpoint"], name=name)
    if row is None:
        return None
    test = endpoint_tests.test_of(row)
    asking = _Asking(ctx, run["endpoint"], run["variant"], test)
    began = time.monotonic()
    run_kind = {"golden": _golden, "call": _calls, "load": _load}[test.kind]
    try:
        checks, failed, figures = run_kind(asking, test)
    except LooplineError as error:  # a gateway that is gone, a time-out: the version has not shown what it has to
        failed = [Failure("requests", "an answer", error.message)]
        checks, figures = 1, {}
    return _result(test, checks, failed, time.monotonic() - began, figures)


class _Asking:
    """Requests of one test, within its time."""

    def __init__(self, ctx: Context, endpoint: str, variant: str, test: EndpointTest) -> None:
        self.ctx, self.endpoint, self.variant = ctx, endpoint, variant
        self.end = time.monotonic() + test.timeout_seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def ask(self, body: bytes, content_type: str, **options: Any) -> rules.Reply:
        """One answer. An endpoint that has no room at the moment (429), and a gateway that dies, are asked again: that
        is not the version's fault. A function (``path``) answers by itself; what it asks the endpoint meanwhile goes to
        the variant."""
        variant, tested = (None, self.variant) if "path" in options else (self.variant, None)
        patience = time.monotonic() + min(self.left, GATEWAY_SECONDS)
        while True:
            began = time.perf_counter()
            try:
                answer = invoking.invoke(
                    self.ctx,
                    self.endpoint,
                    body,
                    content_type=content_type,
                    variant=variant,
                    tested=tested,
                    purpose="test",
                    timeout_seconds=max(self.left, 0.1),
                    **options,
                )
            except Unavailable:
                if time.monotonic() > patience:
                    raise
                time.sleep(BUSY_SECONDS)
                continue
            took = (time.perf_counter() - began) * 1000
            by = answer.headers.get("x-loopline-variant")
            if answer.status < 300 and variant not in (None, by):
                raise Conflict(f"{variant} was asked, and {by} answered")
            if answer.status != 429 or self.left < BUSY_SECONDS:
                return rules.read_reply(answer.status, answer.headers, answer.body, took)
            time.sleep(BUSY_SECONDS)


def _golden(asking: _Asking, test: EndpointTest) -> tuple[int, list[Failure], dict[str, Any]]:
    """Ask every case."""
    wrong: list[Failure] = []
    right = asked = 0
    for number, case in enumerate(test.cases, 1):
        if asking.left <= 0:
            late = Failure("time", f"{len(test.cases)} cases within {test.timeout_seconds:g} s", f"{asked} cases")
            return asked + 1, [late, *wrong], {"cases": asked, "right": right}
        body, content_type = rules.request_body(case.request, case.content_type)
        found = rules.judge_case(test, number, case, asking.ask(body, content_type))
        asked += 1
        right += not found
        wrong += found
    too_few = rules.judge_cases(test, right, asked)
    return asked, [*too_few, *wrong] if too_few else [], {"cases": asked, "right": right}


def _calls(asking: _Asking, test: EndpointTest) -> tuple[int, list[Failure], dict[str, Any]]:
    """Make the calls, one after the other, until one fails."""
    times: list[float] = []
    for number, call in enumerate(test.calls, 1):
        if asking.left <= 0:
            late = Failure("time", f"{len(test.calls)} calls within {test.timeout_seconds:g} s", f"{number - 1} calls")
            return number, [late], {"milliseconds": times}
        body, content_type = rules.request_body(call.body, call.content_type)
        route = {"path": call.path} if call.path else {}
        reply = asking.ask(body, content_type, headers=call.headers, method=call.method, **route)
        times.append(round(reply.milliseconds, 3))
        found = rules.judge_call(number, call, reply)
        if found:
            return number, found, {"milliseconds": times}
    return len(test.calls), [], {"milliseconds": times}


def _load(asking: _Asking, test: EndpointTest) -> tuple[int, list[Failure], dict[str, Any]]:
    """Put the load on, in a process of its own."""
    figures = loads.measure(asking.ctx, asking.endpoint, asking.variant, test)
    others = sorted(figures["variants"].keys() - {asking.variant, "none"})
    if others:
        raise Conflict(f"{asking.variant} was asked, and {others[0]} answered")
    return 1, rules.judge_load(test, figures), figures
