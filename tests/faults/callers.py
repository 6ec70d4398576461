"""Callers of an endpoint: open-loop requests at a rate, for as long as it lives, and what each answer said.

    python tests/faults/callers.py --port N --key KEY --endpoint NAME --rate 100 --connections 32
The rows are those of ``ROWS``, in turn. Each line on standard input is answered with one line of JSON: what was counted
since the last one. The end of standard input ends it.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from loopline.sdk.load import Load, Plan, post

# What is asked: the first row is answered with the mark of the version, the others with a size that none can mistake.
ROWS = (("mark", -1e6), ("small", -3.0), ("large", 6.0), ("odd", 7.5))
TRUTH = {"small": "small", "large": "large", "odd": "large"}
VERSION = re.compile(rb"\r\nx-loopline-version: *(\d+)", re.IGNORECASE)
PREDICTION = re.compile(rb'"predictions": *\["([^"]*)"\]')
SLOW_SECONDS = 0.25
FOREVER = 86400.0
MAX_SAID = 120


class Seen:
    """What was answered since the last report."""

    def __init__(self, closely: int) -> None:
        self.closely = closely  # from this version on, every answer is told with its time
        self.answers: Counter[tuple[int, int, str, str]] = Counter()
        self.times: list[tuple[float, int, int, bool]] = []
        self.bad: list[tuple[float, int, int, str]] = []
        self.slowest = 0.0

    def look(self, which: int, status: int, head: bytes, body: bytes, seconds: float) -> None:
        """Note one answer."""
        version, prediction = VERSION.search(head), PREDICTION.search(body)
        number = int(version[1]) if version else 0
        said = prediction[1].decode() if prediction else body[:MAX_SAID].decode(errors="replace")
        if status >= 400:
            said = _message(body)
        self.answers[status, number, ROWS[which][0], said] += 1
        self.slowest = max(self.slowest, seconds)
        now = time.time()
        if number >= self.closely:
            self.times.append((now, number, status, seconds > SLOW_SECONDS))
        if not 200 <= status < 300:
            self.bad.append((now, status, number, said))

    def report(self, load: Load) -> dict[str, Any]:
        """The line for this period."""
        failures = {name: count for name, count in load.counted.statuses.items() if not name.isdecimal()}
        load.counted.statuses.clear()
        found = {
            "answers": [[*key, count] for key, count in self.answers.items()],
            "times": self.times,
            "bad": self.bad,
            "failures": failures,
            "problem": load.counted.problem,
            "slowest_seconds": round(self.slowest, 3),
            "behind": max(load.due(time.perf_counter()) - load.issued, 0),
        }
        self.answers.clear()
        self.times, self.bad = [], []
        self.slowest = 0.0
        return found


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:MAX_SAID]
    except (ValueError, KeyError, TypeError):
        return body[:MAX_SAID].decode(errors="replace")


def requests(port: int, key: str, endpoint: str) -> list[bytes]:
    """The bytes of each row's request."""
    headers = {"Authorization": f"Bearer {key}"}
    target = f"/endpoints/{endpoint}/invocations"
    bodies = [json.dumps({"instances": [{"size": size}]}).encode() for _, size in ROWS]
    return [post(f"127.0.0.1:{port}", target, body, "application/json", headers) for body in bodies]


async def run(given: argparse.Namespace) -> None:
    """Ask until standard input ends."""
    seen = Seen(given.closely)
    asked = requests(given.port, given.key, given.endpoint)
    plan = Plan(asked, given.connections, FOREVER, given.rate, port=given.port, look=seen.look)
    load = Load(plan)
    running = asyncio.ensure_future(load.run())
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        if running.done():
            running.result()
        os.write(1, json.dumps(seen.report(load)).encode() + b"\n")
    running.cancel()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--closely", type=int, default=1 << 30)
    for name in ("--key", "--endpoint"):
        parser.add_argument(name, required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
