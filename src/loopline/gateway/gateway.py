"""The gateway: holds the routing table in force, swaps it, and looks after connections, links and the spool."""

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.config import Settings, check_exposure, is_loopback
from loopline.domain.allowances import FOLDER
from loopline.errors import InvalidInput, LooplineError, NotFound, Unavailable
from loopline.gateway.accepting import Acceptor
from loopline.gateway.activation import Activation
from loopline.gateway.allowances import Allowances
from loopline.gateway.answers import RequestIds, error_body
from loopline.gateway.callers import SPARE_DESCRIPTORS, Callers
from loopline.gateway.connection import Connection
from loopline.gateway.fetching import Fetching
from loopline.gateway.functions import Asker
from loopline.gateway.head import Head
from loopline.gateway.headcache import HeadCache
from loopline.gateway.health import Health
from loopline.gateway.invocation import NO_VARIANT
from loopline.gateway.limits import Limits
from loopline.gateway.links import Link, Links
from loopline.gateway.logs import log
from loopline.gateway.routing import Endpoint, Table
from loopline.gateway.snapshot import EndpointSpec, Snapshot, parse_snapshot
from loopline.gateway.spool import Spool

if TYPE_CHECKING:
    from loopline.gateway.tls import Certificate

TICK_SECONDS = 0.05
SNAPSHOT_POLL_SECONDS = 0.2
SWEEP_SECONDS = 0.5
REFRESH_SECONDS = 10.0
OPEN_WAIT_SECONDS = 1.0
STOP_SECONDS = 10.0


class Gateway:
    """One gateway process. ``rng`` makes traffic choices and request ids; it stops when ``parent`` is gone."""

    def __init__(self, settings: Settings, index: int, rng: random.Random, parent: int) -> None:
        self.name = f"gateway-{index}"
        self.control_socket = settings.run_dir / "control.sock"
        self.connections: set[Connection] = set()
        self.table: Table | None = None
        self.heads: HeadCache | None = None  # of that table
        self.stopping = False
        self.chance = rng.random
        self.request_ids = RequestIds(rng)
        self.spool = Spool(settings.dir / "spool" / self.name)
        self.now = asyncio.get_running_loop().time
        self._loop = asyncio.get_running_loop()
        self._run_dir = settings.run_dir
        self._snapshot_file = settings.dir / "snapshot.json"
        self._seen: tuple[int, int, int] | None = None
        self._links = Links()
        self._use: dict[str, tuple[int, float]] = {}  # of servers on demand: in flight, last used
        self._retired: list[Link] = []
        self._limits = Limits(
            settings.run_dir / "places", index, settings.gateways, time.perf_counter, self._loop.call_later
        )
        self.activation = Activation(settings.run_dir, time.perf_counter)
        self.fetching = Fetching(settings.run_dir, time.perf_counter)
        self._health = Health(settings.run_dir)
        self._allowances = Allowances(settings.dir / FOLDER)
        self._callers = _callers(settings)
        self.account = settings.aws_account
        self.exposed = False  # whether other machines can reach the public port
        self._settings = settings
        self._certificate: Certificate | None = None
        self._next_refresh = 0.0
        self._reported_refusals = 0
        self._acceptor: Acceptor | None = None
        self._private: asyncio.Server | None = None
        self._datagrams: socket.socket | None = None
        self._look = asyncio.Event()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported_drops = 0
        self._parent = parent

    @property
    def table_in_force(self) -> Table:
        """The routing table; raises ``Unavailable`` before the first snapshot."""
        if self.table is None:
            raise Unavailable("the server is starting")
        return self.table

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else and keep it from being collected."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self, listening: socket.socket) -> None:
        """Load the snapshot when there is one, then accept connections.

        Raises ``InvalidInput`` where the certificate is none, and for an address that TLS is needed for.
        """
        settings, address = self._settings, listening.getsockname()[0]
        check_exposure(settings, address)
        self.exposed = bool(settings.behind_proxy) or not is_loopback(address)
        if settings.secure:
            from loopline.gateway.tls import Certificate  # slow to import, and a restart is waited for

            self._certificate = Certificate(settings)
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open_datagrams()
        await self._reload()
        self.spawn(self._watch_snapshot())
        self.spawn(self._tick())
        path = self._run_dir / f"{self.name}.http.sock"
        path.unlink(missing_ok=True)
        context = self._certificate.context if self._certificate else None
        self._acceptor = Acceptor(self, listening, self._callers, context, shared=settings.gateways > 1)
        # After the public port: who is answered here knows that both are there.
        self._private = await self._loop.create_unix_server(lambda: Connection(self, private=True), str(path))
        log("listening", gateway=self.name, snapshot=self.table.number if self.table else None)

    # the snapshot

    def _open_datagrams(self) -> None:
        path = self._run_dir / f"{self.name}.sock"
        path.unlink(missing_ok=True)
        self._datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._datagrams.bind(str(path))
        self._loop.add_reader(self._datagrams.fileno(), self._on_datagram)

    def _on_datagram(self) -> None:
        assert self._datagrams is not None
        with contextlib.suppress(OSError):
            while True:
                self.fetching.heard(self._datagrams.recv(4096))
                self._look.set()  # for the table the content does not matter: the file does

    async def _watch_snapshot(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), SNAPSHOT_POLL_SECONDS)
            self._look.clear()
            await self._reload()

    async def _reload(self) -> None:
        """Switch to the snapshot in the file when it is a new one. One that is not valid changes nothing."""
        try:
            with self._snapshot_file.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
                if identity == self._seen:
                    return
                text = file.read()
        except OSError:
            return
        self._seen = identity
        try:
            snapshot = parse_snapshot(text)
        except InvalidInput as error:
            log("snapshot ignored", reason=error.message)
            return
        await self._switch(snapshot)

    async def _open_links(self, snapshot: Snapshot) -> Links:
        """The links that the snapshot needs: those that there are, and new ones once they have tried to connect."""
        wanted, on_demand = snapshot.sockets()
        links = Links({path: self._links.get(path) or Link(path) for path in wanted})
        for link in links.values():
            if link.on_demand:
                link.stay()
        for path in on_demand & self._links.keys():
            links[path] = self._links[path]
            links[path].on_demand = True
        fresh = [asyncio.ensure_future(link.tried.wait()) for link in links.values() if not link.tried.is_set()]
        if fresh:
            _, late = await asyncio.wait(fresh, timeout=OPEN_WAIT_SECONDS)
            for waiting in late:
                waiting.cancel()
        return links

    async def _switch(self, snapshot: Snapshot) -> None:
        """Open connections to new servers, then change the table at once, then let go of the old servers."""
        links = await self._open_links(snapshot)
        self.table = Table(snapshot, links, self._limits, self._allowances)
        self.heads = HeadCache(self.table, self.exposed)
        for path, link in self._links.items():
            if path not in links:
                link.retire()
                self._retired.append(link)
        self._links = links
        self._limits.keep({(name, v.name) for name, spec in snapshot.served().items() for v in spec.variants})
        self._let_functions_ask(self.table)
        self._allowances.keep(set(snapshot.keys))
        self.fetching.switched(self.table.endpoints)
        self._acknowledge()

    def _let_functions_ask(self, table: Table) -> None:
        for name, function in table.functions.items():
            for variant in function.variants:
                for link in variant.links:
                    link.on_call = link.on_call or Asker(self, name).ask

    def _acknowledge(self) -> None:
        number = self.table_in_force.number
        self._write_state()
        message = json.dumps({"kind": "ack", "gateway": self.name, "number": number}).encode()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(message, str(self._run_dir / "wake.sock"))

    def _write_state(self) -> None:
        """Write run/gateway-<n>.json by rename."""
        state = {
            "number": self.table.number if self.table else 0,
            "pid": os.getpid(),
            "at": time.time(),
            "captures_dropped": self.spool.dropped,
            "servers": self._use,
            "ejections": list(self._health.ejections),
        }
        temporary = self._run_dir / f".{self.name}.json.{os.getpid()}"
        try:
            temporary.write_text(json.dumps(state))
            temporary.rename(self._run_dir / f"{self.name}.json")
        except OSError as error:
            log("state not written", reason=str(error))

    # what is asked of the table

    def unknown_endpoint(self, head: Head, name: bytes, request_id: bytes) -> tuple[int, bytes, bytes]:
        """What to answer for a name that no endpoint has: only a key that could invoke it learns that there is none."""
        noun = "function" if name.startswith(b"function:") else "endpoint"
        error: LooplineError = NotFound(f"there is no {noun} by that name")
        try:
            self.table_in_force.authorise(head.credential, name.decode("latin-1"))
        except LooplineError as refusal:
            error = refusal
        return error.status, error_body(error.code, error.message, request_id), NO_VARIANT

    def nowhere(self, name: bytes) -> Endpoint:
        """What stands for an endpoint that there is none of, until who asks is known."""
        return Endpoint(name.decode("latin-1"), EndpointSpec(variants=()), {}, self._limits)

    # housekeeping

    async def _tick(self) -> None:
        next_sweep = 0.0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.spool.flush()
            moment = time.perf_counter()
            for link in self._links.values():
                link.sweep(moment)
            self._retired = [link for link in self._retired if not link.sweep(moment)]
            self._limits.look()
            self.activation.look()
            self.fetching.look()
            table = self.table
            if table and self._health.look([*table.endpoints.values(), *table.functions.values()], moment):
                self._write_state()
            now = self.now()
            if now >= next_sweep:
                next_sweep = now + SWEEP_SECONDS
                self._sweep(now)

    def _sweep(self, now: float) -> None:
        for connection in list(self.connections):
            if connection.deadline < now:
                connection.expire()
        use = self._look_at_use()
        if self.spool.dropped != self._reported_drops or use != self._use:
            self._reported_drops, self._use = self.spool.dropped, use
            self._write_state()
        if self._callers.refused != self._reported_refusals:
            self._reported_refusals = self._callers.refused
            log("connections refused: too many", so_far=self._callers.refused)
        if self._certificate is not None and now >= self._next_refresh:
            self._next_refresh = now + REFRESH_SECONDS
            self._refresh(self._certificate)
        if os.getppid() != self._parent:
            log("parent ended", gateway=self.name)
            self.request_stop()

    def _look_at_use(self) -> dict[str, tuple[int, float]]:
        """Of each server on demand that runs: requests in flight, and the time of day of the last one."""
        now = round(time.time(), 1)
        asked = [link for link in self._links.values() if link.on_demand and link.look(now)]
        return {Path(link.path).name.removesuffix(".sock"): (len(link.pending), link.used_at) for link in asked}

    def _refresh(self, certificate: "Certificate") -> None:
        try:
            if certificate.refresh():
                log("another certificate is in force")
        except InvalidInput as error:
            log("certificate not read again", reason=error.message)

    def request_stop(self) -> None:
        """Make ``run_until_stopped`` go on."""
        self._stop.set()

    async def run_until_stopped(self) -> None:
        """Wait for the stop, accept no more, finish what is in flight, write the spool."""
        await self._stop.wait()
        self.stopping = True
        if self._acceptor is not None:
            self._acceptor.close()
        if self._private is not None:
            self._private.close()
        for connection in list(self.connections):
            connection.stop()
        deadline = self.now() + STOP_SECONDS
        while self.connections and self.now() < deadline:
            await asyncio.sleep(0.01)
        self.activation.drop()
        self.fetching.drop()
        for connection in list(self.connections):
            connection.close_now()
        for task in list(self._tasks):
            task.cancel()
        for link in [*self._links.values(), *self._retired]:
            link.abandon()
        if self._datagrams is not None:
            self._loop.remove_reader(self._datagrams.fileno())
            self._datagrams.close()
        await self.spool.close()
        log("stopped", gateway=self.name)


def _callers(settings: Settings) -> Callers:
    """No more connections than there are descriptors; a trusted proxy is one address for everybody behind it."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = min(settings.connections, max(1, descriptors - SPARE_DESCRIPTORS))
    return Callers(most, 0 if settings.behind_proxy else settings.address_connections)
