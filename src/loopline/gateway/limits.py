"""Admission: how many requests of a variant are at its servers, how long others wait for their turn, and who is told to
come again later before everybody's latency collapses.

Two published methods, one for each place where a queue forms:

- **At the servers**: what is in flight is held to the servers' rate of answers times the latency that is wanted, as BBR
  holds a path to its delivery rate times its round trip (N. Cardwell et al., "BBR: Congestion-Based Congestion
  Control", ACM Queue 14(5), 2016). One request at a time is the *probe*: the answers between the last one before it and
  its own, over that time, are the rate, both ends taken after all that arrives together; the smallest time that a probe
  took is what a prediction takes when nobody is before it.
- **At the gateway**: what may not go yet waits under controlled delay in the form that B. Maurer gives for requests
  ("Fail at Scale", ACM Queue 13(8), 2015; the method is K. Nichols' and V. Jacobson's CoDel, RFC 8289): a queue that
  was empty within the last interval is a burst, and a request may wait that interval; one that was not, or from which
  somebody was sent away within the interval, stands, and a request may wait a twentieth of it, so that those who are
  served are served soon and the others know at once.

``queue_seconds`` is the time that a request may wait for its turn, half of it here and half of it at the servers; where
a prediction takes long by itself, four times that, if it is more. Lanes, one for each key, take turns; when the queue
is full the newest request of the longest lane makes room (longest-queue drop, P. McKenney, "Stochastic Fairness
Queueing", 1990).

A variant is limited by itself: one that hangs fills its own places and no other's.
"""

import hashlib
import math
import mmap
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from loopline.errors import LooplineError, Overloaded, Timeout

FIRST_LIMIT = 16  # before anything is known of the servers
LEAST_LIMIT = 2  # one being worked on, one on its way
PATIENCE = 4  # a request may wait at least as long as so many predictions take
STANDING_SHARE = 0.05  # of the interval: how long a request may wait in a queue that stands
LOOK_SECONDS = 0.01  # how often the waiting are looked at
LEAST_QUEUE = 256  # so many may wait, or max_concurrent if it is more
MAX_GATEWAYS = 64
MAX_RETRY_SECONDS = 60

Later = Callable[[float, Callable[[], None]], object]


class Candidate(Protocol):
    """A request that asks to be let in. ``lane``: what it shares its turns with; ``done``: nobody wants it any more;
    ``submitted``: a server has it."""

    done: bool
    submitted: bool
    deadline: float

    @property
    def lane(self) -> object:
        """The key that it came with, or None."""

    def admitted(self) -> None:
        """It has a place and may go."""

    def turned_away(self, error: LooplineError, retry_seconds: int) -> None:
        """It will not go."""


class Places:
    """How many requests each gateway process of this host has at a variant's servers: one cell for each, which that
    process alone writes. What all of them have together is their sum, so a limit holds for the host: it may be exceeded
    by as many requests as there are other gateways, when all of them look at the same moment."""

    def __init__(self, path: Path, index: int, gateways: int) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, MAX_GATEWAYS * 4)
            self._map = mmap.mmap(descriptor, MAX_GATEWAYS * 4)
        finally:
            os.close(descriptor)
        self._cells = memoryview(self._map).cast("I")
        self._index = index
        self._count = min(gateways, MAX_GATEWAYS)
        self.publish(0)

    def publish(self, used: int) -> None:
        """Tell the others what this process has in flight."""
        self._cells[self._index] = used

    def of_others(self) -> int:
        """What the other processes have in flight."""
        cells = self._cells
        return sum(cells[: self._count]) - cells[self._index]


class Admission:
    """The places and the queue of one variant. ``now`` gives seconds; ``later(seconds, call)`` calls back.

    Who was let in must ``leave``, once: with the answer, or when it is known that none will come.
    """

    __slots__ = (
        "_answered_at",
        "_answers",
        "_base",
        "_empty_at",
        "_lanes",
        "_later",
        "_learned",
        "_looking",
        "_max",
        "_now",
        "_places",
        "_probe",
        "_probe_answers",
        "_probe_at",
        "_probe_since",
        "_probing",
        "_queue_seconds",
        "_rate",
        "_refused_at",
        "_turns",
        "_waiting",
        "limit",
        "used",
    )

    def __init__(
        self,
        max_concurrent: int,
        queue_seconds: float,
        now: Callable[[], float],
        later: Later,
        places: Places | None = None,
    ) -> None:
        self.used = 0
        self._now = now
        self._later = later
        self._places = places
        self._answers = 0
        self._base = math.inf  # the least time that a prediction took
        self._refused_at = -math.inf
        self._rate = 0.0  # answers a second, as the last probe saw it
        self._learned: float = FIRST_LIMIT
        self._probing = True
        self._probe: Candidate | None = None
        self._probe_at = 0.0
        self._probe_since = 0.0
        self._probe_answers = 0
        self._answered_at: float | None = None  # the last answer, where it was looked at since ``look``
        self._lanes: dict[object, deque[tuple[float, Candidate]]] = {}
        self._turns: deque[object] = deque()  # the lanes in the order of their turns
        self._waiting = 0
        self._empty_at = -math.inf
        self._looking = False
        self._max = max_concurrent
        self._queue_seconds = queue_seconds
        self.limit = min(FIRST_LIMIT, max_concurrent)

    def configure(self, max_concurrent: int, queue_seconds: float) -> None:
        """Go by new settings; what is in flight and what waits stays."""
        self._max, self._queue_seconds = max_concurrent, queue_seconds
        self._set_limit(self._learned)

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn here."""
        return self._waiting

    # -- coming and going

    def enter(self, candidate: Candidate, now: float) -> bool:
        """Whether the request may go at once. Otherwise it hears later: ``admitted`` or ``turned_away``, which may be
        before this returns."""
        if self.used < self.limit and not self._waiting and (self._places is None or self._room()):
            self._take(candidate, now)
            return True
        self._enqueue(candidate, now)
        return False

    def _take(self, candidate: Candidate, now: float) -> None:
        self.used += 1
        if self._probing and self._probe is None:
            self._begin_probe(candidate, now)
        if self._places is not None:
            self._places.publish(self.used)

    def leave(self, candidate: Candidate, good: bool | None) -> None:
        """The request is over; ``good``: it was answered with a prediction; None: it was not answered at all."""
        self.used -= 1
        if good is not None:
            self._answers += 1
            if self._probing:
                self._answered_at = self._now()
        if self._probe is candidate:
            self._end_probe(good)
        if self._places is not None:
            self._places.publish(self.used)
        if self._waiting:
            self._let_in()

    def _room(self) -> bool:
        return self._places is None or self.used + self._places.of_others() < self._max

    # -- learning

    def _begin_probe(self, candidate: Candidate, now: float) -> None:
        if self.used == 1:
            since = now
        elif self._answered_at is not None:
            since = self._answered_at
        else:
            return  # when the answer before it came is not known
        self._probe, self._probe_at, self._probe_since, self._probe_answers = candidate, now, since, self._answers
        if self.used > 1:
            self._later(0.0, lambda: self._count_from(candidate))

    def _count_from(self, candidate: Candidate) -> None:
        """What arrived together with the answer before the probe has all been counted."""
        if self._probe is candidate:
            self._probe_answers = self._answers

    def _end_probe(self, good: bool | None) -> None:
        self._probe = None
        if good is None:
            return
        self._probing = False
        now, began, since, before = self._now(), self._probe_at, self._probe_since, self._probe_answers
        self._later(0.0, lambda: self._learn(now - began, now - since, before, good))

    def _learn(self, seconds: float, elapsed: float, before: int, good: bool) -> None:
        """What a probe says that took ``seconds``, or has taken so long and is not answered; the answers since there
        were ``before`` came in the time ``elapsed``."""
        if elapsed <= 0.0:
            return
        first = self._base == math.inf
        if good:
            self._base = min(self._base, seconds)
        self._rate = (self._answers - before) / elapsed
        if self._base == math.inf:
            return
        wanted = self._wanted_seconds()
        bearable = self._rate * wanted
        if seconds > wanted:
            self._set_limit(bearable)
        elif first:  # servers that answer many at once have not shown yet what they can do
            self._set_limit(max(min(self._learned, 2 * bearable), bearable))
        else:
            self._set_limit(max(self._learned, bearable))

    def _wanted_seconds(self) -> float:
        """The latency at the servers that is still good: one prediction before it, its own, and the wait."""
        return 2 * self._base + self._interval()

    def _interval(self) -> float:
        """Half of the time that a request may wait."""
        base = self._base if self._base < math.inf else 0.0
        return max(self._queue_seconds, PATIENCE * base) / 2

    def _set_limit(self, learned: float) -> None:
        self._learned = min(max(learned, LEAST_LIMIT), self._max)
        self.limit = int(self._learned)

    def look(self) -> None:
        """To be called every few hundredths of a second: sees a probe that is overdue before its answer tells, and
        lets the next one begin, which costs quick variants less than a probe at a time would."""
        probe = self._probe
        if probe is not None and self._base < math.inf:
            now = self._now()
            if not probe.submitted:  # its server is being started, which says nothing about how quick it is
                self._probe_at = self._probe_since = now
            elif now - self._probe_at > self._wanted_seconds():
                self._probe = None
                self._learn(now - self._probe_at, now - self._probe_since, self._probe_answers, good=False)
        if not self._probing:
            self._probing, self._answered_at = True, None
        if self._waiting:
            self._let_in()

    # -- waiting

    def _enqueue(self, candidate: Candidate, now: float) -> None:
        if not self._waiting:
            self._empty_at = now
        interval = self._interval()
        stands = now - self._empty_at > interval or now - self._refused_at < interval
        until = now + (max(STANDING_SHARE * interval, min(self._base, interval)) if stands else interval)
        if candidate.deadline <= now or (stands and self._expected(self.used) > candidate.deadline - now):
            self._turn_away(candidate)
            return
        if self._waiting >= max(self._max, LEAST_QUEUE) and not self._make_room(candidate.lane):
            self._turn_away(candidate)
            return
        lane = self._lanes.get(candidate.lane)
        if lane is None:
            lane = self._lanes[candidate.lane] = deque()
            self._turns.append(candidate.lane)
        lane.append((until, candidate))
        self._waiting += 1
        self._let_in()
        self._look_again()

    def _make_room(self, newcomer: object) -> bool:
        """Turn away the newest of the longest lane, unless that is the newcomer's own."""
        longest = max(self._lanes, key=lambda name: len(self._lanes[name]))
        if len(self._lanes.get(newcomer, ())) + 1 >= len(self._lanes[longest]):
            return False
        _, victim = self._lanes[longest].pop()
        self._forget(longest)
        self._turn_away(victim)
        return True

    def _forget(self, name: object) -> None:
        """One request of a lane has left the queue."""
        self._waiting -= 1
        if not self._lanes[name]:
            del self._lanes[name]
            self._turns.remove(name)

    def _let_in(self) -> None:
        """Give free places to those who wait, one lane after the other."""
        while self._waiting and self.used < self.limit and self._room():
            name = self._turns[0]
            self._turns.rotate(-1)
            _, candidate = self._lanes[name].popleft()
            self._forget(name)
            if candidate.done:
                continue
            now = self._now()
            if candidate.deadline <= now:
                self._turn_away(candidate)
                continue
            self._take(candidate, now)
            candidate.admitted()
        if not self._waiting:
            self._empty_at = self._now()

    def _look_again(self) -> None:
        if self._waiting and not self._looking:
            self._looking = True
            self._later(LOOK_SECONDS, self._expire)

    def _expire(self) -> None:
        """Turn away who has waited long enough."""
        self._looking = False
        self.look()
        now = self._now()
        late: list[Candidate] = []
        for name, lane in list(self._lanes.items()):
            kept = deque(entry for entry in lane if not self._is_over(entry, now, late))
            gone = len(lane) - len(kept)
            self._lanes[name] = kept
            self._waiting -= gone
            if not kept:
                del self._lanes[name]
                self._turns.remove(name)
        for candidate in late:
            self._turn_away(candidate)
        if not self._waiting:
            self._empty_at = now
        self._look_again()

    @staticmethod
    def _is_over(entry: tuple[float, Candidate], now: float, late: list[Candidate]) -> bool:
        until, candidate = entry
        if candidate.done:
            return True
        if now >= until or now >= candidate.deadline:
            late.append(candidate)
            return True
        return False

    # -- refusing

    def _expected(self, ahead: int) -> float:
        """Seconds until a request would be answered that has so many before it; 0 where nothing is known yet."""
        if self._base == math.inf:
            return 0.0
        return (ahead + 1) / self._rate if self._rate else math.inf

    def _turn_away(self, candidate: Candidate) -> None:
        now = self._now()
        error: LooplineError
        if candidate.deadline <= now:
            error = Timeout("the request's time was over before it was its turn; it was not sent to a model")
        else:
            self._refused_at = now
            error = Overloaded("the endpoint has more requests than it can answer in time")
        expected = self._expected(self.used + self._waiting)
        candidate.turned_away(error, 1 if expected == math.inf else min(MAX_RETRY_SECONDS, max(1, math.ceil(expected))))


class Limits:
    """The admissions of a gateway, by endpoint and variant; they outlive snapshots, so that a swap forgets nothing.

    With several gateways on the host each variant has a file of ``Places`` in ``folder``.
    """

    def __init__(self, folder: Path, index: int, gateways: int, now: Callable[[], float], later: Later) -> None:
        self._folder = folder
        self._index = index
        self._gateways = gateways
        self._now = now
        self._later = later
        self._known: dict[tuple[str, str], Admission] = {}

    def of(self, endpoint: str, variant: str, max_concurrent: int, queue_seconds: float) -> Admission:
        """The admission of a variant, with these settings."""
        found = self._known.get((endpoint, variant))
        if found is None:
            places = None
            if self._gateways > 1:
                places = Places(self._path(endpoint, variant), self._index, self._gateways)
            found = Admission(max_concurrent, queue_seconds, self._now, self._later, places)
            self._known[endpoint, variant] = found
        else:
            found.configure(max_concurrent, queue_seconds)
        return found

    def _path(self, endpoint: str, variant: str) -> Path:
        return self._folder / hashlib.sha256(f"{endpoint}/{variant}".encode()).hexdigest()[:24]

    def keep(self, variants: set[tuple[str, str]]) -> None:
        """Let go of every other variant."""
        for endpoint, variant in set(self._known) - variants:
            del self._known[endpoint, variant]
            self._path(endpoint, variant).unlink(missing_ok=True)

    def look(self) -> None:
        """``look`` of every admission."""
        for admission in self._known.values():
            admission.look()
