"""Drift: does a window of traffic still look like the training table?

PSI, the population stability index, is sum (q_i - p_i) ln(q_i / p_i) over the cells of a column, p the reference's and
q the window's shares. From n and m rows of one population it is not 0 but about (B - 1)(1/n + 1/m) for B cells
(Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation), so
that a fixed limit fires on small windows whatever happens. The default rule therefore asks two questions of each
feature: is the *bias-corrected* PSI above the materiality (is it much?), and is the chi-square test's p-value, adjusted
for the number of features by Holm's method, below alpha (is it real?). A rule such as "psi > 0.1" is taken literally
instead, and the report says what it does on a window of this size.

alpha is the chance that a window without drift names any feature, where sampling noise is large enough to pass the
materiality at all: on windows of a few hundred rows. Windows come every hour or minute, hence the small default.

Rows without a value are a cell of their own in PSI and in the chi-square test.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loopline.domain.baselines import Baseline, Counts, Numeric
from loopline.domain.distributions import chi2_tail, holm, kolmogorov_tail
from loopline.errors import InvalidInput

EPSILON = 1e-4
MIN_EXPECTED = 5.0
_MEASURES = ("psi", "psi_adjusted", "p_value", "p_adjusted", "ks")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RULE = re.compile(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?(?:e-?\d+)?|\.\d+)\s*", re.IGNORECASE)


def psi(reference: Sequence[int], current: Sequence[int]) -> float:
    """The raw PSI of two vectors of counts over the same cells.

    A share below EPSILON (an empty cell) counts as EPSILON, as is common practice, so that one unseen value neither
    divides by zero nor decides alone. 0 when either side has no rows.
    """
    p, q = _shares(reference), _shares(current)
    if p is None or q is None:
        return 0.0
    p, q = np.maximum(p, EPSILON), np.maximum(q, EPSILON)
    return float(np.sum((q - p) * np.log(q / p)))


def expected_psi(reference: Sequence[int], current: Sequence[int]) -> float:
    """What PSI comes to without any drift: (B - 1)(1/n + 1/m), B the cells that either side occupies."""
    n, m = sum(reference), sum(current)
    if n == 0 or m == 0:
        return 0.0
    return _degrees(reference, current) * (1.0 / n + 1.0 / m)


def psi_adjusted(reference: Sequence[int], current: Sequence[int]) -> float:
    """The bias-corrected PSI; about 0 on average without drift, so it may be negative."""
    return psi(reference, current) - expected_psi(reference, current)


def _degrees(reference: Sequence[int], current: Sequence[int]) -> int:
    return max(0, sum(a + b > 0 for a, b in zip(reference, current, strict=True)) - 1)


def _shares(counts: Sequence[int]) -> npt.NDArray[np.float64] | None:
    values = np.asarray(counts, dtype=np.float64)
    total = values.sum()
    return values / total if total > 0 else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A test's statistic, its degrees of freedom (0: nothing to test) and its p-value."""

    statistic: float
    degrees: int
    p_value: float


def chi2_test(reference: Sequence[int], current: Sequence[int]) -> Outcome:
    """The two-sample chi-square test of homogeneity, with rare cells pooled.

    Cells whose expected count is below MIN_EXPECTED on either side are poured together, with the smallest of the
    others if that is still too few. Fewer than two cells left: nothing to test, p = 1.
    """
    n, m = sum(reference), sum(current)
    if n == 0 or m == 0:
        return Outcome(0.0, 0, 1.0)
    cells = _pooled(np.array([reference, current], dtype=np.float64), min(n, m) / (n + m))
    if cells.shape[1] < 2:
        return Outcome(0.0, 0, 1.0)
    a, b = cells
    statistic = float(np.sum((math.sqrt(m / n) * a - math.sqrt(n / m) * b) ** 2 / (a + b)))
    degrees = cells.shape[1] - 1
    return Outcome(statistic, degrees, chi2_tail(statistic, degrees))


def _pooled(cells: npt.NDArray[np.float64], smaller_share: float) -> npt.NDArray[np.float64]:
    """The two rows of counts with rare columns summed into one."""
    cells = cells[:, np.argsort(cells.sum(axis=0), kind="stable")]
    expected = cells.sum(axis=0) * smaller_share
    rare = int(np.count_nonzero(expected < MIN_EXPECTED))
    if rare == 0:
        return cells
    if expected[:rare].sum() < MIN_EXPECTED:
        rare += 1
    return np.column_stack([cells[:, :rare].sum(axis=1), cells[:, rare:]])


def ks_test(reference: Sequence[int], current: Sequence[int]) -> Outcome:
    """The two-sample Kolmogorov-Smirnov test on ordered cells: the largest gap between the two cumulative shares.

    The limiting p-value is for continuous data; with cells it errs on the careful side.
    """
    p, q = _shares(reference), _shares(current)
    if p is None or q is None:
        return Outcome(0.0, 0, 1.0)
    n, m = sum(reference), sum(current)
    gap = float(np.max(np.abs(np.cumsum(p) - np.cumsum(q))))
    return Outcome(gap, 1, kolmogorov_tail(math.sqrt(n * m / (n + m)) * gap))


@dataclass(frozen=True, slots=True)
class Rule:
    """One comparison on one measure of a feature, as in "psi > 0.1"."""

    measure: str
    operator: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """The rule of an expression `MEASURE OPERATOR NUMBER`; InvalidInput says what is allowed."""
        match = _RULE.fullmatch(text)
        if match is None or match[1].lower() not in _MEASURES:
            raise InvalidInput(
                f'{text!r} is no drift rule: write "default" or one of {", ".join(_MEASURES)}, then >, >=, < or <=, '
                'then a number, for example "psi > 0.1".'
            )
        return cls(match[1].lower(), match[2], float(match[3]))

    def holds(self, value: float) -> bool:
        """Whether the comparison holds for this value of the measure."""
        return _OPERATORS[self.operator](value, self.threshold)

    def __str__(self) -> str:
        return f"{self.measure} {self.operator} {self.threshold:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPolicy:
    """How to judge a window. `psi` (materiality) and `alpha` belong to the default rule.

    `features`: those to watch, empty for all. A feature with fewer than `min_rows` rows in the window is not judged.
    """

    rule: str = "default"
    psi: float = 0.1
    alpha: float = 0.001
    min_rows: int = 100
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rule != "default":
            Rule.parse(self.rule)
        if self.psi < 0.0 or not 0.0 < self.alpha < 1.0 or self.min_rows < 1:
            raise InvalidInput(
                "A drift policy needs psi of 0 or more, alpha between 0 and 1, and min_rows of 1 or more."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """One feature's comparison. `n` counts the window's rows; `expected_psi` is what PSI comes to without drift;
    `statistic` and `degrees` are the chi-square test's; `ks` is the largest cumulative gap, None for categories."""

    feature: str
    n: int
    psi: float
    psi_adjusted: float
    expected_psi: float
    statistic: float
    degrees: int
    p_value: float
    p_adjusted: float
    ks: float | None
    drifted: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """A window against its baseline; `drifted` names the features that the rule picks, the strongest first."""

    rule: str
    rows: int
    baseline_rows: int
    judged: bool
    drifted: tuple[str, ...]
    note: str
    features: tuple[FeatureDrift, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "drifted": list(self.drifted), "features": [each.to_dict() for each in self.features]}


def report(baseline: Baseline, window: Mapping[str, Counts], policy: DriftPolicy | None = None) -> DriftReport:
    """Compare a window's counts (`Baseline.count`, added up) with the baseline.

    InvalidInput when a watched feature is unknown to the baseline, absent from the window, or counted over other
    cells.
    """
    policy = policy or DriftPolicy()
    names = policy.features or tuple(baseline.features)
    pairs = [_vectors(baseline, window, name) for name in names]
    tests = [chi2_test(reference, current) for reference, current in pairs]
    enough = [sum(current) >= policy.min_rows for _, current in pairs]
    adjusted = iter(holm([test.p_value for test, judged in zip(tests, enough, strict=True) if judged]))
    results = []
    for name, (reference, current), test, judged in zip(names, pairs, tests, enough, strict=True):
        raw, expected, p_adjusted = psi(reference, current), expected_psi(reference, current), 1.0
        if judged:
            p_adjusted = next(adjusted)
        numeric = isinstance(baseline.features[name], Numeric)
        ks = ks_test(reference[:-1], current[:-1]).statistic if numeric else None
        measures = dict(zip(_MEASURES, (raw, raw - expected, test.p_value, p_adjusted, ks), strict=True))
        drifted, reason = _judge(policy, measures, rows=sum(current))
        results.append(
            FeatureDrift(
                feature=name,
                n=sum(current),
                psi=raw,
                psi_adjusted=raw - expected,
                expected_psi=expected,
                statistic=test.statistic,
                degrees=test.degrees,
                p_value=test.p_value,
                p_adjusted=p_adjusted,
                ks=ks,
                drifted=drifted,
                reason=reason,
            )
        )
    strongest = sorted((each for each in results if each.drifted), key=lambda each: -each.psi_adjusted)
    return DriftReport(
        rule=policy.rule,
        rows=max((each.n for each in results), default=0),
        baseline_rows=baseline.rows,
        judged=any(enough),
        drifted=tuple(each.feature for each in strongest),
        note=_note(policy, baseline.rows, results, pairs),
        features=tuple(results),
    )


def _vectors(baseline: Baseline, window: Mapping[str, Counts], name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The counts of the baseline and of the window, the rows without a value as the last cell."""
    feature, counts = baseline.features.get(name), window.get(name)
    if feature is None or counts is None:
        where = "baseline" if feature is None else "window"
        raise InvalidInput(f"The {where} has no feature {name!r}; it has {', '.join(baseline.features)}.")
    if len(feature.counts.cells) != len(counts.cells):
        raise InvalidInput(f"The window counted {name!r} over other cells than the baseline: count it again.")
    return (*feature.counts.cells, feature.counts.missing), (*counts.cells, counts.missing)


def _judge(policy: DriftPolicy, measures: Mapping[str, float | None], *, rows: int) -> tuple[bool, str]:
    """Whether this feature drifted under the policy, and why, in a sentence."""
    if rows < policy.min_rows:
        return False, f"Not judged: the window has {rows} rows and {policy.min_rows} are needed."
    if policy.rule != "default":
        rule = Rule.parse(policy.rule)
        value = measures[rule.measure]
        if value is None:
            return False, f"Not judged: categories have no {rule.measure}."
        holds = rule.holds(value)
        return holds, f"{rule.measure} is {value:.4g}, so {rule} {'holds' if holds else 'does not hold'} (n={rows})."
    corrected, p = float(measures["psi_adjusted"] or 0.0), float(measures["p_adjusted"] or 0.0)
    much, real = corrected > policy.psi, p < policy.alpha
    facts = (
        f"PSI {measures['psi']:.3f}, {corrected:.3f} after the correction for n={rows}, is "
        f"{'above' if much else 'not above'} {policy.psi:g}; the adjusted p-value {p:.2g} is "
        f"{'below' if real else 'not below'} {policy.alpha:g}"
    )
    return much and real, f"{facts}: {'drift' if much and real else 'no drift'}."


def _note(
    policy: DriftPolicy,
    baseline_rows: int,
    results: Sequence[FeatureDrift],
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    """What the rule can and cannot see on a window of this size."""
    judged = [(each, pair) for each, pair in zip(results, pairs, strict=True) if each.n >= policy.min_rows]
    if not judged:
        return f"No feature has the {policy.min_rows} rows that a judgement needs."
    widest = max((each for each, _ in judged), key=lambda each: each.expected_psi)
    basis = (
        f"Without any drift PSI comes to about {widest.expected_psi:.3f} for {widest.feature!r} ({widest.n} rows "
        f"against {baseline_rows})"
    )
    if policy.rule == "default":
        return f"{basis}; the default rule takes that off before it compares with {policy.psi:g}."
    rule = Rule.parse(policy.rule)
    if rule.measure != "psi" or rule.operator not in (">", ">="):
        return f"The rule {rule} is taken literally, each feature for itself. {basis}."
    quiet = math.prod(1.0 - _false_alarm(rule.threshold, *pair) for _, pair in judged)
    return (
        f"The rule {rule} is taken literally. {basis}, so about {_percent(1.0 - quiet)} of windows of this size "
        f"would fire for some of {len(judged)} features although nothing changed; the default rule corrects for that."
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %" if share >= 0.01 else f"{100.0 * share:.1g} %"


def _false_alarm(threshold: float, reference: Sequence[int], current: Sequence[int]) -> float:
    """P(raw PSI > threshold) without drift: PSI / (1/n + 1/m) is about chi-square with B - 1 degrees of freedom."""
    degrees = _degrees(reference, current)
    if degrees == 0:
        return 0.0
    return chi2_tail(threshold / (1.0 / sum(reference) + 1.0 / sum(current)), degrees)
