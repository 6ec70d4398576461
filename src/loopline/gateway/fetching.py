"""Requests for models that the table does not know yet, of endpoints that serve whatever lies below a prefix.

Control is asked for each such model by a datagram, again and again for as long as somebody waits: one may be lost, and
control may have begun anew. It answers by a table that has the model, and the requests choose once more, or by a
datagram that says why there is none. Models that the table knows need nothing of this.
"""

import json
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError, NotFound, NotReady, Unavailable
from loopline.gateway.activation import FAILED_RETRY_SECONDS, RETRY_SECONDS, Candidate, Held
from loopline.gateway.routing import Endpoint

MAX_WAITING = 256  # requests for one model
MAX_MODELS = 64  # that are waited for at the same time
ASK_SECONDS = 0.5

Model = tuple[str, str]  # endpoint, and what the model is asked for by


class Queue:
    """Who waits for one model, in the order of arrival."""

    __slots__ = ("asked_at", "held")

    def __init__(self) -> None:
        self.held: deque[Held] = deque()
        self.asked_at = 0.0


class Fetching:
    """All requests of one gateway that wait for models to come. ``now`` gives seconds."""

    def __init__(self, run_dir: Path, now: Callable[[], float]) -> None:
        self._control = str(run_dir / "wake.sock")
        self._now = now
        self._queues: dict[Model, Queue] = {}

    def hold(self, candidate: Candidate, endpoint: str, model: str, deadline: float) -> None:
        """Keep a request until the model is there, or ``deadline``."""
        queue = self._queues.get((endpoint, model))
        full = len(self._queues) >= MAX_MODELS if queue is None else len(queue.held) >= MAX_WAITING
        if full:
            candidate.turned_away(Unavailable("too many requests wait for models to come; try again"), RETRY_SECONDS)
            return
        if queue is None:
            queue = self._queues[endpoint, model] = Queue()
            self._ask((endpoint, model), queue)
        queue.held.append(Held(deadline, candidate))

    def look(self) -> None:
        """To be called every tick: turn away who has waited long enough, ask again for the others."""
        now = self._now()
        for model, queue in list(self._queues.items()):
            late = [held for held in queue.held if held.candidate.done or now >= held.deadline]
            if late:
                queue.held = deque(held for held in queue.held if held not in late)
                _turn_away(late, NotReady(f"the model {model[1]} did not come in time; try again"), RETRY_SECONDS)
            if not queue.held:
                del self._queues[model]
            elif now - queue.asked_at >= ASK_SECONDS:
                self._ask(model, queue)

    def switched(self, endpoints: Mapping[bytes, Endpoint]) -> None:
        """Another table is in force: who waits for a model that it has, or in vain, chooses again."""
        for name, model in list(self._queues):
            endpoint = endpoints.get(name.encode())
            models = None if endpoint is None else endpoint.models
            if models is None or models.has(model.encode()):
                for held in self._queues.pop((name, model)).held:
                    if not held.candidate.done:
                        held.candidate.woken()

    def heard(self, data: bytes) -> None:
        """A datagram of control's; those that are about no model are passed over."""
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            message: dict[str, Any] = json.loads(data)
            if message["kind"] == "refused":
                queue = self._queues.pop((message["endpoint"], message["model"]), None)
                absent = bool(message["absent"])
                error = NotFound(str(message["message"])) if absent else Unavailable(str(message["message"]))
                _turn_away(queue.held if queue else (), error, RETRY_SECONDS if absent else FAILED_RETRY_SECONDS)

    def drop(self) -> None:
        """The gateway ends."""
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            _turn_away(queue.held, Unavailable("the server is stopping"), RETRY_SECONDS)

    def _ask(self, model: Model, queue: Queue) -> None:
        queue.asked_at = self._now()
        message = {"kind": "wanted", "endpoint": model[0], "model": model[1]}
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(json.dumps(message, ensure_ascii=False).encode(), self._control)


def _turn_away(held: "deque[Held] | list[Held] | tuple[Held, ...]", error: LooplineError, retry_seconds: int) -> None:
    for each in held:
        if not each.candidate.done:
            each.candidate.turned_away(error, retry_seconds)
