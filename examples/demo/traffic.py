"""Callers of the endpoint: plain HTTP over connections that stay open, at a given rate or as fast as they are answered.

They run in a thread of their own, so that traffic goes on while the demo waits for something.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from patients import Sample, Stream

CALLERS = 8


class Answer(NamedTuple):
    """One answered request; ``status`` 0 when the connection failed."""

    at: float
    sample: Sample
    status: int
    request_id: str
    version: int
    prediction: str | None
    ms: float

    @property
    def right(self) -> bool:
        """Whether the prediction is the patient's diagnosis."""
        return self.prediction == self.sample.truth


class Traffic:
    """``with Traffic(...) as traffic``: the callers run until the block ends; every answer stands in ``answers``."""

    def __init__(self, url: str, endpoint: str, key: str, stream: Stream, rate: float | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._head = (
            f"POST /endpoints/{endpoint}/invocations HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._stream = stream
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="callers", daemon=True)
        self.answers: list[Answer] = []
        self.began = self.ended = 0.0

    def __enter__(self) -> "Traffic":
        self.began = time.time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.ended = time.time()

    def since(self, at: float, where: Callable[[Answer], bool] = lambda _: True) -> list[Answer]:
        """Answers to requests made after a moment."""
        return [answer for answer in list(self.answers) if answer.at >= at and where(answer)]

    def _run(self) -> None:
        asyncio.run(self._call_all())

    async def _call_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call(number))

    async def _call(self, number: int) -> None:
        """One caller: its connection, and its share of the rate."""
        pause = CALLERS / self._rate if self._rate else 0.0
        due = time.monotonic() + pause * number / CALLERS
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            if pause:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due + pause, time.monotonic() - pause)
            sample = self._stream.next()
            at, began = time.time(), time.perf_counter()
            try:
                if connection is None:
                    connection = await asyncio.open_connection(self._host, self._port)
                status, headers, body = await self._exchange(*connection, sample.body())
            except (OSError, asyncio.IncompleteReadError):
                connection, status, headers, body = None, 0, {}, b""
            self._note(at, sample, status, headers, body, (time.perf_counter() - began) * 1000)
        if connection is not None:
            connection[1].close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        writer.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))

    def _note(self, at: float, sample: Sample, status: int, headers: dict[str, str], body: bytes, ms: float) -> None:
        prediction = _prediction(json.loads(body)) if status == 200 else None
        version = int(headers.get("x-loopline-version") or 0)
        self.answers.append(Answer(at, sample, status, headers.get("x-request-id", ""), version, prediction, ms))


def _prediction(document: dict[str, Any]) -> str:
    answer = document["predictions"][0]
    return str(answer["prediction"] if isinstance(answer, dict) else answer)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def accuracy(answers: list[Answer]) -> float:
    """The share of right predictions among those that were answered."""
    answered = [answer for answer in answers if answer.prediction is not None]
    return sum(answer.right for answer in answered) / len(answered)
