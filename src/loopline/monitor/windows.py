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
from typing import Any

from loopline.domain.baselines import PREDICTION, SCORE, Baseline, Counts
from loopline.domain.capture import CaptureRecord
from loopline.domain.captured import Row, arrange, prediction_columns, predictions_of, rows_of, typed
from loopline.domain.drift import DriftPolicy, DriftReport, report
from loopline.errors import InvalidInput

MAX_ROWS_PER_SECOND = 1000  # of one variant; the rest of a second is counted but not looked at
MAX_BUFFERED_ROWS = 4096
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


class Window:
    """The trailing windows of one variant, made of whole buckets of ``step_seconds``."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.buckets: dict[int, Bucket] = {}
        self._rows: dict[int, list[list[Any]]] = {}
        self._answers: dict[int, list[Any]] = {}
        self._buffered = 0
        self._second, self._in_second = 0, 0
        self._reported_at, self._fired = 0.0, False
        self._features = [name for name in watched.policy.features if name not in _ANSWERS]
        self._columns = [watched.names.index(name) for name in self._features]
        self._wants_answers = [name for name in watched.policy.features if name in _ANSWERS]

    def add(self, record: CaptureRecord) -> None:
        """Take in one answered request; rows beyond ``MAX_ROWS_PER_SECOND`` are not looked at."""
        at = float(record.meta["at"])
        number = math.floor(at / self.watched.step_seconds)
        bucket = self.buckets.get(number)
        if bucket is None:
            bucket = self.buckets[number] = Bucket()
        bucket.requests += 1
        if int(at) != self._second:
            self._second, self._in_second = int(at), 0
        if self._in_second >= MAX_ROWS_PER_SECOND or not record.body:
            return
        rows = rows_of(str(record.meta.get("content_type") or ""), record.body)
        if rows is None:
            return
        bucket.sampled += 1
        self._in_second += len(rows)
        self._buffer(number, rows, record)
        if self._buffered >= MAX_BUFFERED_ROWS:
            self.count()

    def _buffer(self, number: int, rows: Sequence[Row], record: CaptureRecord) -> None:
        names = self.watched.names
        text = str(record.meta.get("content_type") or "").startswith("text/csv")
        kept = self._rows.setdefault(number, [])
        for row in rows[:MAX_ROWS_PER_SECOND]:
            values = arrange(row, names)
            if values is not None:
                kept.append(typed(values, self.watched.kinds) if text else values)
                self._buffered += 1
        if self._wants_answers:
            found = predictions_of(record.answer, self.watched.positive)
            self._answers.setdefault(number, []).extend((found or [])[:MAX_ROWS_PER_SECOND])

    def count(self) -> None:
        """Turn the buffered rows into counts."""
        for number, rows in self._rows.items():
            if rows:
                columns = list(zip(*rows, strict=True))
                for name, place in zip(self._features, self._columns, strict=True):
                    counted = self._count(name, columns[place], self.watched.kinds[place])
                    self.buckets[number].add({name: counted})
        for number, answers in self._answers.items():
            for name, column in prediction_columns(answers, self._wants_answers).items():
                if column:
                    kind = "number" if hasattr(self.watched.baseline.features[name], "edges") else "string"
                    self.buckets[number].add({name: self._count(name, column, kind)})
        self._rows, self._answers, self._buffered = {}, {}, 0

    def _count(self, name: str, column: Sequence[Any], kind: str) -> Counts:
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


def _empty(baseline: Baseline, name: str) -> Counts:
    return Counts((0,) * len(baseline.features[name].counts.cells), 0)
