"""Confidence sequences: intervals that may be looked at after every observation, and miss no more often than they say.

A share of yes and no (5xx answers, slow answers, right predictions) gets the beta-binomial mixture: for every p the
ratio of the Beta(1/2, 1/2) mixture of likelihoods to the likelihood at p is a martingale with mean 1 when p is true.
By Ville's inequality it ever reaches 1/alpha with probability at most alpha; the interval holds the p that were not
refuted so (Robbins, Annals of Mathematical Statistics 41, 1970; Howard, Ramdas, McAuliffe and Sekhon, Annals of
Statistics 49, 2021). It is exact for any number of observations and depends on their sums alone.

A mean of errors of any size gets the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
(Annals of Statistics 52, 2024, theorem 2.2), tightest at ``TIGHTEST_AT`` observations and used from ``MIN_MEANS`` on.

The difference of two sides combines an interval of each at alpha / 2 (union bound), which is valid and a little wide.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Interval = tuple[float, float]

TIGHTEST_AT = 1000
MIN_MEANS = 30
_PRIOR = 0.5
_HALVINGS = 60

Verdict = Literal["better", "worse", "same", "undecided"]


@dataclass(frozen=True, slots=True)
class Shares:
    """``hits`` of ``n`` observations were a yes."""

    n: int
    hits: int

    @property
    def value(self) -> float | None:
        """The share; None without an observation."""
        return self.hits / self.n if self.n else None

    def interval(self, alpha: float) -> Interval:
        """Where the true share lies, at any time, except with probability ``alpha``."""
        return of_share(self.hits, self.n, alpha)


@dataclass(frozen=True, slots=True)
class Means:
    """Sums over ``n`` observations of 0 or more and of their squares."""

    n: int
    total: float
    squares: float

    @property
    def value(self) -> float | None:
        """The mean; None without an observation."""
        return self.total / self.n if self.n else None

    def interval(self, alpha: float) -> Interval:
        """Where the true mean lies, at any time, except with probability ``alpha`` for many observations."""
        return of_mean(self.n, self.total, self.squares, alpha)


def of_share(hits: int, n: int, alpha: float) -> Interval:
    """The beta-binomial confidence sequence of a share."""
    if n == 0:
        return 0.0, 1.0
    misses = n - hits
    mixture = _log_beta(_PRIOR + hits, _PRIOR + misses) - _log_beta(_PRIOR, _PRIOR)
    limit = mixture - math.log(1.0 / alpha)

    def kept(p: float) -> bool:
        likelihood = (hits * math.log(p) if hits else 0.0) + (misses * math.log1p(-p) if misses else 0.0)
        return likelihood > limit

    share = hits / n
    low = 0.0 if hits == 0 else _edge(kept, share, 0.0)
    high = 1.0 if misses == 0 else _edge(kept, share, 1.0)
    return low, high


def _edge(kept: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where ``kept`` ends between a point that is in and one that is out; the outer side, so that nothing is lost."""
    inside = min(max(inside, 1e-15), 1.0 - 1e-15)
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2.0
        if middle in (inside, outside, 0.0, 1.0):
            break
        if kept(middle):
            inside = middle
        else:
            outside = middle
    return outside


def of_mean(n: int, total: float, squares: float, alpha: float) -> Interval:
    """The asymptotic confidence sequence of a mean of values of 0 or more; (0, inf) below ``MIN_MEANS`` of them."""
    if n < MIN_MEANS:
        return 0.0, math.inf
    mean = total / n
    deviation = math.sqrt(max(squares / n - mean * mean, 0.0))
    wanted = -2.0 * math.log(alpha)
    rho = (wanted + math.log(wanted + 1.0)) / TIGHTEST_AT  # rho squared
    spread = n * rho + 1.0
    half = deviation * math.sqrt(2.0 * spread / (n * n * rho) * math.log(math.sqrt(spread) / alpha))
    return max(mean - half, 0.0), mean + half


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Challenger against champion on one metric; ``interval`` is that of challenger - champion."""

    metric: str
    higher_is_better: bool
    champion: float | None
    challenger: float | None
    champion_n: int
    challenger_n: int
    champion_interval: Interval
    challenger_interval: Interval
    interval: Interval
    alpha: float
    min_effect: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an end that is not known yet is None."""
        found = asdict(self)
        for key in ("champion_interval", "challenger_interval", "interval"):
            found[key] = [end if math.isfinite(end) else None for end in found[key]]
        return found

    def words(self) -> str:
        """One sentence for people."""
        sides = f"{_told(self.challenger)} (n={self.challenger_n}) against {_told(self.champion)} (n={self.champion_n})"
        low, high = self.interval
        told = {
            "better": "the challenger is better",
            "worse": "the challenger is worse",
            "same": f"no difference of more than {self.min_effect:g}",
            "undecided": "undecided",
        }[self.verdict]
        return (
            f"{told}: {self.metric} {sides}; {100 * (1 - self.alpha):g} % confidence sequence of the difference "
            f"{low:+.4g} to {high:+.4g}"
        )


def _told(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"


def compare(
    metric: str,
    champion: Shares | Means,
    challenger: Shares | Means,
    *,
    higher_is_better: bool,
    alpha: float = 0.05,
    min_effect: float = 0.0,
) -> Comparison:
    """What is shown by now. Better or worse: the whole interval lies beyond ``min_effect``; same: within it.

    However often it is asked, and whenever one stops, a challenger that is no better is called better, or one that is
    no worse worse, with probability at most ``alpha``.
    """
    (low, high), (other_low, other_high) = challenger.interval(alpha / 2), champion.interval(alpha / 2)
    interval = (low - other_high, high - other_low)
    gain = interval if higher_is_better else (-interval[1], -interval[0])
    verdict: Verdict = "undecided"
    if gain[0] > min_effect:
        verdict = "better"
    elif gain[1] < -min_effect:
        verdict = "worse"
    elif min_effect > 0 and -min_effect <= gain[0] and gain[1] <= min_effect:
        verdict = "same"
    return Comparison(
        metric=metric,
        higher_is_better=higher_is_better,
        champion=champion.value,
        challenger=challenger.value,
        champion_n=champion.n,
        challenger_n=challenger.n,
        champion_interval=(other_low, other_high),
        challenger_interval=(low, high),
        interval=interval,
        alpha=alpha,
        min_effect=min_effect,
        verdict=verdict,
    )
