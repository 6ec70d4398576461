"""A model server that hangs, fails or sends nonsense hurts its own requests only; restarted, it serves again."""

import asyncio
import contextlib
import json
import select
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from loopline.gateway.health import FAILURES, Health
from loopline.gateway.links import Link
from loopline.runtime.frames import encode_answer

MARKED = """
    import os, pathlib, time
    def load(model_dir): return pathlib.Path(model_dir)
    def predict(folder, rows):
        if any(row[0] == 666 for row in rows):
            (folder / "hangs").touch()
            time.sleep(3600)
        if any(row[0] == 500 for row in rows):
            raise ValueError("marked")
        return [os.getpid() for row in rows]
"""
FAILING = """
    def load(model_dir): return None
    def predict(model, rows): raise ValueError("always")
"""


class Supervisor:
    """Hears what gateways say to a supervisor."""

    def __init__(self, rig) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(rig.run / "supervisor.sock"))

    def told(self, seconds: float = 60.0) -> dict:
        """The next message."""
        assert select.select([self._socket], [], [], seconds)[0], "the supervisor was told nothing"
        return json.loads(self._socket.recv(4096))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(rig):
    made = Supervisor(rig)
    yield made
    made.close()


def ask_in_background(rig, row: float, answers: list) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(rig.ask({"x": row})))
    thread.start()
    return thread


def test_a_server_that_hangs_is_taken_out_restarted_and_taken_back(rig, make_variant, until, supervisor):
    one = make_variant("v1", rig.start_server("one", MARKED), weight=50.0)
    two = make_variant("v2", rig.start_server("two", MARKED), weight=50.0, version=2)
    rig.publish(one, two, wait=False, timeout_ms=1000)
    rig.start_gateway()
    hung: list = []
    ask_in_background(rig, 666, hung).join()
    status, document, answer = hung[0]
    assert status == 504 and document["error"]["code"] == "timeout"
    victim = {"v1": "one", "v2": "two"}[answer.getheader("x-loopline-variant")]
    told = supervisor.told()
    assert told == {"kind": "restart", "id": victim, "grace_seconds": 1.0}
    until(lambda: rig.state().get("ejections"))
    (ejection,) = rig.state()["ejections"]
    assert (ejection["server"], ejection["endpoint"]) == (victim, "e")
    assert "answered nothing for 1 s" in ejection["reason"]
    assert "taken out of service" in rig.gateway_log()

    rig.publish(one, two)  # with time enough for the good one
    asked = [rig.ask({"x": 1}) for _ in range(40)]
    by_status = {
        status: {a.getheader("x-loopline-variant") for s, _, a in asked if s == status} for status, _, _ in asked
    }
    assert by_status == {200: {"v2" if victim == "one" else "v1"}, 503: {"v1" if victim == "one" else "v2"}}

    rig.kill(victim)
    rig.start_server(victim, MARKED)
    until(lambda: "back in service" in rig.gateway_log())
    until(lambda: [rig.ask({"x": 1})[0] for _ in range(20)] == [200] * 20)


def test_an_only_server_that_hangs_is_answered_for_at_once(rig, make_variant, until, supervisor):
    rig.publish(make_variant("v1", rig.start_server("one", MARKED)), wait=False, timeout_ms=500)
    rig.start_gateway()
    waiting: list = []
    threads = [ask_in_background(rig, 666, waiting)]
    until((rig.folder / "one" / "hangs").exists)
    threads += [ask_in_background(rig, 1, waiting) for _ in range(3)]
    assert supervisor.told()["id"] == "one"
    for thread in threads:
        thread.join()
    assert len(waiting) == 4
    assert {status for status, _, _ in waiting} <= {503, 504}
    status, document, answer = rig.ask({"x": 1})
    assert status == 503 and document["error"]["code"] == "unavailable" and answer.getheader("retry-after")
    rig.kill("one")
    rig.start_server("one", MARKED)
    until(lambda: rig.ask({"x": 1})[0] == 200)


def test_a_server_that_is_slow_and_answers_after_all_is_taken_back(rig, make_variant, until, supervisor):
    slow = """
        import pathlib, time
        def load(model_dir): return pathlib.Path(model_dir)
        def predict(folder, rows):
            while (folder / "wait").exists():
                time.sleep(0.01)
            return [row[0] for row in rows]
    """
    rig.publish(make_variant("v1", rig.start_server("one", slow)), wait=False, timeout_ms=500)
    rig.start_gateway()
    mark = rig.folder / "one" / "wait"
    mark.touch()
    assert rig.ask({"x": 1})[0] == 504
    supervisor.told()
    assert rig.ask({"x": 1})[0] == 503
    mark.unlink()
    until(lambda: rig.ask({"x": 1})[0] == 200)


def test_a_server_that_fails_what_its_sibling_does_not_is_taken_out(rig, make_variant, until, supervisor):
    good, bad = rig.start_server("good", MARKED), rig.start_server("bad", FAILING)
    rig.publish(make_variant("v1", good, bad), wait=False)
    rig.start_gateway()
    client = rig.client()
    until(lambda: rig.ask({"x": 1}, client) and rig.state().get("ejections"))
    assert supervisor.told()["id"] == "bad"
    assert {rig.ask({"x": 1}, client)[0] for _ in range(20)} == {200}


def test_servers_that_all_fail_are_the_models_fault_and_stay(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", FAILING), rig.start_server("b", FAILING)), wait=False)
    rig.start_gateway()
    client = rig.client()
    assert {rig.ask({"x": 1}, client)[0] for _ in range(100)} == {500}
    assert not [each for each in rig.state()["ejections"] if each["kind"] == "ejected"]


def test_a_server_that_nobody_does_better_than_is_replaced_and_keeps_its_requests():
    asyncio.run(failing())


async def failing() -> None:
    home = Path(tempfile.mkdtemp(prefix="loopline-", dir="/tmp"))  # a Unix socket's path has to be short
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(home / "supervisor.sock"))
    heard.setblocking(False)
    health, one, two = Health(home), Link("run/one.sock", on_demand=True), Link("run/two.sock", on_demand=True)

    def told(now: float, failures: int, name: str = "e", links: tuple[Link, ...] = (one,)) -> list[str]:
        """What the supervisor is told when the first link has answered, with so many failures up to then."""
        links[0].heard, links[0].failures = True, failures
        variant = SimpleNamespace(name="v1", links=list(links))
        health.look([SimpleNamespace(name=name, asked=[variant], timeout_seconds=60.0)], now)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                message = json.loads(heard.recv(4096))
                found.append(f"{message['kind']} {message['id']}")
        return found

    assert told(100.0, FAILURES - 1) == told(101.0, FAILURES) == told(105.9, 3 * FAILURES) == []
    assert told(106.0, 4 * FAILURES) == ["replace one"]
    assert told(106.5, 4 * FAILURES) == [] and told(116.0, 9 * FAILURES) == ["replace one"]
    assert [each["kind"] for each in health.ejections] == ["failing"], "told once, asked for again"
    assert not one.sick
    assert told(130.0, 0) == told(131.0, FAILURES) == told(135.9, FAILURES) == []
    assert told(136.0, FAILURES) == ["replace one"] and len(health.ejections) == 2
    assert told(100.0, 0, links=(two,)) == told(101.0, FAILURES, "function:f", (two,)) == []
    assert told(150.0, FAILURES, "function:f", (two,)) == []
    one.well_at = 160.0
    assert told(161.0, FAILURES, links=(two, one)) == ["restart two"] and two.sick
    heard.close()
    shutil.rmtree(home)
    answers = [encode_answer(number, status, b"a/b", b"") for number, status in enumerate((200, 500, 400, 503, 404), 1)]
    three = Link("run/three.sock", on_demand=True)
    three.data_received(b"".join(answers))
    assert three.failures == 2, "a request that is the caller's fault says nothing of the server"
    three.data_received(answers[0])
    assert three.failures == 0


def test_a_server_that_sends_nonsense_is_taken_out(rig, make_variant, until, supervisor):
    path = rig.run / "noise.sock"
    noisy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    noisy.bind(str(path))
    noisy.listen(8)

    clients: list[socket.socket] = []

    def babble() -> None:
        while True:
            try:
                client, _ = noisy.accept()
            except OSError:
                return
            clients.append(client)
            with contextlib.suppress(OSError), client:
                client.recv(65536)
                client.sendall(b"\xff" * 64)

    threading.Thread(target=babble, daemon=True).start()
    rig.publish(make_variant("v1", str(path)), wait=False)
    rig.start_gateway()
    assert rig.ask({"x": 1})[0] == 503
    assert supervisor.told() == {"kind": "restart", "id": "noise", "grace_seconds": 1.0}
    until(lambda: rig.state().get("ejections"))
    assert "no frame" in rig.state()["ejections"][0]["reason"]
    for each in (noisy, *clients):  # as when the process ends
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    noisy.close()
    rig.start_server("noise", MARKED)
    until(lambda: rig.ask({"x": 1})[0] == 200)
