"""What an endpoint's page shows: shares, rollouts with their figures, runs of tests, and how a shadow differs."""

from typing import Any

from loopline.control import endpoint_tests, endpoints, release_tests, rollouts, shadows, status
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.states import CheckupStatus
from loopline.errors import NotFound

ROLLOUTS, RUNS = 5, 3


def look(ctx: Context, actor: Actor, name: str) -> dict[str, Any]:
    """The values of ``endpoint.html``; raises ``NotFound``."""
    found = endpoints.show(ctx, actor, endpoint=name)
    counts = status.last_hour(ctx, name)
    total = sum(variant["weight"] for variant in found["variants"]) or 1.0
    for variant in found["variants"]:
        variant["share"] = variant["weight"] / total
        variant["ungated"] = variant["version"] is None
        variant["last_hour"] = counts[variant["name"]]
    return {
        **found,
        "at": ctx.clock.now(),
        "rollouts": [_rollout(row) for row in rollouts.list_(ctx, actor, endpoint=name, limit=ROLLOUTS)["items"]],
        "tests": endpoint_tests.list_(ctx, actor, endpoint=name)["items"],
        "runs": _runs(ctx, actor, name),
        "shadow": _shadow(ctx, actor, name),
    }


def _runs(ctx: Context, actor: Actor, name: str) -> list[dict[str, Any]]:
    """The newest runs of tests, with the newest one that failed: the others may all be of what came after it."""
    newest: list[dict[str, Any]] = release_tests.list_(ctx, actor, endpoint=name, limit=RUNS)["items"]
    failed = release_tests.list_(ctx, actor, endpoint=name, status=CheckupStatus.FAILED, limit=1)["items"]
    return newest + [run for run in failed if run["id"] not in {each["id"] for each in newest}]


def _rollout(row: dict[str, Any]) -> dict[str, Any]:
    plan = row["plan"] or {}
    to = f"{plan['model']} v{plan['number']}" if plan.get("number") else plan.get("blueprint") or row["variant"]
    return {**row, "to": to, "shares": plan.get("shares") or [], "decisions": row["decisions"] or []}


def _shadow(ctx: Context, actor: Actor, name: str) -> dict[str, Any] | None:
    try:
        return shadows.show(ctx, actor, endpoint=name)
    except NotFound:
        return None
