"""AWS's calls, side by side with moto's server: microseconds, requests a second, and seconds to the first answer.

make bench-aws
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import front
import load
from servers import BUCKET, ENDPOINT, GROUP, IMAGE, Loopline, Moto, Server, moto_version

MEGABYTE = 1_000_000
WARM_CALLS = 5
Call = Callable[[int], Any]


def calls_of(server: Server, bodies: list[bytes]) -> dict[str, Call]:
    """What is measured; each call gets its number, so that none is the same as another."""
    s3, sagemaker, runtime = (server.client(name) for name in ("s3", "sagemaker", "sagemaker-runtime"))
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    specification = {
        "Containers": [container],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
    }

    def package(number: int) -> Any:
        return sagemaker.create_model_package(
            ModelPackageGroupName=GROUP,
            ModelPackageDescription=f"number {number}",
            InferenceSpecification=specification,
            ModelApprovalStatus="PendingManualApproval",
        )

    def put(number: int) -> Any:
        body = number.to_bytes(8, "big") + bodies[number % len(bodies)][8:]
        return s3.put_object(Bucket=BUCKET, Key=f"objects/{number}", Body=body)

    def invoke(_number: int) -> Any:
        answer = runtime.invoke_endpoint(EndpointName=ENDPOINT, ContentType="application/json", Body=load.BODY)
        return answer["Body"].read()

    return {"CreateModelPackage": package, "PutObject 1 MB": put, "InvokeEndpoint": invoke}


def microseconds(servers: list[Server], rounds: int, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each call and server the median time that boto3 waits (``wait``), and the processor time of all of the
    server's processes for one call (``cpu``, idle work of theirs included). Servers take turns, round by round."""
    bodies = [os.urandom(MEGABYTE) for _ in range(8)]
    calls = {server.name: calls_of(server, bodies) for server in servers}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in calls[servers[0].name]:
        waits: dict[str, list[float]] = {server.name: [] for server in servers}
        used: dict[str, list[float]] = {server.name: [] for server in servers}
        for turn in range(rounds):
            for server in servers:
                call, first = calls[server.name][name], (turn + 1) * (count + WARM_CALLS)
                for number in range(WARM_CALLS):
                    call(first + number)
                before = server.cpu_seconds()
                for number in range(count):
                    began = time.perf_counter()
                    call(first + WARM_CALLS + number)
                    waits[server.name].append(time.perf_counter() - began)
                used[server.name].append((server.cpu_seconds() - before) / count)
        found[name] = {
            server.name: {
                "wait": statistics.median(waits[server.name]) * 1e6,
                "cpu": statistics.median(used[server.name]) * 1e6,
            }
            for server in servers
        }
    return found


def rates(servers: list[Server], rounds: int, seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """Predictions a second: by boto3 in one thread and in several, and by the raw client; the best of the rounds."""
    found: dict[str, dict[str, float]] = {}
    for name, measure in (
        ("boto3, 1 thread", lambda server: _boto(server, 1, seconds)),
        (f"boto3, {threads} threads", lambda server: _boto(server, threads, seconds)),
        ("signed once, 1 connection", lambda server: load.rate(server, 1, seconds)),
        ("signed once, 16 connections", lambda server: load.rate(server, 16, seconds)),
    ):
        best = {server.name: 0.0 for server in servers}
        for _ in range(rounds):
            for server in servers:
                best[server.name] = max(best[server.name], measure(server))
        found[name] = best
    return found


def _boto(server: Server, threads: int, seconds: float) -> float:
    clients = [server.client("sagemaker-runtime") for _ in range(threads)]

    def work(client: Any) -> int:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            client.invoke_endpoint(EndpointName=ENDPOINT, ContentType="application/json", Body=load.BODY)["Body"].read()
            count += 1
        return count

    work_once = [client.invoke_endpoint(EndpointName=ENDPOINT, Body=load.BODY)["Body"].read() for client in clients]
    assert all(work_once)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(work, clients))
    return total / (time.perf_counter() - began)


def starts(folder: Path, times: int, peer: bool) -> dict[str, float]:
    """Seconds from the start of a server to its first answer, in the middle of so many starts."""
    found: dict[str, list[float]] = {}
    for number in range(times):
        servers: list[Server] = [Loopline(folder / f"up-{number}")]
        servers += [Moto(folder / "moto.log")] if peer else []
        for server in servers:
            try:
                found.setdefault(server.name, []).append(server.start())
            finally:
                server.stop()
    return {name: statistics.median(seconds) for name, seconds in found.items()}


@contextmanager
def running(folder: Path, peer: bool) -> Iterator[list[Server]]:
    """The servers, furnished."""
    servers: list[Server] = [Loopline(folder / "installation")]
    servers += [Moto(folder / "moto.log")] if peer else []
    try:
        for server in servers:
            server.start()
            server.furnish()
        yield servers
    finally:
        for server in servers:
            server.stop()


def table(results: dict[str, Any], names: list[str]) -> Iterator[str]:
    """The lines of the one table: all figures of a row by server, and how often loopline's is the other's."""
    heads = [*names, "ratio"] if len(names) > 1 else names
    yield f"{'':56}" + "".join(f"{head:>12}" for head in heads)

    def line(what: str, figures: dict[str, float], form: str) -> str:
        cells = [format(figures[name], form) for name in names]
        cells += [f"{figures[names[0]] / figures[names[1]]:.2f}"] if len(names) > 1 else []
        return f"{what:56}" + "".join(f"{cell:>12}" for cell in cells)

    for call, by_server in results["microseconds"].items():
        for kind, told in (("wait", "µs until boto3 has the answer"), ("cpu", "µs of the server's processors")):
            yield line(f"{call}: {told}", {name: by_server[name][kind] for name in names}, ".0f")
    for way, by_name in results["predictions_per_second"].items():
        yield line(f"InvokeEndpoint a second: {way}", by_name, ".0f")
    yield line("seconds from start to first answer", results["first_answer_seconds"], ".2f")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each server takes")
    parser.add_argument("--calls", type=int, default=60, help="calls in a turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn that counts predictions")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without moto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loopline-bench-") as name:
        folder = Path(name)
        results: dict[str, Any] = {"moto": None if given.alone else moto_version()}
        results["front_microseconds"] = front.parts(folder / "front", 2000)
        results["first_answer_seconds"] = starts(folder, given.starts, not given.alone)
        with running(folder, not given.alone) as servers:
            results["microseconds"] = microseconds(servers, given.rounds, given.calls)
            results["predictions_per_second"] = rates(servers, given.rounds, given.seconds, given.threads)
            names = [server.name for server in servers]
    print("the front alone, processor time of a CreateModelPackage whose handler does nothing, µs:")
    for part, figure in results["front_microseconds"].items():
        print(f"  {part:36}{figure:>12.0f}")
    print("\n".join(table(results, names)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
