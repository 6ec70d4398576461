"""Load tests of variants: a process of its own puts the load on a gateway's private socket and gives its figures."""

import base64
import json
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import msgspec

from loopline.config import child_environment
from loopline.control import invoking
from loopline.control.context import Context
from loopline.domain import endpoint_tests as rules
from loopline.domain.projects import EndpointTest
from loopline.errors import Timeout, Unavailable
from loopline.sdk import load

START_SECONDS = 30.0  # for the process to begin, on a busy machine


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a load found; ``loopline.sdk.load`` says what each number is."""

    requests: int
    errors: int
    error_share: float
    statuses: dict[str, int]
    variants: dict[str, int]
    seconds: float
    rate: float
    connections: int
    per_second: float
    good_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float | None


msgspec.json.Decoder(Figures)  # worked out while there is one thread


def measure(ctx: Context, endpoint: str, variant: str, test: EndpointTest) -> dict[str, Any]:
    """The figures of a test of kind load against a variant. Raises ``Unavailable`` when no gateway takes it."""
    paths = invoking.sockets(ctx)
    if not paths:
        raise Unavailable("no gateway is running")
    body, content_type = rules.request_body(test.body, test.content_type)
    headers = {"x-loopline-purpose": "test", "x-loopline-variant": variant}
    target = f"/endpoints/{quote(endpoint, safe='')}/invocations"
    request = load.post("localhost", target, body, content_type, headers)
    plan = {
        "unix": str(paths[0]),
        "requests": [base64.b64encode(request).decode()],
        "rate": test.rate,
        "connections": test.connections,
        "seconds": test.seconds,
    }
    answer = _ask(json.dumps(plan) + "\n", test.seconds + load.GRACE_SECONDS + START_SECONDS)
    if "problem" in answer:
        raise Unavailable(str(answer["problem"]))
    return answer


def _ask(line: str, seconds: float) -> dict[str, Any]:
    """One line to the process that makes the load, and its answer; it ends when we do, since its input ends then."""
    argv = [sys.executable, "-I", "-m", "loopline.sdk.load"]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            process.wait(seconds)
            text = process.stdout.read()
        except BrokenPipeError:
            text = ""
        except subprocess.TimeoutExpired:
            raise Timeout("the load did not end in time") from None
        finally:
            process.kill()
    if not text:
        raise Unavailable("the process that makes the load ended before it had figures")
    answer: dict[str, Any] = json.loads(text)
    return answer
