"""Tail probabilities and intervals that the gate, drift and quality rules need, in plain Python and numpy.

Sources: NIST Digital Library of Mathematical Functions (DLMF) for the gamma functions; Wilson (1927) and Newcombe
(Statistics in Medicine 17, 1998) for proportions; Holm (1979) for several tests at once.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from loopline.errors import InvalidInput

_NORMAL = NormalDist()
_TERMS = 10_000
_TINY = 1e-300


def normal_quantile(probability: float) -> float:
    """The z below which a standard normal variable falls with this probability; 0 < probability < 1."""
    if not 0.0 < probability < 1.0:
        raise InvalidInput(f"A probability between 0 and 1 is needed, not {probability!r}.")
    return _NORMAL.inv_cdf(probability)


def _lower_gamma_series(shape: float, x: float) -> float:
    """P(shape, x), the regularised lower incomplete gamma function, by DLMF 8.11.4; good for x < shape + 1."""
    term = total = 1.0 / shape
    for k in range(1, _TERMS):
        term *= x / (shape + k)
        total += term
        if term < total * 1e-17:
            break
    return total * math.exp(shape * math.log(x) - x - math.lgamma(shape))


def _upper_gamma_fraction(shape: float, x: float) -> float:
    """Q(shape, x), the regularised upper incomplete gamma function, by the continued fraction DLMF 8.9.2 (Lentz)."""
    b = x + 1.0 - shape
    c = 1.0 / _TINY
    d = 1.0 / (b or _TINY)
    value = d
    for k in range(1, _TERMS):
        a = -k * (k - shape)
        b += 2.0
        d = 1.0 / ((a * d + b) or _TINY)
        c = (b + a / c) or _TINY
        step = d * c
        value *= step
        if abs(step - 1.0) < 1e-16:
            break
    return value * math.exp(shape * math.log(x) - x - math.lgamma(shape))


def chi2_tail(statistic: float, degrees: float) -> float:
    """P(X > statistic) of a chi-square variable: Q(degrees / 2, statistic / 2)."""
    if degrees <= 0.0 or math.isnan(statistic):
        raise InvalidInput(f"Degrees of freedom above 0 are needed, not {degrees!r} (statistic {statistic!r}).")
    if statistic <= 0.0:
        return 1.0
    if math.isinf(statistic):
        return 0.0
    shape, x = degrees / 2.0, statistic / 2.0
    value = 1.0 - _lower_gamma_series(shape, x) if x < shape + 1.0 else _upper_gamma_fraction(shape, x)
    return min(1.0, max(0.0, value))


def kolmogorov_tail(x: float) -> float:
    """P(sqrt(n) D_n > x) in the limit, two-sided: 2 sum (-1)^(k-1) exp(-2 k^2 x^2), and its theta form for small x."""
    if x <= 0.0:
        return 1.0
    if x < 1.0:
        powers = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8.0 * x * x)) for k in range(1, 8))
        return min(1.0, max(0.0, 1.0 - math.sqrt(2.0 * math.pi) / x * powers))
    value = 2.0 * sum(math.copysign(math.exp(-2.0 * k * k * x * x), 0.5 - (k - 1) % 2) for k in range(1, 16))
    return min(1.0, max(0.0, value))


def sign_test(successes: int, trials: int, *, mid_p: bool = False) -> float:
    """Two-sided p-value of `successes` in `trials` fair coin flips: 2 P(X <= the smaller side), at most 1.

    With `mid_p` the probability of the observed count is taken off once (Fagerland, Lydersen and Laake, BMC Medical
    Research Methodology 13:91, 2013): less conservative, not guaranteed. No trials: 1.
    """
    if not 0 <= successes <= trials:
        raise InvalidInput(f"{successes} successes in {trials} trials is not possible.")
    if trials == 0:
        return 1.0
    smaller = min(successes, trials - successes)
    k = np.arange(1, smaller + 1, dtype=np.float64)
    log_terms = np.concatenate(([0.0], np.cumsum(np.log(trials - k + 1.0) - np.log(k)))) - trials * math.log(2.0)
    tail = float(np.sum(np.exp(log_terms)))
    if mid_p:
        last = math.exp(float(log_terms[-1]))
        return min(1.0, 2.0 * tail - last)
    return min(1.0, 2.0 * tail)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given: reject where adjusted <= alpha and the chance of any false
    rejection is at most alpha, whatever the dependence between the tests."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) when there are no trials."""
    if not 0 <= successes <= trials:
        raise InvalidInput(f"{successes} successes in {trials} trials is not possible.")
    if trials == 0:
        return 0.0, 1.0
    z = normal_quantile(0.5 + level / 2.0)
    p = successes / trials
    scale = 1.0 + z * z / trials
    middle = (p + z * z / (2.0 * trials)) / scale
    half = z / scale * math.sqrt(p * (1.0 - p) / trials + z * z / (4.0 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return low, high


def newcombe(
    successes: int, trials: int, other_successes: int, other_trials: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two independent proportions, first minus other (Newcombe 1998, method 10)."""
    low, high = wilson(successes, trials, level)
    other_low, other_high = wilson(other_successes, other_trials, level)
    if trials == 0 or other_trials == 0:
        return -1.0, 1.0
    p, other = successes / trials, other_successes / other_trials
    below = math.hypot(p - low, other_high - other)
    above = math.hypot(high - p, other - other_low)
    return p - other - below, p - other + above
