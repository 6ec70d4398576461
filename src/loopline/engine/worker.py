"""The engine's threads: one hears wake-ups, one reads events, one ticks, and some work on leased tasks.

Every thread loops over "look, then wait until woken or until something is due"; a wake-up is only ever a hint.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from pathlib import Path

from loopline.control import events, jobs, modelstores, monitoring
from loopline.control.context import Context
from loopline.engine.reactions import REACTIONS
from loopline.engine.tasks import SLOW, TASKS
from loopline.engine.ticks import TICKS
from loopline.errors import LooplineError, StaleToken
from loopline.runtime import processes
from loopline.store import queue

log = logging.getLogger("loopline.engine")

LEASE_SECONDS = 60.0
IDLE_SECONDS = 0.5
BREATH_SECONDS = 0.1  # between two rounds of reactions, so that a burst of events is read in a few batches
SWITCH_SECONDS = 0.001  # how long one thread computes while others wait: what starts the next step must not wait long
MAX_ERROR = 2000
MAX_WAKE_BYTES = 4096
QUICK = frozenset(TASKS) - SLOW
QUICK_WORKERS = 2
SLOW_WORKERS = 3


class Engine:
    """Starts and stops the threads of one control process."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._events = threading.Event()
        # The bells of those who work on these kinds of tasks.
        self._tasks: dict[frozenset[str], list[threading.Event]] = {QUICK: [], SLOW: []}
        self._leases = _Leases(ctx)
        self._socket: socket.socket | None = None
        ctx.wake = self.wake
        ctx.db.on_event.append(self._events.set)
        ctx.db.on_ask.append(self._asked)

    def start(self) -> None:
        """Take over what earlier processes of this host left, and start every thread."""
        taken = queue.release(self.ctx.db, partial(_is_dead, self.ctx.host))
        if taken:
            log.info("took over %d tasks of a process that is gone", taken)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._socket = _bind(self.ctx.settings.run_dir / "wake.sock")
        self._thread("wake", self._listen)
        self._thread("events", self._react)
        self._thread("ticks", self._tick)
        self._thread("leases", lambda: self._leases.renew_until(self._stopping))
        for number in range(QUICK_WORKERS):
            self._thread(f"tasks-{number}", self._worker(QUICK))
        for number in range(SLOW_WORKERS):
            self._thread(f"slow-{number}", self._worker(SLOW))

    def stop(self) -> None:
        """Ask every thread to end and wait for what it is doing, up to a few seconds each."""
        self._stopping.set()
        self.wake()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would leave the listener waiting
            self._socket.close()
        for thread in self._threads:
            thread.join(5)

    def wake(self) -> None:
        """Make every thread look now."""
        self._events.set()
        self._asked(frozenset(TASKS))

    def _asked(self, kinds: Set[str]) -> None:
        """Tasks of these kinds were asked for."""
        for worked_on, bells in self._tasks.items():
            if not worked_on.isdisjoint(kinds):
                for bell in bells:
                    bell.set()

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- wake-ups -----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Datagrams: an attempt that has ended is collected at once, the rest rings the bells."""
        listener = self._socket
        while listener is not None and not self._stopping.is_set():
            try:
                data = listener.recv(MAX_WAKE_BYTES)
                if not data and self._stopping.is_set():
                    return
                message = json.loads(data)
                kind = message.get("kind")
            except (ValueError, AttributeError):
                continue
            except OSError:
                return
            self._safely("wake", partial(self._heard, kind, message))

    def _heard(self, kind: object, message: dict[str, object]) -> None:
        if kind == "attempt" and isinstance(message.get("id"), str):
            jobs.collect(self.ctx, str(message["id"]))
            return  # whatever follows from it has been done, or has been asked for by an event
        if kind == "wanted":
            modelstores.wanted(self.ctx, str(message.get("endpoint")), str(message.get("model")))
            return
        if kind == "spool":
            monitoring.ingest(self.ctx)
        self.wake()

    # -- events and ticks ---------------------------------------------------------------------------------------------

    def _react(self) -> None:
        while not self._stopping.is_set():
            self._events.clear()
            written = events.Log(self.ctx)
            for reaction in REACTIONS:
                consume = partial(events.consume, self.ctx, *reaction, written)
                self._safely(f"reaction {reaction.name}", consume)
            self._stopping.wait(BREATH_SECONDS)
            self._events.wait(IDLE_SECONDS)

    def _tick(self) -> None:
        due = {tick.name: 0.0 for tick in TICKS}
        while not self._stopping.is_set():
            now = time.monotonic()
            for tick in TICKS:
                if due[tick.name] <= now:
                    due[tick.name] = now + tick.every_seconds
                    self._safely(f"tick {tick.name}", partial(tick.run, self.ctx))
            self._stopping.wait(max(0.01, min(due.values()) - time.monotonic()))

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _worker(self, group: frozenset[str]) -> Callable[[], None]:
        bell = threading.Event()
        self._tasks[group].append(bell)
        kinds = sorted(group)

        def work() -> None:
            owner = f"{self.ctx.host}:{_this_process()}:{threading.current_thread().name}"
            while not self._stopping.is_set():
                bell.clear()
                if not self._safely("claiming", lambda: self._work_once(kinds, owner)):
                    bell.wait(self._pause(kinds))

        return work

    def _work_once(self, kinds: list[str], owner: str) -> bool:
        """Do one task; False when none is due."""
        claimed = queue.claim(self.ctx.db, kinds, owner, LEASE_SECONDS, 1)
        for task in claimed:
            self._work_on(task)
        return bool(claimed)

    def _pause(self, kinds: list[str]) -> float:
        """How long nothing is due."""
        due = queue.next_due(self.ctx.db, kinds)
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(0.002, due - self.ctx.clock.now()))

    def _work_on(self, task: queue.Task) -> None:
        self._leases.hold(task)
        try:
            again = TASKS[task.kind](self.ctx, task.key)
        except StaleToken:
            return
        except Exception as error:
            log.exception("task %s %s failed", task.kind, task.key)
            message = error.message if isinstance(error, LooplineError) else f"{type(error).__name__}: {error}"
            queue.fail(self.ctx.db, task, message[:MAX_ERROR])
            return
        finally:
            self._leases.let_go(task)
        with self.ctx.db.transaction() as tx:
            queue.finish(tx, task)
            if again is not None:
                queue.ask(tx, task.kind, task.key, tx.now + again)

    def _safely(self, what: str, action: Callable[[], object]) -> object:
        """A thread of the engine goes on whatever happens; what happened is in the log."""
        try:
            return action()
        except Exception:
            if not self._stopping.is_set():
                log.exception("%s failed", what)
                self._stopping.wait(0.2)
            return None


class _Leases:
    """Renews the leases of the tasks that are being worked on; one thread does it for all of them."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held: dict[int, tuple[queue.Task, float]] = {}  # by id, with when to renew
        self._lock = threading.Lock()

    def hold(self, task: queue.Task) -> None:
        """From now on."""
        with self._lock:
            self._held[task.id] = task, time.monotonic() + LEASE_SECONDS / 3

    def let_go(self, task: queue.Task) -> None:
        """The work is over."""
        with self._lock:
            self._held.pop(task.id, None)

    def renew_until(self, stopping: threading.Event) -> None:
        """Look a few times within each lease."""
        while not stopping.wait(LEASE_SECONDS / 12):
            with self._lock:
                due = [task for task, at in self._held.values() if at <= time.monotonic()]
            for task in due:
                self._renew(task)

    def _renew(self, task: queue.Task) -> None:
        try:
            queue.heartbeat(self._ctx.db, task, LEASE_SECONDS)
        except StaleToken:
            self.let_go(task)
        except Exception:
            log.exception("the lease of %s %s was not renewed", task.kind, task.key)
        else:
            with self._lock:
                if task.id in self._held:
                    self._held[task.id] = task, time.monotonic() + LEASE_SECONDS / 3


def _this_process() -> str:
    """This process as no other on this host is ever called: its pid, and when it began (boots included)."""
    return f"{os.getpid()}.{processes.start_time(os.getpid())}.{processes.boot_id()[:8]}"


def _is_dead(host: str, owner: str) -> bool:
    """Whether a task's owner was a process of this host that is gone. Of another host only its lease can tell."""
    there, _, rest = owner.rpartition(":")[0].rpartition(":")
    pid, _, began = rest.partition(".")
    if there != host or not pid.isdecimal():
        return False
    start, _, boot = began.partition(".")
    same_boot = boot == processes.boot_id()[:8]
    return not (same_boot and start.isdecimal() and processes.alive(int(pid), int(start)))


def _bind(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener
