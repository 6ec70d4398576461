"""When an alarm fires: M of the last N periods on the wrong side of a threshold, and what silence means.

The rule is CloudWatch's, from its user guide ("Configuring how CloudWatch alarms treat missing data", "Avoiding
premature transitions to alarm state"), so that an alarm written for it means the same here:

* More periods than N are looked at, the evaluation range: N + `EXTRA_PERIODS` (the guide's example has 5 for N = 3), as
  far as `EXTRA_SECONDS` hold them. The guide leaves open how many; with long periods silence would be told hours late.
* With N or more real datapoints in the range, the latest N of them decide; `missing` is not needed.
* With fewer, the gaps are filled as rarely as possible: N - real times. `breaching` and `not_breaching` fill in such a
  datapoint. `ignore` and `missing` fill in nothing: the real datapoints decide where they can; where there are none,
  `ignore` keeps the state and `missing` gives INSUFFICIENT_DATA.
* Only breaching datapoints but fewer than M: once the oldest is M periods old, `missing` gives ALARM; before that it
  gives INSUFFICIENT_DATA (the next datapoint may be good). `ignore` keeps the state in both cases.

Also here: when an action that an alarm asked for may be taken (cool-down and budget).
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from loopline.domain.latency import Histogram
from loopline.domain.states import AlarmStatus
from loopline.errors import InvalidInput

Missing = Literal["missing", "breaching", "not_breaching", "ignore"]
EXTRA_PERIODS, EXTRA_SECONDS = 2, 600
LONGEST_SECONDS = 86_400
STATISTICS = ("Average", "Sum", "Minimum", "Maximum", "SampleCount")
_PERCENTILE = re.compile(r"p(100|\d{1,2}(?:\.\d{1,10})?)")
_COMPARISONS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    ">": (operator.gt, "above"),
    ">=": (operator.ge, "at or above"),
    "<": (operator.lt, "below"),
    "<=": (operator.le, "at or below"),
}


def percentile_of(statistic: str) -> float | None:
    """99.9 for "p99.9"; None for the other statistics; InvalidInput for anything else."""
    if statistic in STATISTICS:
        return None
    match = _PERCENTILE.fullmatch(statistic)
    if match is None:
        raise InvalidInput(f"{statistic!r} is no statistic: use one of {', '.join(STATISTICS)}, or p0 to p100.")
    return float(match[1])


@dataclass(frozen=True, slots=True)
class Datapoint:
    """One period of a metric: `at` is its start, `value` the alarm's statistic, `samples` how many it sums up."""

    at: float
    value: float
    samples: int = 1


def datapoint(at: float, statistic: str, values: Histogram) -> Datapoint | None:
    """The statistic of one period's values; None when there are none (a missing datapoint)."""
    percent = percentile_of(statistic)
    if values.count == 0:
        return None
    if percent is not None:
        value = values.percentile(percent)
    else:
        value = {
            "Average": values.mean,
            "Sum": values.total,
            "Minimum": values.minimum,
            "Maximum": values.maximum,
            "SampleCount": float(values.count),
        }[statistic]
    return None if value is None else Datapoint(at=at, value=value, samples=values.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What to watch. `low_samples = "ignore"` keeps the state while a percentile rests on too few samples."""

    metric: str
    threshold: float
    comparison: Literal[">", ">=", "<", "<="] = ">"
    statistic: str = "Average"
    period_seconds: int = 60
    evaluation_periods: int = 1
    datapoints_to_alarm: int | None = None
    missing: Missing = "missing"
    low_samples: Literal["evaluate", "ignore"] = "evaluate"

    def __post_init__(self) -> None:
        percentile_of(self.statistic)
        needed = self.datapoints_to_alarm
        problems = [
            (self.comparison not in _COMPARISONS, f"comparison must be one of {', '.join(_COMPARISONS)}"),
            (self.missing not in get_args(Missing), f"missing must be one of {', '.join(get_args(Missing))}"),
            (self.low_samples not in ("evaluate", "ignore"), "low_samples must be evaluate or ignore"),
            (not math.isfinite(self.threshold), "threshold must be a finite number"),
            (self.period_seconds < 1, "period_seconds must be 1 or more"),
            (self.evaluation_periods < 1, "evaluation_periods must be 1 or more"),
            (
                self.period_seconds * self.evaluation_periods > LONGEST_SECONDS,
                f"period_seconds x evaluation_periods must not exceed a day ({LONGEST_SECONDS} seconds)",
            ),
            (
                needed is not None and not 1 <= needed <= self.evaluation_periods,
                "datapoints_to_alarm must lie between 1 and evaluation_periods",
            ),
        ]
        for wrong, cure in problems:
            if wrong:
                raise InvalidInput(f"The alarm on {self.metric} cannot be evaluated: {cure}.")

    @property
    def needed(self) -> int:
        """M: breaching datapoints that make an alarm; N unless said otherwise."""
        return self.evaluation_periods if self.datapoints_to_alarm is None else self.datapoints_to_alarm

    @property
    def range_periods(self) -> int:
        """How many periods before now are looked at."""
        return self.evaluation_periods + min(EXTRA_PERIODS, EXTRA_SECONDS // self.period_seconds)

    def breaches(self, value: float) -> bool:
        """Whether this value is on the wrong side of the threshold."""
        return _COMPARISONS[self.comparison][0](value, self.threshold)

    @property
    def low_sample_limit(self) -> float:
        """A percentile p needs 10 / (1 - p) samples, below the median 10 / p (1,000 for p99); 0 for the others."""
        percent = percentile_of(self.statistic)
        if percent is None:
            return 0.0
        rare = min(percent, 100.0 - percent) / 100.0
        return math.inf if rare <= 0.0 else round(10.0 / rare, 6)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an alarm's state should be now; `datapoints` are those that decided, oldest first."""

    state: AlarmStatus
    reason: str
    datapoints: tuple[Datapoint, ...]
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for storage and answers."""
        return {
            "state": self.state.value,
            "reason": self.reason,
            "changed": self.changed,
            "datapoints": [
                {"at": point.at, "value": point.value, "samples": point.samples} for point in self.datapoints
            ],
        }


def evaluate(
    alarm: Alarm,
    datapoints: Iterable[Datapoint],
    previous_state: AlarmStatus = AlarmStatus.INSUFFICIENT_DATA,
    *,
    now: float,
) -> Evaluation:
    """The alarm's state at `now` (seconds since the epoch), looking at whole periods that have ended by then.

    `datapoints` may come in any order and reach further back or forward than needed; two for one period are
    InvalidInput. A new alarm's previous state is INSUFFICIENT_DATA.
    """
    real = _recent(alarm, datapoints, now)
    deciding = [point for _, point in real][: alarm.evaluation_periods]
    state, reason = _decide(alarm, real, deciding)
    kept = AlarmStatus(previous_state)
    if state is None:
        reason = f"{reason} The state stays {kept.value}."
    final = kept if state is None else state
    return Evaluation(final, reason, tuple(reversed(deciding)), changed=final != kept)


def _recent(alarm: Alarm, datapoints: Iterable[Datapoint], now: float) -> list[tuple[int, Datapoint]]:
    """(age in periods, datapoint) of the real datapoints in the evaluation range, newest first; the newest age is 1."""
    current = math.floor(now / alarm.period_seconds)
    by_age: dict[int, Datapoint] = {}
    for point in datapoints:
        age = current - math.floor(point.at / alarm.period_seconds)
        if not 1 <= age <= alarm.range_periods or math.isnan(point.value):
            continue
        if age in by_age:
            raise InvalidInput(
                f"Two datapoints of {alarm.metric} lie in the period {age} before {now}: merge them first."
            )
        by_age[age] = point
    return sorted(by_age.items(), key=lambda item: item[0])


def _decide(
    alarm: Alarm, real: Sequence[tuple[int, Datapoint]], deciding: Sequence[Datapoint]
) -> tuple[AlarmStatus | None, str]:
    """The new state, None for "keep it", and why. `real` is newest first; `deciding` its first N datapoints."""
    low = [point for point in deciding if point.samples < alarm.low_sample_limit]
    if low and alarm.low_samples == "ignore":
        return None, (
            f"{len(low)} of {len(deciding)} datapoints have fewer than the {alarm.low_sample_limit:g} samples that "
            f"{alarm.statistic} needs."
        )
    breaching = sum(alarm.breaches(point.value) for point in deciding)
    gaps = alarm.evaluation_periods - len(deciding)
    if alarm.missing == "breaching":
        return _counted(alarm, deciding, breaching + gaps, gaps)
    if gaps == 0 or alarm.missing == "not_breaching" or breaching >= alarm.needed:
        return _counted(alarm, deciding, breaching, gaps)
    if not deciding:
        silence = f"There is no datapoint of {alarm.metric} in the last {alarm.range_periods} periods."
        return (None if alarm.missing == "ignore" else AlarmStatus.INSUFFICIENT_DATA), silence
    if breaching < len(deciding):
        return _counted(alarm, deciding, breaching, gaps)
    return _only_breaching(alarm, oldest_age=real[-1][0], breaching=breaching)


def _only_breaching(alarm: Alarm, *, oldest_age: int, breaching: int) -> tuple[AlarmStatus | None, str]:
    """Too few datapoints, all of them breaching: the premature rule of the module's docstring."""
    facts = f"Only {breaching} of {alarm.needed} needed datapoints exist, {_side(alarm)}"
    if alarm.missing == "ignore":
        return None, f"{facts}."
    if oldest_age >= alarm.needed:
        return AlarmStatus.ALARM, f"{facts}; the oldest is {oldest_age} periods old and nothing contradicts it."
    return AlarmStatus.INSUFFICIENT_DATA, f"{facts}, and the next may be different."


def _counted(alarm: Alarm, deciding: Sequence[Datapoint], breaching: int, gaps: int) -> tuple[AlarmStatus, str]:
    """ALARM when enough of the N datapoints breach, else OK."""
    shown = ", ".join(f"{point.value:g}" for point in reversed(deciding)) or "none"
    filled = ""
    if gaps and alarm.missing in ("breaching", "not_breaching"):
        filled = f", {gaps} missing taken as {alarm.missing.replace('_', ' ')}"
    state = AlarmStatus.ALARM if breaching >= alarm.needed else AlarmStatus.OK
    return state, (
        f"{breaching} of the last {alarm.evaluation_periods} datapoints of {alarm.metric} ({alarm.statistic}: {shown}"
        f"{filled}) {'is' if breaching == 1 else 'are'} {_side(alarm)}; {alarm.needed} make an alarm."
    )


def _side(alarm: Alarm) -> str:
    return f"{_COMPARISONS[alarm.comparison][1]} the threshold {alarm.threshold:g}"


def may_act(
    history: Iterable[float], now: float, *, cooldown_seconds: float, budget: int, budget_window_seconds: float
) -> tuple[bool, str]:
    """Whether an action may be taken at `now`, given when it was taken before (in any order), and why.

    Refused while the last one is less than `cooldown_seconds` ago, and while `budget` of them lie within the last
    `budget_window_seconds`. A budget of 0 allows none; times in the future count as now (a clock was set back).
    """
    taken = sorted(min(at, now) for at in history)
    if budget < 1:
        return False, "The budget is 0: this action is switched off."
    if taken and now - taken[-1] < cooldown_seconds:
        left = cooldown_seconds - (now - taken[-1])
        return False, f"Cooling down: the last one was {now - taken[-1]:.0f} s ago, the next may come in {left:.0f} s."
    recent = [at for at in taken if now - at < budget_window_seconds]
    if len(recent) >= budget:
        left = budget_window_seconds - (now - recent[-budget])
        return False, (
            f"The budget is used up: {len(recent)} of {budget} in the last {budget_window_seconds:.0f} s, the next may "
            f"come in {left:.0f} s."
        )
    return True, f"Allowed: {len(recent)} of {budget} in the last {budget_window_seconds:.0f} s."
