"""Requests that wait for a server on demand: it is asked for once, and all of them go when it is there.

The gateway asks the supervisor by itself, so that a first request is served while control is down. It asks again for as
long as anybody waits: a datagram may be lost, and a supervisor may have begun anew. Who waits holds no place at the
servers, so that a model that loads keeps nobody from the others.
"""

import json
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from loopline.errors import LooplineError, NotReady, Unavailable
from loopline.gateway.links import Link

MAX_WAITING = 256  # requests for one server
ASK_SECONDS = 0.5
RETRY_SECONDS = 1  # what a caller is told to wait when there are too many
FAILED_RETRY_SECONDS = 10  # and when the model does not load


class Candidate(Protocol):
    """A request whose server sleeps. ``done``: nobody wants it any more."""

    done: bool

    def woken(self) -> None:
        """The server is there, or is no more what the request is to go to."""

    def turned_away(self, error: LooplineError, retry_seconds: int) -> None:
        """It will not be, in time."""


class Held(NamedTuple):
    """A request that waits until ``deadline``."""

    deadline: float
    candidate: Candidate


class Queue:
    """Who waits for one server, in the order of arrival."""

    __slots__ = ("asked_at", "began_at", "held", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.held: deque[Held] = deque()
        self.began_at = time.time()
        self.asked_at = 0.0


class Activation:
    """All requests of one gateway that wait for servers on demand. ``now`` gives seconds."""

    def __init__(self, run_dir: Path, now: Callable[[], float]) -> None:
        self._supervisor = str(run_dir / "supervisor.sock")
        self._now = now
        self._queues: dict[Link, Queue] = {}

    def hold(self, candidate: Candidate, link: Link, what: str, deadline: float) -> None:
        """Keep a request until the server at the link is there, or ``deadline``. ``what``: whose server, for people."""
        if link.retired:
            candidate.turned_away(Unavailable(f"{what} was taken away"), RETRY_SECONDS)
            return
        queue = self._queues.get(link)
        if queue is None:
            queue = self._queues[link] = Queue(what)
            link.wake(lambda: self._woken(link))
            self._ask(link, queue)
        if len(queue.held) >= MAX_WAITING:
            message = f"{MAX_WAITING} requests wait for {what} to start; try again"
            candidate.turned_away(Unavailable(message), RETRY_SECONDS)
            return
        queue.held.append(Held(deadline, candidate))

    def look(self) -> None:
        """To be called every tick: turn away who has waited long enough, ask again for the others."""
        now = self._now()
        for link, queue in list(self._queues.items()):
            if link.retired:  # another server may have come in its place: they choose again
                self._woken(link)
                continue
            late = [held for held in queue.held if held.candidate.done or now >= held.deadline]
            if late:
                queue.held = deque(held for held in queue.held if held not in late)
            error = NotReady(f"{queue.what} did not start in time; try again")
            self._turn_away(late, error, RETRY_SECONDS)
            if queue.held and now - queue.asked_at >= ASK_SECONDS:
                self._ask(link, queue)
                self._give_up_if_failed(link, queue)
            if not queue.held:
                del self._queues[link]
                link.rest()

    def drop(self) -> None:
        """The gateway ends."""
        for link, queue in self._queues.items():
            self._turn_away(list(queue.held), Unavailable("the server is stopping"), RETRY_SECONDS)
            link.rest()
        self._queues.clear()

    def _woken(self, link: Link) -> None:
        queue = self._queues.pop(link, None)
        for held in queue.held if queue else ():
            if not held.candidate.done:
                held.candidate.woken()

    def _ask(self, link: Link, queue: Queue) -> None:
        queue.asked_at = self._now()
        message = {"kind": "start", "id": Path(link.path).name.removesuffix(".sock")}
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(json.dumps(message).encode(), self._supervisor)

    def _give_up_if_failed(self, link: Link, queue: Queue) -> None:
        """A model that does not load says so in its status file; nobody need wait for the next attempt."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            status = json.loads(Path(link.path).with_suffix(".json").read_bytes())
            if status["state"] == "failed" and status["at"] >= queue.began_at:
                held, queue.held = list(queue.held), deque()
                self._turn_away(held, Unavailable(f"{queue.what} does not load"), FAILED_RETRY_SECONDS)

    @staticmethod
    def _turn_away(held: list[Held], error: LooplineError, retry_seconds: int) -> None:
        for each in held:
            if not each.candidate.done:
                each.candidate.turned_away(error, retry_seconds)
