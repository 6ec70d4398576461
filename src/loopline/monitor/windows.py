"""Drift evidence of one variant: rows counted over its baseline's cells, in buckets that add up to trailing windows.

The default rule is asked about several windows that all end now: the one of ``window_seconds`` and shorter ones, each a
quarter of the next, so that a change shows within seconds although the long window is still full of what was before.
A shorter window is looked at more often than it is renewed, so that it must be the surer: it is judged at
alpha x (its length / the whole length) / (how many shorter ones there are), which keeps the chance of a false alarm
within one whole window near alpha for all of them together. A literal rule ("psi > 0.1") is asked about the window of
``window_seconds`` alone, as it says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loopline.domain.baselines import PREDICTION, SCORE, Baseline, Counts, Numeric
from loopline.domain.capturecolumns import Columns
from loopline.domain.captured import typed
from loopline.domain.drift import DriftPolicy, DriftReport, report
from loopline.errors import InvalidInput
from loopline.monitor.rows import Column, RowReader, read_answers

MAX_ROWS_PER_SECOND = 10_000  # of one variant; others are counted and not looked at: a minute rests on 600,000 rows
MAX_BUFFERED_ROWS = 4096
MANY_REQUESTS = 256  # are read at once: a larger text costs more than it saves
MANY_SECONDS = 64  # gateways may be apart by this much
MAX_STEP_SECONDS = 10.0  # windows are looked at this often at least, so that an alarm follows within a minute
SHORTER = 4
_ANSWERS = frozenset({PREDICTION, SCORE})


@dataclass
class Bucket:
    """What was seen in one stretch of time."""

    requests: int = 0  # that could have been looked at
    sampled: int = 0  # that were
    counts: dict[str, Counts] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows the fullest feature has."""
        return max((each.rows for each in self.counts.values()), default=0)

    def merge(self, other: "Bucket") -> None:
        """Take in another stretch of time."""
        self.requests += other.requests
        self.sampled += other.sampled
        self.add(other.counts)

    def add(self, counted: Mapping[str, Counts]) -> None:
        """Add counts, feature by feature."""
        for name, counts in counted.items():
            there = self.counts.get(name)
            self.counts[name] = counts if there is None else there + counts


@dataclass(frozen=True)
class Watched:
    """What control says about a variant: ``monitors.json``, one entry."""

    endpoint: str
    variant: str
    version: str
    baseline: Baseline
    names: tuple[str, ...]  # the request's features in signature order
    kinds: tuple[str, ...]
    policy: DriftPolicy
    window_seconds: float
    every_seconds: float
    positive: Any

    @property
    def step_seconds(self) -> float:
        """The length of a bucket, and how often the windows are looked at."""
        return min(self.every_seconds, MAX_STEP_SECONDS)

    @property
    def spans(self) -> list[int]:
        """The windows' lengths in buckets, the whole one first."""
        spans = [max(1, round(self.window_seconds / self.step_seconds))]
        while self.policy.rule == "default" and spans[-1] >= SHORTER:
            spans.append(spans[-1] // SHORTER)
        return spans

    @classmethod
    def from_dict(cls, endpoint: str, variant: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> "Watched":
        """Read an entry; raises ``InvalidInput`` when the baseline cannot be used."""
        baseline = Baseline.from_dict(given["baseline"])
        signature = (given.get("signature") or {}).get("features") or []
        names = [str(feature["name"]) for feature in signature]
        kinds = [str(feature.get("type", "number")) for feature in signature]
        if not names:
            names = [name for name in baseline.features if name not in _ANSWERS]
            kinds = ["number" if hasattr(baseline.features[name], "edges") else "string" for name in names]
        asked = tuple(settings.get("features") or ()) or tuple(names)
        seen = [name for name in asked if name in baseline.features and name in names]
        if settings.get("score", True):
            seen += [name for name in (PREDICTION, SCORE) if name in baseline.features]
        if not seen:
            raise InvalidInput("the baseline has none of the features that requests carry")
        usual = DriftPolicy()
        policy = DriftPolicy(
            rule=str(settings.get("rule", usual.rule)),
            psi=float(settings.get("psi", usual.psi)),
            alpha=float(settings.get("alpha", usual.alpha)),
            min_rows=int(settings.get("min_rows", usual.min_rows)),
            features=tuple(seen),
        )
        kept = Baseline(baseline.rows, {name: baseline.features[name] for name in seen})
        window, every = float(settings.get("window_seconds", 3600)), float(settings.get("every_seconds", 60))
        if not (every > 0 and window > 0 and math.isfinite(window + every)):
            raise InvalidInput("window_seconds and every_seconds must be above 0")
        return cls(
            endpoint,
            variant,
            str(given.get("version")),
            kept,
            tuple(names),
            tuple(kinds),
            policy,
            window,
            min(every, window),
            settings.get("positive"),
        )


class _Waiting(NamedTuple):
    """What was read and is not counted yet."""

    matrices: list[npt.NDArray[np.float64]]
    rows: list[Sequence[Any]]
    predictions: list[Column]
    scores: list[Column]


class Window:
    """The trailing windows of one variant, made of whole buckets of ``step_seconds``."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.buckets: dict[int, Bucket] = {}
        self._waiting: dict[int, _Waiting] = {}  # rows by bucket that are not counted yet
        self._buffered = 0
        self._taken: dict[int, int] = {}  # rows looked at, by second
        self._rows_per_request = 1.0
        self._reported_at, self._fired = 0.0, False
        self._features = [name for name in watched.policy.features if name not in _ANSWERS]
        self._kinds = [watched.kinds[watched.names.index(name)] for name in self._features]
        self._wants_answers = [name for name in watched.policy.features if name in _ANSWERS]
        numeric = [name for name in self._features if self._is_numeric(name)]
        self._reader = RowReader(watched.names, watched.kinds, self._features, numeric)

    def add(self, records: Columns, chosen: npt.NDArray[np.int64]) -> None:
        """Take in answered requests; ``chosen`` holds their places in ``records``. Of what was made in one second, rows
        beyond ``MAX_ROWS_PER_SECOND`` are not looked at."""
        seconds = np.floor(records.at[chosen])
        numbers = np.floor(records.at[chosen] / self.watched.step_seconds)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            bucket = self.buckets.setdefault(int(number), Bucket())
            bucket.requests += int(np.count_nonzero(mine))
            for second in np.unique(seconds[mine]).tolist():
                self._sample(int(number), int(second), records, chosen[mine & (seconds == second)])
        if self._buffered >= MAX_BUFFERED_ROWS:
            self.count()

    def _sample(self, number: int, second: int, records: Columns, chosen: npt.NDArray[np.int64]) -> None:
        """Look at as many requests of one second as still fit, a few at a time: only reading tells how many rows."""
        if second not in self._taken and len(self._taken) >= MANY_SECONDS:
            del self._taken[min(self._taken)]
        chosen = chosen[records.places[chosen, 2] > records.places[chosen, 1]]  # those whose body was kept
        types: dict[str, list[int]] = {}
        for context in np.unique(records.context[chosen]).tolist():
            types.setdefault(str(records.contexts[context].get("content_type") or ""), []).append(context)
        for content_type, contexts in types.items():
            mine = chosen if len(types) == 1 else chosen[np.isin(records.context[chosen], contexts)]
            at = 0
            while at < len(mine) and (left := MAX_ROWS_PER_SECOND - self._taken.get(second, 0)) > 0:
                size = max(1, min(MANY_REQUESTS, int(left / self._rows_per_request)))
                part, at = mine[at : at + size], at + size
                self._taken[second] = self._taken.get(second, 0) + self._read(number, content_type, records, part)

    def _read(self, number: int, content_type: str, records: Columns, places: npt.NDArray[np.int64]) -> int:
        """Buffer the rows of these requests; gives how many there were."""
        found = self._reader.read(content_type, records.bodies(places))
        if not found.requests:
            return 0
        requests, rows = len(found.requests), found.total()
        self.buckets[number].sampled += requests
        self._rows_per_request = max(1.0, rows / requests)
        waiting = self._waiting.setdefault(number, _Waiting([], [], [], []))
        if found.matrix is not None:
            waiting.matrices.append(found.matrix)
        waiting.rows.extend(found.rows)
        if self._wants_answers:
            answers = records.answers(places[list(found.requests)])
            wanted = SCORE in self._wants_answers
            predictions, scores = read_answers(answers, self.watched.positive, scores=wanted)
            waiting.predictions.append(predictions)
            waiting.scores.append(scores)
        self._buffered += max(rows, requests)
        return max(rows, requests)

    def count(self) -> None:
        """Turn the buffered rows into counts."""
        for number, waiting in self._waiting.items():
            bucket = self.buckets[number]
            if waiting.matrices:
                table = np.ascontiguousarray(np.concatenate(waiting.matrices).T)
                for name, kind, column in zip(self._features, self._kinds, table, strict=True):
                    bucket.add({name: self._count(name, column, kind)})
            if waiting.rows:
                columns = zip(*waiting.rows, strict=True)
                for name, kind, values in zip(self._features, self._kinds, columns, strict=True):
                    bucket.add({name: self._count(name, values, kind)})
            for name, parts in ((PREDICTION, waiting.predictions), (SCORE, waiting.scores)):
                if name in self._wants_answers:
                    kind = "number" if self._is_numeric(name) else "string"
                    for column in _together(parts):
                        bucket.add({name: self._count(name, column, kind)})
        self._waiting, self._buffered = {}, 0

    def _is_numeric(self, name: str) -> bool:
        return isinstance(self.watched.baseline.features[name], Numeric)

    def _count(self, name: str, column: Column, kind: str) -> Counts:
        feature = self.watched.baseline.features[name]
        try:
            return feature.count(column)
        except (InvalidInput, OverflowError):
            # a value that is no number, or no scalar: it counts as missing, the others as what they are
            return feature.count([typed([value], [kind])[0] for value in column])

    def evaluate(self, now: float) -> dict[str, Any] | None:
        """The report row of the windows that end with the last whole bucket before ``now``.

        None while there are too few rows, and between two reports (``every_seconds``) unless drift begins or ends.
        """
        self.count()
        step, spans = self.watched.step_seconds, self.watched.spans
        end = math.floor(now / step)
        for number in [number for number in self.buckets if number < end - spans[0]]:
            del self.buckets[number]
        totals = self._totals(end, spans)
        if totals[spans[0]].rows < self.watched.policy.min_rows:
            return None
        span, found = self._judge(totals, spans)
        fired, total = bool(found.drifted), totals[span]
        if fired == self._fired and now - self._reported_at < self.watched.every_seconds - step / 2:
            return None
        self._reported_at, self._fired = now, fired
        return {
            "kind": "drift",
            "endpoint": self.watched.endpoint,
            "variant": self.watched.variant,
            "version": self.watched.version,
            "start_at": (end - span) * step,
            "end_at": end * step,
            "fired": fired,
            "body": {
                **found.to_dict(),
                "requests": total.requests,
                "sampled_share": round(total.sampled / total.requests, 4) if total.requests else 0.0,
            },
        }

    def _totals(self, end: int, spans: Sequence[int]) -> dict[int, Bucket]:
        """What each window holds, by its length in buckets."""
        total, totals, wanted = Bucket(), {}, sorted(spans)
        for number in sorted((n for n in self.buckets if n < end), reverse=True):
            while wanted and number < end - wanted[0]:
                totals[wanted.pop(0)] = replace(total, counts=dict(total.counts))
            total.merge(self.buckets[number])
        return {**totals, **dict.fromkeys(wanted, total)}

    def _judge(self, totals: Mapping[int, Bucket], spans: Sequence[int]) -> tuple[int, DriftReport]:
        """The longest window in which the rule picks a feature, or else the whole one, with its report."""
        policy = self.watched.policy
        whole = report(self.watched.baseline, self._counts(totals[spans[0]]), policy)
        if whole.drifted:
            return spans[0], whole
        for span in spans[1:]:
            if totals[span].rows >= policy.min_rows:
                surer = replace(policy, alpha=policy.alpha * span / spans[0] / (len(spans) - 1))
                found = report(self.watched.baseline, self._counts(totals[span]), surer)
                if found.drifted:
                    return span, found
        return spans[0], whole

    def _counts(self, total: Bucket) -> dict[str, Counts]:
        baseline = self.watched.baseline
        return {name: total.counts.get(name) or _empty(baseline, name) for name in self.watched.policy.features}

    def to_dict(self) -> dict[str, Any]:
        """What a restarted process needs to go on with this window."""
        self.count()
        return {
            "version": self.watched.version,
            "step_seconds": self.watched.step_seconds,
            "buckets": {
                str(number): {
                    "requests": bucket.requests,
                    "sampled": bucket.sampled,
                    "counts": {name: counts.to_dict() for name, counts in bucket.counts.items()},
                }
                for number, bucket in self.buckets.items()
            },
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take over what ``to_dict`` gave, unless it is of another version or another length of bucket."""
        same = (self.watched.version, self.watched.step_seconds)
        if (stored.get("version"), stored.get("step_seconds")) != same:
            return
        for number, given in stored["buckets"].items():
            bucket = Bucket(int(given["requests"]), int(given["sampled"]))
            for name, counts in given["counts"].items():
                feature = self.watched.baseline.features.get(name)
                found = Counts.from_dict(counts)
                if feature is not None and len(feature.counts.cells) == len(found.cells):
                    bucket.counts[name] = found
            self.buckets[int(number)] = bucket


def _together(parts: Sequence[Column]) -> list[Column]:
    """As few columns as possible: one array of what is numbers, one list of everything else."""
    arrays = [part for part in parts if isinstance(part, np.ndarray) and part.size]
    lists = [value for part in parts if not isinstance(part, np.ndarray) for value in part]
    return [*([np.concatenate(arrays)] if arrays else []), *([lists] if lists else [])]


def _empty(baseline: Baseline, name: str) -> Counts:
    return Counts((0,) * len(baseline.features[name].counts.cells), 0)
