"""Shifts: how a rollout moves on. Servers start, tests run, traffic moves, and what it shows is judged, step by step.

Weights, statuses and alias commit together with a numbered snapshot; a step counts from the moment at which every live
gateway has acknowledged that number. The predecessor stays warm, which is why the way back takes under a second.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from loopline.control import (
    aliases,
    comparisons,
    compilations,
    endpoint_tests,
    endpoints,
    fleets,
    processes,
    release_tests,
    rollbacks,
    servables,
    shadows,
    snapshots,
    traffic,
    variants,
)
from loopline.control.context import SYSTEM, Context
from loopline.domain import rollouts as rules
from loopline.domain.states import AlarmStatus, RolloutStatus, ServableStatus, VariantStatus
from loopline.errors import LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import test_runs

POLL_SECONDS = 0.1
DRAIN_SECONDS = 1.0  # between a gateway's switch and the end of a server that it has left
COMPARE_SECONDS = 1.0
DEATHS = 3  # of a server that loads, by itself or by force, after which it is given up


def advance(ctx: Context, rollout_id: str) -> float | None:
    """Task: move a rollout one status on, or say when to look again."""
    with ctx.db.read() as tx:
        row = records.get(tx, "rollout", rollout_id)
    steps: dict[str, Callable[[Context, Row], float | None]] = {
        RolloutStatus.PENDING: _prepare,
        RolloutStatus.STARTING: _await_servers,
        RolloutStatus.TESTING: _await_tests,
        RolloutStatus.SHIFTING: _await_gateways,
        RolloutStatus.BAKING: _bake,
        RolloutStatus.ROLLING_BACK: _await_return,
    }
    step = steps.get(row["status"])
    if step is None:
        return None
    reason = _overdue(ctx, row)
    return step(ctx, row) if reason is None else _give_up(ctx, row, reason)


def _overdue(ctx: Context, row: Row) -> str | None:
    """That a rollout has taken longer than it may; None when it has not, or there is no way back."""
    limit = (row["plan"] or {}).get("max_seconds")
    if limit is None or row["predecessor"] is None or row["status"] == RolloutStatus.ROLLING_BACK:
        return None
    return f"it was not over within {limit:g} s" if ctx.clock.now() - row["created_at"] > limit else None


def _give_up(ctx: Context, row: Row, reason: str) -> float | None:
    if row["step"] == 0 and row["status"] in (RolloutStatus.PENDING, RolloutStatus.STARTING):
        _fail(ctx, row, reason)
        return None
    return _turn_back(ctx, row, reason, row["decisions"])


# -- servers ----------------------------------------------------------------------------------------------------------


def _wanted(row: Row, step: int) -> int:
    """How many servers the new version has at a step: all of them, unless they replace the old ones in batches."""
    plan = row["plan"]
    if row["strategy"] != "rolling" or len(plan["shares"]) < 2:
        return int(plan["servers"])
    return rules.batches(int(plan["servers"]), int(plan.get("batch", 1)))[step]


def _prepare(ctx: Context, row: Row) -> float | None:
    """Lay out the model and ask the supervisor for the servers of the first step."""
    with ctx.db.read() as tx:
        coming = variants.arriving(tx, row)
        made_of = [servables.of_variant(tx, variant) for variant in coming]
    variant = coming[0]
    if variant["shadow"] is not None and row["plan"]["shares"]:
        shadows.finish(ctx, variant)
    if any(servable and servable["status"] == ServableStatus.PENDING for servable in made_of):
        return servables.WAIT_SECONDS
    if made_of[0] is None and compilations.is_going_on(ctx, variant["version"]):
        return compilations.WAIT_SECONDS  # it ends by itself, and these servers are to have what comes of it
    try:
        entries = {each["id"]: fleets.grown(ctx, each, _count(row, each)) for each in coming}
    except (LooplineError, OSError) as error:
        _fail(ctx, row, f"{type(error).__name__}: {error}")
        return None
    with ctx.db.transaction() as tx:
        for each in coming:
            count = row["plan"]["servers"] if each is variant else each["instances"]
            records.set(tx, "variant", each["id"], actor=SYSTEM.name, server=entries[each["id"]], instances=count)
        records.move(tx, "rollout", row["id"], RolloutStatus.STARTING, actor=SYSTEM.name, step_at=tx.now)
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
    processes.write(ctx)
    return POLL_SECONDS


def _count(row: Row, variant: Row) -> int:
    """How many servers a variant starts with."""
    return _wanted(row, 0) if variant["id"] == row["variant"] else int(variant["instances"])


def _fail(ctx: Context, row: Row, reason: str) -> None:
    """The new version never took traffic: say why, and stop its servers."""
    with ctx.db.transaction() as tx:
        records.move(tx, "rollout", row["id"], RolloutStatus.FAILED, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
        for variant in variants.arriving(tx, row):
            if variant["status"] == VariantStatus.STARTING:
                records.move(tx, "variant", variant["id"], VariantStatus.FAILED, actor=SYSTEM.name, reason=reason)
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
    processes.write(ctx)


def _await_servers(ctx: Context, row: Row) -> float | None:
    with ctx.db.read() as tx:
        coming = variants.arriving(tx, row)
    found = [state for variant in coming for state in fleets.states(variant)]
    failed = next((state for state in found if state["state"] == "failed"), None)
    limit = float(row["plan"].get("start_timeout_seconds", 120))
    problem = None if failed is None else f"the new version does not start: {failed.get('error')}"
    if problem is None and not all(state["state"] == "ready" for state in found):
        how, times = next((death for each in coming if (death := fleets.death(ctx, each))), ("", 0))
        if times >= DEATHS:
            problem = f"the new version does not start: {how}, {times} times; see: loopline logs {row['endpoint']}"
        elif ctx.clock.now() - row["step_at"] <= limit:
            decision = _bad(ctx, row)
            return POLL_SECONDS if decision is None else _go_back(ctx, row, row["step"] - 1, decision)
        else:
            problem = f"the new version was not ready within {limit:g} s" + (f": {how}" if how else "")
    if problem is not None:
        if row["step"] == 0:
            _fail(ctx, row, problem)
            return None
        return _turn_back(ctx, row, problem, row["decisions"])
    with ctx.db.transaction() as tx:
        for variant in coming:
            if variant["status"] != VariantStatus.READY:
                records.move(tx, "variant", variant["id"], VariantStatus.READY, actor=SYSTEM.name, warm_until=None)
        if row["kind"] == "rollback":
            left = records.get(tx, "variant", row["predecessor"])
            rollbacks.leave(tx, left, row["by"], row["reason"])
            _shift(ctx, tx, row)
        elif row["step"] == 0 and endpoint_tests.rows_of(tx, row["endpoint"]):
            # Reachable by name and with no traffic; the tests begin once every gateway knows it.
            reachable = variants.snapshot(ctx, tx, row)
            records.move(tx, "rollout", row["id"], RolloutStatus.TESTING, actor=SYSTEM.name, **reachable)
        else:
            _test_or_shift(ctx, tx, row)
    return POLL_SECONDS / 2


# -- tests ------------------------------------------------------------------------------------------------------------


def _stage(row: Row, step: int) -> str:
    """What a run of tests is called that stands before a step."""
    if step == 0:
        return release_tests.STAGING
    return f"before {row['plan']['shares'][step]:g} %"


def _await_tests(ctx: Context, row: Row) -> float | None:
    """Run the tests that stand before the row's step, and move traffic or turn back by their verdict."""
    if not snapshots.acknowledged(ctx, row["snapshot"]):
        return POLL_SECONDS / 2
    stage = _stage(row, row["step"])
    with ctx.db.transaction() as tx:
        query = sa.select(test_runs.c.id).where(test_runs.c.rollout == row["id"], test_runs.c.stage == stage)
        found = tx.row(query)
        run = release_tests.begin(ctx, tx, row, stage) if found is None else str(found["id"])
        if run is None:  # the tests have been removed meanwhile
            _shift(ctx, tx, row)
            return POLL_SECONDS / 2
        verdict = release_tests.verdict(ctx, tx, run)
        if verdict.status == "passed":
            decisions = [*row["decisions"], _tested(row, tx.now, verdict, run)]
            _shift(ctx, tx, {**row, "decisions": decisions})
            return POLL_SECONDS / 2
    if verdict.status == "failed":
        decisions = [*row["decisions"], _tested(row, ctx.clock.now(), verdict, run)]
        share = _next_share(row)
        return _turn_back(ctx, row, f"tests failed before {share}: {verdict.reason}", decisions)
    decision = _bad(ctx, row)
    return POLL_SECONDS if decision is None else _go_back(ctx, row, row["step"] - 1, decision)


def _test_or_shift(ctx: Context, tx: Tx, row: Row, reason: str | None = None) -> None:
    """Begin the tests that stand before the row's step; without any, move traffic at once."""
    if release_tests.begin(ctx, tx, row, _stage(row, row["step"])) is None:
        _shift(ctx, tx, row, reason)
        return
    changed = {"step": row["step"], "decisions": row["decisions"]}
    records.move(tx, "rollout", row["id"], RolloutStatus.TESTING, actor=SYSTEM.name, **changed)


def _bad(ctx: Context, row: Row) -> rules.Decision | None:
    """Why a version must go that has taken traffic in an earlier step and waits for the next one; None if it need not.

    A rollback is the way out itself, and is not judged.
    """
    if row["step"] == 0 or row["kind"] != "release":
        return None
    decision = _judge(ctx, row, ctx.clock.now())[0]
    return decision if decision.verdict == "back" else None


def _next_share(row: Row) -> str:
    shares = row["plan"]["shares"]
    return f"{shares[row['step']]:g} % of the traffic" if shares else "it was used"


def _tested(row: Row, now: float, verdict: release_tests.Verdict, run: str) -> dict[str, Any]:
    shares = row["plan"]["shares"]
    share = shares[row["step"] - 1] if shares and row["step"] else 0.0
    figures = {"test_run": run}
    verdict_of = {"passed": "go", "failed": "back"}[verdict.status]
    return {"at": now, "share": share, "verdict": verdict_of, "reason": f"tests: {verdict.reason}", "figures": figures}


# -- traffic ----------------------------------------------------------------------------------------------------------


def _shift(ctx: Context, tx: Tx, row: Row, reason: str | None = None) -> None:
    """Give the new version what its step says, in the transaction that says so to the gateways."""
    plan = row["plan"]
    if row["strategy"] == "shadow":
        shadows.begin(tx, records.get(tx, "variant", row["variant"]), plan["copy_percent"], row["by"])
    elif plan["shares"]:
        variants.shift(tx, row, plan["shares"][row["step"]])
        if row["step"] + 1 == len(plan["shares"]):
            for identifier, percent in (plan.get("copies") or {}).items():
                shadows.begin(tx, records.get(tx, "variant", identifier), percent, row["by"])
        if row["strategy"] == "rolling" and row["step"] + 1 < len(plan["shares"]):
            before = records.get(tx, "variant", row["predecessor"])
            fleets.shrink(tx, before, max(int(plan["servers_before"]) - _wanted(row, row["step"]), 1))
    records.move(
        tx,
        "rollout",
        row["id"],
        RolloutStatus.SHIFTING,
        actor=SYSTEM.name,
        reason=reason,
        step=row["step"],
        decisions=row["decisions"],
        **variants.snapshot(ctx, tx, row),
    )


def _await_gateways(ctx: Context, row: Row) -> float | None:
    if not snapshots.acknowledged(ctx, row["snapshot"]):
        return POLL_SECONDS / 2
    if row["kind"] != "release" or row["predecessor"] is None:
        _succeed(ctx, row)
        return None
    with ctx.db.transaction() as tx:
        snapshots.record_acknowledgements(ctx, tx)
        records.move(tx, "rollout", row["id"], RolloutStatus.BAKING, actor=SYSTEM.name, step_at=tx.now)
    return POLL_SECONDS


def _judge(ctx: Context, row: Row, now: float) -> tuple[rules.Decision, Row, Row]:
    """What the traffic since ``step_at`` shows; gives the two variants with it."""
    with ctx.db.read() as tx:
        variant = records.get(tx, "variant", row["variant"])
        predecessor = records.get(tx, "variant", row["predecessor"])
        candidate = traffic.side(tx, row["endpoint"], variant["name"], row["step_at"], now)
        other = traffic.side(tx, row["endpoint"], predecessor["name"], row["step_at"], now)
        alarm = _alarm(tx, row)
    plan = row["plan"]
    if row["step"] + 1 == len(plan["shares"]) and "last_bake_seconds" in plan:
        plan = {**plan, "bake_seconds": plan["last_bake_seconds"]}
    decision = rules.judge(rules.rules_from(plan), candidate, other, now - row["step_at"])
    if alarm is not None:
        decision = rules.Decision("back", f"the alarm {alarm['name']} fired: {alarm['reason']}", decision.figures)
    return decision, variant, predecessor


def _alarm(tx: Tx, row: Row) -> Row | None:
    """An alarm that fires among those that the rollout was told to heed."""
    found = (records.find(tx, "alarm", name=name) for name in row["plan"].get("alarms") or ())
    return next((alarm for alarm in found if alarm and alarm["status"] == AlarmStatus.ALARM), None)


def _bake(ctx: Context, row: Row) -> float | None:
    now = ctx.clock.now()
    decision, variant, predecessor = _judge(ctx, row, now)
    if decision.verdict == "back":
        return _go_back(ctx, row, row["step"], decision)
    _release_left(ctx, row, predecessor, now)
    if decision.verdict == "wait":
        return POLL_SECONDS * 2
    step = row["step"] + 1
    if row["step"] == 0 and (row["plan"].get("comparison") or {}).get("metric") and step < len(row["plan"]["shares"]):
        found = comparisons.decide(ctx, row, variant, predecessor, now)
        if found.verdict == "wait":
            return COMPARE_SECONDS
        decision = rules.Decision(found.verdict, found.reason, {**decision.figures, **found.figures})
        if decision.verdict == "back":
            return _go_back(ctx, row, row["step"], decision)
        if found.promote:
            step = len(row["plan"]["shares"]) - 1
    decisions = [*row["decisions"], _decided(row, now, row["step"], decision)]
    if step >= len(row["plan"]["shares"]):
        _succeed(ctx, {**row, "decisions": decisions})
        return None
    return _next_step(ctx, {**row, "decisions": decisions}, step, decision.reason)


def _next_step(ctx: Context, row: Row, step: int, reason: str) -> float | None:
    """Go on to a step: with more servers first, with tests first, or at once."""
    wanted = _wanted(row, step)
    with ctx.db.read() as tx:
        variant = records.get(tx, "variant", row["variant"])
    if row["strategy"] == "rolling" and len(fleets.staying(variant)) < wanted:
        try:
            entries = fleets.grown(ctx, variant, wanted)
        except (LooplineError, OSError) as error:
            return _turn_back(ctx, row, f"{type(error).__name__}: {error}", row["decisions"])
        with ctx.db.transaction() as tx:
            records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries)
            changed = {"step": step, "step_at": tx.now, "decisions": row["decisions"]}
            records.move(tx, "rollout", row["id"], RolloutStatus.STARTING, actor=SYSTEM.name, **changed)
        processes.write(ctx)
        return POLL_SECONDS
    with ctx.db.transaction() as tx:
        _test_or_shift(ctx, tx, {**row, "step": step}, reason)
    return POLL_SECONDS / 2


def _release_left(ctx: Context, row: Row, predecessor: Row, now: float) -> None:
    """End the old servers that this step has replaced, once what they were asked has been answered."""
    if now - row["step_at"] < DRAIN_SECONDS or not any(entry.get("leaving") for entry in predecessor["server"] or ()):
        return
    with ctx.db.transaction() as tx:
        fleets.let_go(tx, records.get(tx, "variant", predecessor["id"]))
        tx.after_commit.append(lambda: processes.write(ctx))


def _decided(row: Row, now: float, step: int, decision: rules.Decision) -> dict[str, Any]:
    return {
        "at": now,
        "share": row["plan"]["shares"][step],
        "verdict": decision.verdict,
        "reason": decision.reason,
        "figures": decision.figures,
    }


def _go_back(ctx: Context, row: Row, step: int, decision: rules.Decision) -> float:
    decisions = [*row["decisions"], _decided(row, ctx.clock.now(), step, decision)]
    return _turn_back(ctx, row, f"at {row['plan']['shares'][step]:g} %: {decision.reason}", decisions)


def _turn_back(ctx: Context, row: Row, reason: str, decisions: list[dict[str, Any]]) -> float:
    rollbacks.turn_back(ctx, row, reason, decisions)
    return POLL_SECONDS / 2


# -- the end ----------------------------------------------------------------------------------------------------------


def _succeed(ctx: Context, row: Row) -> None:
    with ctx.db.transaction(durable=True) as tx:
        variant = records.get(tx, "variant", row["variant"])
        decisions = row["decisions"]
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.SUCCEEDED,
            actor=SYSTEM.name,
            reason=decisions[-1]["reason"] if decisions else row["reason"],
            decisions=decisions,
            ended_at=tx.now,
        )
        endpoint = endpoints.endpoint_row(tx, row["endpoint"])
        if row["plan"]["shares"]:
            if variant["model"]:
                aliases.set_alias_in(tx, variant["model"], aliases.CHAMPION, variant["number"], actor=row["by"])
            for left in _left(tx, row):
                fleets.let_go(tx, left)
                if left["weight"] == 0:
                    variants.leave_warm(tx, left, SYSTEM.name, variants.keep_seconds(endpoint))
            if row["plan"].get("settings"):
                settings = {**(endpoint["settings"] or {}), **row["plan"]["settings"]}
                records.set(tx, "endpoint", endpoint["id"], actor=row["by"], settings=settings)
                snapshots.write(ctx, tx, actor=row["by"], reason=f"settings of {endpoint['name']} changed")
        endpoints.status_after(tx, endpoint, SYSTEM.name)
        tx.after_commit.append(lambda: processes.write(ctx))


def _left(tx: Tx, row: Row) -> list[Row]:
    """The variants that a rollout has replaced; a blueprint replaces whatever there was, copies' receivers too."""
    coming = {variant["id"] for variant in variants.arriving(tx, row)}
    if not row["plan"].get("group"):
        gone = {row["predecessor"], *(row["plan"].get("before") or ())} - {None, *coming}
        return [records.get(tx, "variant", identifier) for identifier in sorted(gone)]
    left = [each for each in variants.of_endpoint(tx, row["endpoint"]) if each["id"] not in coming]
    for each in left:
        if each["shadow"]:
            records.set(tx, "variant", each["id"], actor=SYSTEM.name, shadow=None)
    return left


def _await_return(ctx: Context, row: Row) -> float | None:
    """When every gateway has left the version, its servers stop."""
    if not snapshots.acknowledged(ctx, row["snapshot"]):
        return POLL_SECONDS / 2
    if ctx.clock.now() - row["step_at"] < DRAIN_SECONDS:
        return DRAIN_SECONDS / 4
    with ctx.db.transaction() as tx:
        for variant in variants.arriving(tx, row):
            if variant["status"] in (VariantStatus.STARTING, VariantStatus.READY, VariantStatus.WARM):
                stopped = VariantStatus.STOPPED
                records.move(tx, "variant", variant["id"], stopped, actor=SYSTEM.name, reason=row["reason"])
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.ROLLED_BACK,
            actor=SYSTEM.name,
            reason=row["reason"],
            ended_at=tx.now,
        )
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
        snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"rollout {row['id']} is over")
        tx.after_commit.append(lambda: processes.write(ctx))
    return None
