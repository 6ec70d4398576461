"""What runs next in an execution, decided from the statuses of its steps and what its conditions gave alone."""

from collections.abc import Collection, Mapping

from msgspec import Struct

from loopline.domain.pipelines import Index
from loopline.domain.states import TERMINAL, ExecutionStatus, StepStatus
from loopline.errors import InvalidInput

_ENDED = TERMINAL["step"]


class Decision(Struct, frozen=True):
    """``start``: steps that may start now, in order. ``skip``: (step, reason) that will never run.

    ``status``: how the execution ended once the skipped ones are recorded; None while it goes on.
    """

    start: tuple[str, ...]
    skip: tuple[tuple[str, str], ...]
    status: ExecutionStatus | None


def decide(index: Index, statuses: Mapping[str, str], results: Mapping[str, bool]) -> Decision:
    """What follows from the steps' statuses and from the ``results`` of those condition steps that succeeded.

    A step starts when all it needs (data, ``after``, conditions above it) has succeeded and its branches are taken.
    It is skipped when a branch is not taken, or when something it needs failed, was stopped or was itself skipped; what
    does not need it goes on. The execution ends when every step has: Failed if one failed, else Stopped if one was
    stopped, else Succeeded.
    """
    start: list[str] = []
    skip: list[tuple[str, str]] = []
    now: dict[str, str] = dict(statuses)
    going_on = False
    for name, needs, parents in index.rows:
        if now[name] != StepStatus.PENDING:
            going_on = going_on or now[name] not in _ENDED
            continue
        if reason := _why_not(needs, parents, now, results):
            skip.append((name, reason))
            now[name] = StepStatus.SKIPPED
        else:
            going_on = True
            if all(now[need] == StepStatus.SUCCEEDED for need in needs):
                start.append(name)
    return Decision(tuple(start), tuple(skip), None if going_on else _ending(now))


def _why_not(
    needs: tuple[str, ...], parents: tuple[tuple[str, bool], ...], now: Mapping[str, str], results: Mapping[str, bool]
) -> str | None:
    for condition, branch in parents:
        if now[condition] == StepStatus.SUCCEEDED and results[condition] is not branch:
            return f"{condition} was {'false' if branch else 'true'}"
    for need in needs:
        status = now[need]
        if status != StepStatus.SUCCEEDED and status in _ENDED:
            return f"{need} {'failed' if status == StepStatus.FAILED else f'was {status.lower()}'}"
    return None


def _ending(now: Mapping[str, str]) -> ExecutionStatus:
    reached = set(now.values())
    if StepStatus.FAILED in reached:
        return ExecutionStatus.FAILED
    return ExecutionStatus.STOPPED if StepStatus.STOPPED in reached else ExecutionStatus.SUCCEEDED


def unselected(index: Index, selected: Collection[str]) -> dict[str, bool]:
    """The steps that are not to run, when only ``selected`` are: True where a selected one needs what it gave before.

    Raises ``InvalidInput`` for a name that is no step's, or for none at all.
    """
    if not selected:
        raise InvalidInput("select at least one step")
    unknown = [name for name in selected if name not in index.steps]
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is no step of this pipeline; its steps: {', '.join(index.order)}")
    needed = {need for name in selected for need in index.needs[name]}
    return {name: name in needed for name in index.order if name not in selected}
