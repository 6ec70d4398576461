"""Is one model better than another on the same rows? McNemar's test and the paired bootstrap."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loopline.domain.distributions import sign_test
from loopline.domain.measures import Answers, Column, Curve, Evaluated, curve_of, measure_of, prepare
from loopline.errors import InvalidInput

_CELLS = 200_000  # weights held at a time: 1.6 MB, which stays in the cache


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows on which exactly one of two models is right, and the two-sided p-value of that split."""

    candidate_only: int
    champion_only: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "candidate_only": self.candidate_only,
            "champion_only": self.champion_only,
            "p_value": self.p_value,
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a difference lies: `level` of the resampled differences, cut off evenly at both ends."""

    low: float
    high: float
    level: float
    resamples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"low": self.low, "high": self.high, "level": self.level, "resamples": self.resamples}


def mcnemar(candidate: Answers, champion: Answers, *, mid_p: bool = False) -> McNemar:
    """McNemar's test in its exact form: under no difference each discordant row falls to either model by a fair coin
    (McNemar, Psychometrika 12, 1947; exact binomial p-value, optionally mid-p)."""
    right = candidate.labels == candidate.predictions
    other = champion.labels == champion.predictions
    gained, lost = int(np.count_nonzero(right & ~other)), int(np.count_nonzero(other & ~right))
    return McNemar(gained, lost, sign_test(gained, gained + lost, mid_p=mid_p))


def mcnemar_of(labels: Column, candidate: Column, champion: Column, *, mid_p: bool = False) -> McNemar:
    """McNemar's test of plain class labels and two lists of predictions."""
    models = [Evaluated(labels=labels, predictions=predictions) for predictions in (candidate, champion)]
    return mcnemar(*prepare(models, ["accuracy"]), mid_p=mid_p)


def bootstrap_difference(
    name: str,
    candidate: Answers,
    champion: Answers,
    *,
    resamples: int = 2_000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """The percentile interval of measure(candidate) - measure(champion) when the rows are drawn anew, with replacement
    and the same rows for both (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Classes are resampled as counts of their distinct (label, answer, answer) triples, which is the same draw.
    Resamples in which the measure is not defined are left out; InvalidInput when those are more than one in ten.
    """
    candidate, champion, counts = _distinct(name, candidate, champion)
    first, second = curve_of(name, candidate), curve_of(name, champion)
    differences = _resample(first, second, counts, resamples, rng)
    usable = differences[~np.isnan(differences)]
    if usable.size < 0.9 * resamples:
        raise InvalidInput(f"The test set has too few rows of some class to compare {name}: add rows of every class.")
    low, high = np.quantile(usable, [(1.0 - level) / 2.0, (1.0 + level) / 2.0]).tolist()
    return Interval(low, high, level, int(usable.size))


def bootstrap_of(
    name: str, candidate: Evaluated, champion: Evaluated, *, positive: Any = None, seed: int = 0, **options: Any
) -> Interval:
    """The paired bootstrap of plain answers; `options` are those of `bootstrap_difference`."""
    prepared = prepare([candidate, champion], [name], positive)
    return bootstrap_difference(name, *prepared, rng=np.random.default_rng(seed), **options)


def _distinct(name: str, candidate: Answers, champion: Answers) -> tuple[Answers, Answers, npt.NDArray[np.int64]]:
    """One row for each distinct triple and how often it occurs; the rows themselves where scores or numbers count."""
    if measure_of(name).needs != "classes":
        return candidate, champion, np.ones(len(candidate.labels), dtype=np.int64)
    triples = np.stack([candidate.labels, candidate.predictions, champion.predictions], axis=1)
    _, rows, counts = np.unique(triples, axis=0, return_index=True, return_counts=True)
    return candidate.take(rows), champion.take(rows), counts.astype(np.int64)


def _resample(
    first: Curve, second: Curve, counts: npt.NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """`resamples` differences of two curves, in blocks that fit in the cache."""
    rows, cells = int(counts.sum()), len(counts)
    block = max(1, _CELLS // max(1, cells))
    found = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if cells == rows:
            drawn = rng.integers(0, rows, size=(size, rows)) + np.arange(size)[:, None] * rows
            weights = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        else:
            weights = rng.multinomial(rows, counts / rows, size=size).astype(np.float64)
        found.append(first(weights) - second(weights))
    return np.concatenate(found)
