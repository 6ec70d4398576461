"""The gate: may this candidate take the champion's place?

A verdict is a list of checks, each a sentence with its numbers; all must pass. Thresholds hold for the whole test set
and for slices of it. Against a champion, on the same rows:

* "better" - for accuracy: McNemar's exact p-value is at most alpha and the candidate is right on more of the rows where
  the two differ in being right. For every other metric: the paired-bootstrap interval (level 1 - alpha) of the
  difference lies on the good side of 0. Identical answers are not better.
* "not worse", with a margin for the metric - the end of that interval on the bad side is within the margin
  (non-inferiority). Without a margin - the champion is not better, by the rule above: nothing but a loss that the test
  set can show refuses. A margin is the stronger demand: with few rows it refuses what cannot be shown.

Sources: McNemar, Psychometrika 12 (1947); Dietterich, Neural Computation 10 (1998), who recommends that test for two
classifiers on one test set; Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np

from loopline.domain.measures import MEASURES, Answers, Evaluated, measure_of, measured, prepare
from loopline.domain.paired import Interval, bootstrap_difference, mcnemar
from loopline.errors import InvalidInput

Demand = Literal["required", "not_worse", "off"]
_DEMANDS = ("required", "not_worse", "off")
_ELSEWHERE = ("mode", "test", "label")  # keys of [gate] that say when to judge and on what


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a candidate must show.

    thresholds: {metric: the least, or for a metric where lower is better the most, that passes}.
    metric: the one that `better_than_champion` is about. margin: {metric: how much worse than the champion is still
    "not worse"}, checked for each metric named here whenever there is a champion.
    slices: {slice: thresholds}. positive: the positive class. resamples and seed: of the bootstrap.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    metric: str = "accuracy"
    better_than_champion: Demand = "not_worse"
    alpha: float = 0.05
    margin: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    min_rows: int = 30
    positive: Any = None
    resamples: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.metrics:
            measure_of(name)
        numbers = [*self.thresholds.values(), *(x for each in self.slices.values() for x in each.values())]
        problems = [
            (self.better_than_champion not in _DEMANDS, f"better_than_champion must be one of {', '.join(_DEMANDS)}"),
            (not 0.0 < self.alpha < 1.0, "alpha must lie between 0 and 1"),
            (not all(np.isfinite(numbers)), "thresholds must be finite numbers"),
            (not all(0.0 <= margin < np.inf for margin in self.margin.values()), "margins must be 0 or more"),
            (self.min_rows < 1, "min_rows must be 1 or more"),
            (not 100 <= self.resamples <= 100_000, "resamples must lie between 100 and 100000"),
        ]
        for wrong, cure in problems:
            if wrong:
                raise InvalidInput(f"The gate's policy cannot be used: {cure}.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that may be needed."""
        sliced = [name for thresholds in self.slices.values() for name in thresholds]
        compared = [] if self.better_than_champion == "off" else [self.metric]
        return tuple(dict.fromkeys([*compared, *self.thresholds, *self.margin, *sliced]))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Policy":
        """The policy of a [gate] table; unknown keys and values of the wrong kind are InvalidInput."""
        known = {each.name for each in fields(cls)}
        unknown = [key for key in table if key not in known and key not in _ELSEWHERE]
        if unknown:
            raise InvalidInput(f"[gate] has no setting {', '.join(unknown)}: it has {', '.join(sorted(known))}.")
        try:
            return cls(**{key: value for key, value in table.items() if key in known})
        except (TypeError, AttributeError) as error:
            raise InvalidInput(f"A setting of [gate] is of the wrong kind: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to the candidate. `difference` and `interval` are candidate minus champion; `n` counts the rows."""

    name: str
    passed: bool
    metric: str
    observed: float
    required: float | None
    n: int
    method: str
    message: str
    champion: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's answer. `first`: there was no champion to compare with."""

    passed: bool
    first: bool
    rows: int
    summary: str
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "checks": [asdict(check) for check in self.checks]}


def judge(policy: Policy, candidate: Evaluated, champion: Evaluated | None = None) -> Verdict:
    """Judge a candidate on a test set; `champion` answers the same rows, or is None for a first version.

    The same input gives the same verdict. InvalidInput, with the cure, when the question cannot be asked: too few
    rows, unknown slices, and whatever `measures.prepare` refuses.
    """
    rows = len(candidate.labels)
    if rows < policy.min_rows:
        raise InvalidInput(
            f"The test set has {rows} rows and the gate needs {policy.min_rows}: use a larger one or lower min_rows."
        )
    models = [candidate] if champion is None else [candidate, champion]
    names = policy.metrics
    prepared = prepare(models, names, policy.positive) if names else []
    checks: list[Check] = []
    if prepared:
        checks += [_threshold(name, limit, prepared[0]) for name, limit in policy.thresholds.items()]
        checks += _slice_checks(policy, candidate, prepared[0])
    if len(prepared) == 2:
        checks += _champion_checks(policy, prepared[0], prepared[1])
    passed = all(check.passed for check in checks)
    return Verdict(
        passed=passed,
        first=champion is None,
        rows=rows,
        summary=_summary(checks, passed=passed, first=champion is None),
        checks=tuple(checks),
    )


def _threshold(name: str, limit: float, answers: Answers, slice_name: str | None = None) -> Check:
    n = len(answers.labels)
    where = "" if slice_name is None else f" of slice {slice_name!r}"
    observed = measured(name, answers)
    if np.isnan(observed):
        raise InvalidInput(
            f"{name}{where} is not defined on these {n} rows (a class has no row, or all labels are equal): "
            "add rows or leave the metric out."
        )
    higher = MEASURES[name].higher_is_better
    passed = observed >= limit if higher else observed <= limit
    side = ("meets" if passed else "is below") if higher else ("is within" if passed else "is above")
    shown, bound = _shown(observed, limit)
    return Check(
        name=f"threshold:{name}" if slice_name is None else f"slice:{slice_name}:{name}",
        passed=passed,
        metric=name,
        observed=observed,
        required=limit,
        n=n,
        method="threshold",
        message=f"{name}{where} {shown} {side} the threshold {bound} (n={n})",
    )


def _slice_checks(policy: Policy, candidate: Evaluated, answers: Answers) -> list[Check]:
    checks = []
    for name, thresholds in policy.slices.items():
        if name not in candidate.slices:
            there = ", ".join(candidate.slices) or "none"
            raise InvalidInput(f"The test set has no slice {name!r} (it has {there}): correct [gate.slices].")
        mask = np.asarray(candidate.slices[name])
        if mask.dtype.kind != "b" or mask.shape != (len(answers.labels),):
            raise InvalidInput(f"Slice {name!r} must be one true or false per row.")
        if not mask.any():
            raise InvalidInput(f"Slice {name!r} has no row in the test set: add rows or correct [gate.slices].")
        checks += [_threshold(metric, limit, answers.take(mask), name) for metric, limit in thresholds.items()]
    return checks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """Candidate against champion on one metric; `shown` says which of the two is shown to be better, if any."""

    metric: str
    n: int
    observed: float
    champion: float
    interval: Interval
    p_value: float | None
    evidence: str
    method: str
    identical: bool
    shown: Literal["candidate", "champion", "neither"]

    @property
    def bad_end(self) -> float:
        """How much worse the candidate may be at most, by the interval; negative when it is surely better."""
        return -self.interval.low if MEASURES[self.metric].higher_is_better else self.interval.high


def _compare(policy: Policy, name: str, candidate: Answers, champion: Answers) -> _Comparison:
    observed, other = measured(name, candidate), measured(name, champion)
    if np.isnan(observed) or np.isnan(other):
        raise InvalidInput(f"{name} is not defined on these rows: the test set needs rows of every class.")
    interval = bootstrap_difference(
        name,
        candidate,
        champion,
        resamples=policy.resamples,
        level=1.0 - policy.alpha,
        rng=np.random.default_rng(policy.seed),
    )
    low, high = (interval.low, interval.high) if MEASURES[name].higher_is_better else (-interval.high, -interval.low)
    shown: Literal["candidate", "champion", "neither"] = (
        "candidate" if low > 0 else "champion" if high < 0 else "neither"
    )
    p_value, method = None, f"paired bootstrap, {interval.resamples} resamples"
    evidence = f"{100 * interval.level:g} % interval of the difference {interval.low:+.4f} to {interval.high:+.4f}"
    if name == "accuracy":
        test = mcnemar(candidate, champion)
        p_value, method = test.p_value, "McNemar, exact"
        ahead = test.candidate_only - test.champion_only
        shown = "neither" if p_value > policy.alpha or ahead == 0 else "candidate" if ahead > 0 else "champion"
        evidence = (
            f"only the candidate is right on {test.candidate_only} rows, only the champion on {test.champion_only}; "
            f"p={p_value:.2g}, alpha={policy.alpha:g}; {evidence}"
        )
    return _Comparison(
        metric=name,
        n=len(candidate.labels),
        observed=observed,
        champion=other,
        interval=interval,
        p_value=p_value,
        evidence=evidence,
        method=method,
        identical=_identical(name, candidate, champion),
        shown=shown,
    )


def _identical(name: str, candidate: Answers, champion: Answers) -> bool:
    if measure_of(name).needs == "scores" and candidate.scores is not None and champion.scores is not None:
        return bool(np.array_equal(candidate.scores, champion.scores))
    return bool(np.array_equal(candidate.predictions, champion.predictions))


def _champion_checks(policy: Policy, candidate: Answers, champion: Answers) -> list[Check]:
    demands: dict[str, str] = dict.fromkeys(policy.margin, "not_worse")
    if policy.better_than_champion != "off":
        demands = {**demands, policy.metric: policy.better_than_champion}
    checks = []
    for name, demand in demands.items():
        comparison = _compare(policy, name, candidate, champion)
        if demand == "required":
            checks.append(_better(comparison))
        else:
            checks.append(_not_worse(comparison, policy.margin.get(name)))
    return checks


def _better(found: _Comparison) -> Check:
    if found.identical:
        shown, _ = _shown(found.observed, found.champion)
        message = (
            f"the candidate is not better than the champion: their answers are identical on all {found.n} rows "
            f"({found.metric} {shown})"
        )
        return _check(found, "better", passed=False, required=None, message=message)
    passed = found.shown == "candidate"
    words = {
        "candidate": "the candidate is better than the champion",
        "champion": "the candidate is worse than the champion",
        "neither": "the candidate is not shown to be better than the champion",
    }[found.shown]
    return _check(found, "better", passed=passed, required=None, message=f"{words}: {_versus(found)}")


def _not_worse(found: _Comparison, margin: float | None) -> Check:
    if margin is None:
        passed = found.shown != "champion"
        words = "the candidate is worse than the champion"
        if found.identical:
            words = "the candidate is as good as the champion, with identical answers"
        elif passed:
            words = "the candidate is not shown to be worse than the champion (no margin is set)"
    else:
        passed = found.bad_end <= margin
        sure = "at most" if passed else "possibly more than"
        words = f"the candidate is worse than the champion by {sure} the margin {margin:g}"
    return _check(found, "not_worse", passed=passed, required=margin, message=f"{words}: {_versus(found)}")


def _versus(found: _Comparison) -> str:
    shown, other = _shown(found.observed, found.champion)
    return f"{found.metric} {shown} against {other} (n={found.n}; {found.evidence})"


def _check(found: _Comparison, kind: str, *, passed: bool, required: float | None, message: str) -> Check:
    return Check(
        name=f"{kind}:{found.metric}",
        passed=passed,
        metric=found.metric,
        observed=found.observed,
        required=required,
        n=found.n,
        method=found.method,
        message=message,
        champion=found.champion,
        difference=found.observed - found.champion,
        interval=found.interval,
        p_value=found.p_value,
    )


def _summary(checks: Sequence[Check], *, passed: bool, first: bool) -> str:
    start = "There is no champion yet, so only thresholds were checked. " if first else ""
    if not checks:
        return start + "Passed: the policy asks for nothing that could be checked."
    failed = [check.message for check in checks if not check.passed]
    if passed:
        return f"{start}Passed: {'; '.join(check.message for check in checks)}."
    return f"{start}Refused, {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}."


def _shown(value: float, other: float) -> tuple[str, str]:
    """Both numbers with three decimals, or as many more as it takes to tell them apart."""
    for digits in range(3, 10):
        pair = f"{value:.{digits}f}", f"{other:.{digits}f}"
        if pair[0] != pair[1] or value == other:
            return pair
    return repr(value), repr(other)
