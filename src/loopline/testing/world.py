"""An installation in a folder, moved on by hand: control's use cases and engine without threads, sockets or a gateway.

Jobs are real processes. ``World.settle`` does what the engine's threads do, in one thread, until a condition holds.
"""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from loopline import config
from loopline.control import events
from loopline.control.context import Clock, Context
from loopline.domain.access import Actor
from loopline.engine.reactions import REACTIONS
from loopline.engine.tasks import TASKS
from loopline.engine.ticks import TICKS
from loopline.fronts import native
from loopline.server import open_context
from loopline.store import queue
from loopline.testing.live import until

ADMIN = Actor("admin", "admin")


class World:
    """One installation. ``clock`` replaces the time of day; settings are given by name."""

    def __init__(self, folder: Path, *, clock: Clock | None = None, **settings: Any) -> None:
        self.ctx: Context = open_context(config.load({}, dir=str(folder), port=0, **settings))
        if clock is not None:
            self.ctx.clock = clock
            self.ctx.db.use_clock(clock.now)
        self.actor = ADMIN

    def close(self) -> None:
        """Close the database."""
        self.ctx.db.close()

    def tree(self, files: Mapping[str, str | bytes]) -> str:
        """Store a project's files; gives the tree's digest."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return self.ctx.blobs.put_tar(iter([buffer.getvalue()])).digest

    def step(self) -> bool:
        """One round of everything the engine does; says whether any task was done."""
        for tick in TICKS:
            tick.run(self.ctx)
        for reaction in REACTIONS:
            events.consume(self.ctx, reaction.name, reaction.react, reaction.nouns)
        tasks = queue.claim(self.ctx.db, sorted(TASKS), "world", 60.0, 100)
        for task in tasks:
            again = TASKS[task.kind](self.ctx, task.key)
            with self.ctx.db.transaction() as tx:
                queue.finish(tx, task)
                if again is not None:
                    queue.ask(tx, task.kind, task.key, tx.now + again)
        return bool(tasks)

    def settle(self, done: Callable[[], bool], timeout: float = 120.0) -> None:
        """Move the installation on until ``done`` says so; raises ``TimeoutError`` with what is queued otherwise."""
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {timeout:g} s; the queue's next task is due at {self._next()}")
            if not self.step():
                time.sleep(0.005)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """The address at which the native front answers meanwhile."""
        app = native.build(self.ctx)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started, "the server listens")
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    def _next(self) -> float | None:
        return queue.next_due(self.ctx.db)
