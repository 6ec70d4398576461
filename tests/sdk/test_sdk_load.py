"""Load from outside: every request that was meant is accounted for, and a stall is charged to all that it held up."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.errors import InvalidInput, Unavailable
from loopline.sdk import load

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-loopline-variant: v1\r\n\r\n{}"
ERROR = b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REQUEST = load.post("localhost", "/endpoints/e/invocations", b"{}", "application/json", {})
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """An HTTP server in a thread that does what it is told with each request; ``count`` is how many it has had."""

    def __init__(self, path: Path, answer: Callable[[int], bytes | None], stall: tuple[int, float] = (0, 0.0)) -> None:
        self.path, self.answer, self.stall, self.count = str(path), answer, stall, 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))
        self.thread.start()
        assert self.ready.wait(60)

    async def _serve(self) -> None:
        self.over = asyncio.Event()
        server = await asyncio.start_unix_server(self._talk, self.path)
        self.ready.set()
        await self.over.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await reader.readexactly(len(REQUEST))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            self.count += 1
            at, seconds = self.stall
            if self.count == at:
                await asyncio.sleep(seconds)
            answer = self.answer(self.count)
            if answer is None:
                break
            writer.write(answer)
            if b"Connection: close" in answer:
                break
        writer.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(answer: Callable[[int], bytes | None] = lambda _: ANSWER, **options: Any) -> Server:
        made.append(Server(tmp_path / "s", answer, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def put_on(server: Server, **plan: Any) -> dict[str, Any]:
    return load.run(load.Plan([REQUEST], unix=server.path, **plan))


def test_every_request_at_a_rate_is_sent_and_counted(serve: Callable[..., Server]) -> None:
    server = serve()
    found = put_on(server, rate=200, connections=4, seconds=0.5)
    assert found["requests"] == server.count == 100
    assert found["statuses"] == {"200": 100} and found["variants"] == {"v1": 100}
    assert (found["errors"], found["error_share"]) == (0, 0.0)
    assert found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["p999_ms"] <= found["max_ms"]


def test_a_stall_is_charged_to_every_request_that_it_held_up(serve: Callable[..., Server]) -> None:
    found = put_on(serve(stall=(10, 0.5)), rate=100, connections=1, seconds=1)
    assert found["requests"] == 100
    # 50 requests were meant to be sent during the stall; a client that waited would have told of one slow answer.
    assert found["max_ms"] >= 490 and found["p90_ms"] >= 300


def test_without_a_rate_each_connection_asks_again_when_it_is_answered(serve: Callable[..., Server]) -> None:
    server = serve()
    found = put_on(server, connections=3, seconds=1)
    assert found["requests"] == server.count > 3 and found["statuses"] == {"200": server.count}


def test_errors_and_connections_that_end_are_counted_and_made_anew(serve: Callable[..., Server]) -> None:
    server = serve(lambda count: None if count % 10 == 5 else ERROR if count % 10 == 0 else ANSWER)
    found = put_on(server, rate=200, connections=2, seconds=0.5)
    assert found["requests"] == 100 == sum(found["statuses"].values())
    assert found["statuses"] == {"200": 80, "503": 10, "lost": 10}
    assert found["error_share"] == 0.2


def test_what_is_never_answered_is_told(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "GRACE_SECONDS", 0.1)
    found = put_on(serve(stall=(3, 600.0)), rate=10, connections=1, seconds=2)
    assert found["statuses"] == {"200": 2, "unanswered": 1, "unsent": 17}


def test_nobody_to_ask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no connection can be made"):
        load.run(load.Plan([REQUEST], unix=str(tmp_path / "nothing"), connections=2, seconds=0.1))


def test_a_header_cannot_bring_another() -> None:
    with pytest.raises(InvalidInput, match="Content-Type"):
        load.post("h", "/", b"", "text/csv\r\nX: y", {})


def started() -> "subprocess.Popen[str]":
    argv = [sys.executable, "-I", "-m", "loopline.sdk.load"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def plan_line(server: Server, seconds: float) -> str:
    import base64

    request = base64.b64encode(REQUEST).decode()
    return (
        json.dumps({"unix": server.path, "requests": [request], "connections": 1, "seconds": seconds, "rate": 50})
        + "\n"
    )


def test_a_process_of_its_own_takes_a_plan_and_gives_figures(serve: Callable[..., Server]) -> None:
    with started() as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(plan_line(serve(), 0.2))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["statuses"] == {"200": 10}
        assert process.wait(60) == 0


def test_the_process_ends_with_whoever_asked_for_the_load(serve: Callable[..., Server]) -> None:
    with started() as process:
        assert process.stdin is not None
        process.stdin.write(plan_line(serve(), 600))
        process.stdin.close()
        assert process.wait(60) == 1
