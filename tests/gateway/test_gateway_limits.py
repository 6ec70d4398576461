"""Admission on a simulated clock: servers of different kinds, offered more than they can do."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loopline.errors import LooplineError, Overloaded, Timeout
from loopline.gateway.limits import LEAST_LIMIT, LEAST_QUEUE, Admission, Limits


class Time:
    """Seconds that pass when somebody has something to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def read(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = until

    def every(self, seconds: float, call: Callable[[], object]) -> None:
        call()
        self.later(seconds, lambda: self.every(seconds, call))


@dataclass
class Request:
    world: "World"
    lane: object
    came: float
    deadline: float
    done: bool = False
    submitted: bool = False
    refused: tuple[LooplineError, int] | None = None
    over: float = -1.0

    def admitted(self) -> None:
        self.submitted = True
        self.world.serve(self)

    def turned_away(self, error: LooplineError, retry_seconds: int) -> None:
        assert not self.submitted
        self.refused, self.done, self.over = (error, retry_seconds), True, self.world.time.now

    def answer(self) -> None:
        self.done, self.submitted, self.over = True, False, self.world.time.now
        self.world.admission.leave(self, True)

    @property
    def seconds(self) -> float:
        return self.over - self.came


@dataclass
class World:
    """One variant. ``work`` gives how long its server takes for a batch of so many; it takes at most ``batch``."""

    work: Callable[[int], float]
    batch: int = 1
    max_concurrent: int = 256
    queue_seconds: float = 1.0
    time: Time = field(default_factory=Time)
    inbox: list[Request] = field(default_factory=list)
    busy: bool = False
    most: int = 0

    def __post_init__(self) -> None:
        self.admission = Admission(self.max_concurrent, self.queue_seconds, self.time.read, self.time.later)
        self.requests: list[Request] = []
        self.time.every(0.05, self.admission.look)

    def send(self, lane: object = None, patience: float = 30.0) -> Request:
        made = Request(self, lane, self.time.now, self.time.now + patience)
        self.requests.append(made)
        if self.admission.enter(made, self.time.now):
            made.admitted()
        return made

    def serve(self, request: Request) -> None:
        self.inbox.append(request)
        self.most = max(self.most, self.admission.used)
        if not self.busy:
            self._next()

    def _next(self) -> None:
        taken, self.inbox = self.inbox[: self.batch], self.inbox[self.batch :]
        self.busy = bool(taken)
        if taken:
            self.time.later(self.work(len(taken)), lambda: self._finish(taken))

    def _finish(self, taken: list[Request]) -> None:
        for request in taken:
            request.answer()
        self._next()

    def offer(self, rate: float, seconds: float, lanes: tuple[object, ...] = (None,), **options: Any) -> None:
        """Poisson arrivals, whatever becomes of them."""
        rng, at = random.Random(1), 0.0
        while (at := at + rng.expovariate(rate)) < seconds:
            lane = rng.choice(lanes)
            self.time.later(at, lambda lane=lane: self.send(lane, **options))

    def answered(self, since: float = 0.0) -> list[Request]:
        return [r for r in self.requests if r.over >= 0 and r.refused is None and r.came >= since]

    def refused(self, since: float = 0.0) -> list[Request]:
        return [r for r in self.requests if r.refused is not None and r.came >= since]


def serial(seconds: float) -> Callable[[int], float]:
    return lambda count: seconds * count


@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.2])
def test_five_times_too_much_is_refused_quickly_and_the_rest_is_served_in_time(seconds: float) -> None:
    world = World(serial(seconds))
    world.offer(5 / seconds, 30.0)
    world.time.run(60.0)
    assert all(request.over >= 0 for request in world.requests), "somebody hangs"
    allowed = world.queue_seconds + 4 * seconds
    assert max(request.seconds for request in world.answered()) < 2 * allowed
    assert max(request.seconds for request in world.answered(since=3.0)) < 1.2 * allowed
    assert len(world.answered()) > 0.9 * 30 / seconds, "the server had nothing to do although others waited"
    assert max(request.seconds for request in world.refused(since=3.0)) < max(0.05, 1.5 * seconds)
    error, retry = world.refused()[-1].refused or (None, 0)
    assert isinstance(error, Overloaded) and 1 <= retry <= 10


def test_a_server_that_takes_all_that_waits_and_gains_nothing_by_it_is_held_to_the_same() -> None:
    world = World(serial(0.02), batch=1024)  # answers come in bursts, which must not look like speed
    world.offer(250, 30.0)
    world.time.run(60.0)
    late = [request.seconds for request in world.answered(since=3.0)]
    assert sum(late) / len(late) < 0.8 and max(late) < 1.3
    assert len(world.answered()) > 0.9 * 30 * 50
    assert max(request.seconds for request in world.refused(since=3.0)) < 0.05


def test_what_the_server_can_do_is_never_refused() -> None:
    world = World(serial(0.02))
    world.offer(40, 60.0)
    world.time.run(70.0)
    assert not world.refused() and len(world.answered()) == len(world.requests)


def test_a_burst_waits_for_its_turn() -> None:
    world = World(serial(0.002))
    for _ in range(200):
        world.send()
    world.time.run(5.0)
    assert not world.refused()


def test_a_server_that_answers_many_at_once_is_given_many() -> None:
    world = World(lambda count: 0.05 + 0.0002 * count, batch=1024)
    world.offer(1500, 10.0)
    world.time.run(20.0)
    assert len(world.refused()) < 0.01 * len(world.requests)
    assert world.most > 60


def test_a_server_that_hangs_leaves_only_those_waiting_whom_it_has() -> None:
    world = World(serial(0.01))
    world.offer(50, 2.0)
    world.time.run(2.0)
    world.work = serial(1e9)
    world.offer(200, 10.0)
    world.time.run(12.0)
    late = world.refused(since=4.0)
    assert len(late) > 0.9 * 200 * 8
    assert max(request.seconds for request in late) < 0.1
    assert world.admission.used < world.max_concurrent / 2
    assert world.admission.limit == LEAST_LIMIT


def test_a_server_that_has_become_quick_again_is_used_again() -> None:
    world = World(serial(0.02))
    world.offer(250, 10.0)
    world.time.run(10.0)
    world.work = serial(0.001)
    world.offer(250, 10.0)
    world.time.run(25.0)
    assert not world.refused(since=12.0)


def test_no_more_than_max_concurrent_are_at_the_servers() -> None:
    world = World(serial(0.001), max_concurrent=3)
    world.offer(3000, 1.0)
    world.time.run(5.0)
    assert world.most == 3


def test_a_request_whose_time_is_over_is_never_sent() -> None:
    world = World(serial(0.1), max_concurrent=1)
    first, second = world.send(), world.send(patience=0.05)
    world.time.run(1.0)
    assert first.refused is None
    assert second.refused is not None and isinstance(second.refused[0], Timeout)
    assert second.seconds < 0.1


def test_a_request_that_nobody_wants_any_more_takes_no_place() -> None:
    world = World(serial(0.1), max_concurrent=1)
    _, gone, third = world.send(), world.send(), world.send()
    gone.done = True
    world.time.run(1.0)
    assert gone.over < 0 and third.seconds == pytest.approx(0.2)
    assert world.admission.used == 0 and world.admission.waiting == 0


def test_a_key_that_sends_too_much_does_not_starve_another() -> None:
    world = World(serial(0.01))
    world.offer(1000, 20.0, lanes=("greedy",) * 49 + ("modest",))
    world.time.run(30.0)
    modest = [request for request in world.requests if request.lane == "modest" and request.came > 2.0]
    greedy = [request for request in world.requests if request.lane == "greedy" and request.came > 2.0]
    assert sum(r.refused is None for r in modest) > 0.9 * len(modest)
    assert sum(r.refused is not None for r in greedy) > 0.8 * len(greedy)


def test_a_full_queue_makes_room_for_who_has_less_in_it() -> None:
    world = World(serial(0.05), max_concurrent=2)
    for _ in range(2 + LEAST_QUEUE):
        assert world.send("greedy").refused is None
    assert world.send("greedy").refused is not None
    modest = world.send("modest")
    assert modest.refused is None and world.admission.waiting == LEAST_QUEUE
    world.time.run(5.0)
    assert modest.refused is None and modest.over > 0


def test_gateways_of_a_host_hold_a_limit_together(tmp_path: Path) -> None:
    time = Time()
    both = [Limits(tmp_path / "places", index, 2, time.read, time.later) for index in range(2)]
    one, other = (limits.of("e", "v1", 4, 1.0) for limits in both)
    sent = [Request(World(serial(1.0)), None, 0.0, 30.0) for _ in range(6)]
    assert [one.enter(request, 0.0) for request in sent[:3]] == [True] * 3
    assert other.enter(sent[3], 0.0)
    assert not other.enter(sent[4], 0.0)
    one.leave(sent[0], True)
    time.run(0.1)
    assert sent[4].submitted, "a place that another gateway gave back was not taken"
    both[0] = Limits(tmp_path / "places", 0, 2, time.read, time.later)  # it died with what it had
    assert both[0].of("e", "v1", 4, 1.0).enter(sent[5], 0.1)


def test_settings_may_change_while_requests_wait() -> None:
    world = World(serial(0.05), max_concurrent=1)
    first, second = world.send(), world.send()
    world.admission.configure(8, 1.0)
    world.time.run(0.06)
    assert first.over > 0 and second.submitted
