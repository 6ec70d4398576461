"""How ``[rollout]``, ``[comparison]`` and ``[endpoint] sticky`` must fit together, beyond types and ranges."""

import re
from typing import TYPE_CHECKING

from loopline.domain.projects import Loop
from loopline.domain.tomllines import Path

if TYPE_CHECKING:
    from loopline.domain.looprules import Say

_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ONE_FOR_ALL = frozenset(("host", "content-length", "content-type", "transfer-encoding", "connection", "expect"))


def check(loop: Loop, present: frozenset[Path], say: "Say", *, deploys: bool) -> None:
    """Report what is wrong. ``present``: the paths that the file has; ``deploys``: whether it has an endpoint."""
    _steps(loop, say)
    for key, strategy in (("steps", "canary"), ("step_percent", "linear"), ("batch", "rolling")):
        if ("rollout", key) in present and loop.rollout.strategy != strategy:
            message = f"{key} means nothing to the strategy {loop.rollout.strategy}"
            say(("rollout", key), message, f'it belongs to strategy = "{strategy}"', "warning")
    for table in ("rollout", "comparison"):
        if (table,) in present and not deploys:
            say((table,), f"[{table}] moves no traffic: there is no endpoint", 'add [endpoint] with name = "..."')
    _comparison(loop, present, say)
    sticky = loop.endpoint.sticky if loop.endpoint else ""
    if sticky and (not _HEADER.fullmatch(sticky) or sticky.lower() in _ONE_FOR_ALL):
        say(("endpoint", "sticky"), f"callers cannot be told apart by the header {sticky!r}", 'write e.g. "x-user-id"')


def _steps(loop: Loop, say: "Say") -> None:
    steps = loop.rollout.steps
    for position, step in enumerate(steps):
        path = ("rollout", "steps", position)
        if not 0 < step < 100:
            say(path, f"a step of {step:g} percent", "steps lie above 0 and below 100; 100 follows by itself")
        elif position and step <= steps[position - 1]:
            say(path, f"{step:g} follows {steps[position - 1]:g}", "write the steps in ascending order, e.g. [5, 50]")
    if loop.rollout.strategy == "canary" and not steps:
        say(("rollout", "steps"), "a canary without steps", 'write e.g. steps = [5, 50], or strategy = "all-at-once"')


def _comparison(loop: Loop, present: frozenset[Path], say: "Say") -> None:
    if ("comparison",) in present and not loop.comparison.metric:
        say(("comparison", "metric"), "[comparison] does not say what is compared", 'write e.g. metric = "error_rate"')
    if loop.comparison.metric and loop.rollout.strategy in ("all-at-once", "blue-green"):
        message = f"{loop.rollout.strategy} leaves nothing to compare with: all traffic moves in one step"
        say(("comparison", "metric"), message, 'write [rollout] strategy = "canary"')
