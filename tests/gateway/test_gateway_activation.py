"""Servers on demand behind a gateway: who waits, for how long, and that leaving servers lose nothing."""

import json
import select
import signal
import socket
import threading
import time

import pytest

from loopline.gateway.activation import MAX_WAITING

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"


def named(number):
    return f"def load(d): pass\ndef predict(m, batch): return [{number}] * len(batch)"


class Supervisor:
    """Starts a model server when it is asked to, as the supervisor does; counts what it was asked."""

    def __init__(self, rig):
        self.rig, self.asked, self.starts, self.codes, self.running = rig, [], [], {}, {}
        self.heard = threading.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(rig.run / "supervisor.sock"))
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        while True:
            message = json.loads(self.socket.recv(4096))
            if message["kind"] == "end":
                return
            if message["kind"] == "heard":
                self.heard.set()
                continue
            self.asked.append(message["id"])
            code = self.codes.get(message["id"])
            alive = message["id"] in self.running and self.rig.processes[message["id"]].poll() is None
            if code is not None and not alive:
                self.starts.append(message["id"])  # before it runs: it may have answered by the time that this returns
                self.running[message["id"]] = self.rig.start_server(message["id"], code)

    def tell(self, kind):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(json.dumps({"kind": kind}).encode(), str(self.rig.run / "supervisor.sock"))

    def hear_all(self):
        """Wait until it has done what it was asked so far."""
        self.heard.clear()
        self.tell("heard")
        assert self.heard.wait(60)

    def close(self):
        self.tell("end")
        self.thread.join(60)
        self.socket.close()


@pytest.fixture
def supervisor(rig):
    supervisor = Supervisor(rig)
    yield supervisor
    supervisor.close()


def sleeping(rig, make_variant, name, **fields):
    path = str(rig.run / f"{name}.sock")
    return {**make_variant(name, path), "on_demand": True, "cold_start_ms": 60_000, **fields}


def readable(clients):
    """Those that an answer has come to."""
    by_socket = {client.sock: client for client in clients}
    return [by_socket[sock] for sock in select.select(list(by_socket), [], [], 0)[0]]


def together(count, ask):
    answers = [None] * count

    def one(index):
        answers[index] = ask(index)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


def test_first_requests_wait_for_one_start_and_all_are_answered(rig, make_variant, supervisor):
    supervisor.codes["a"] = ECHO
    rig.publish(sleeping(rig, make_variant, "a"), wait=False)
    rig.start_gateway()
    answers = together(40, lambda index: rig.ask({"x": index})[:2])
    assert answers == [(200, {"predictions": [float(index)]}) for index in range(40)]
    assert supervisor.starts == ["a"]


def test_a_server_that_has_gone_is_asked_for_again(rig, make_variant, supervisor, until):
    supervisor.codes["a"] = ECHO
    rig.publish(sleeping(rig, make_variant, "a"), wait=False)
    rig.start_gateway()
    assert rig.ask({"x": 1})[0] == 200
    until(lambda: "a" in rig.state()["servers"])
    supervisor.hear_all()  # a request to start it that is heard later would start it again
    rig.processes["a"].send_signal(signal.SIGTERM)
    assert rig.processes["a"].wait(60) == 0
    until(lambda: rig.state()["servers"] == {})
    asked = len(supervisor.asked)
    assert rig.ask({"x": 2})[1] == {"predictions": [2.0]}
    assert len(supervisor.asked) > asked


def test_who_waits_too_long_is_told_to_come_again(rig, make_variant, supervisor, until):
    rig.publish(sleeping(rig, make_variant, "a", cold_start_ms=400), wait=False)
    rig.start_gateway()
    status, document, answer = rig.ask({"x": 1})
    assert (status, document["error"]["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    assert "did not start in time" in document["error"]["message"]
    assert rig.ask({"x": 1}, x_loopline_timeout_ms="50")[0] == 503
    until(lambda: supervisor.asked.count("a") >= 2)


def test_a_model_that_does_not_load_is_said_so_before_the_time_is_over(rig, make_variant, supervisor, until):
    path = rig.run / "a.sock"
    rig.publish(sleeping(rig, make_variant, "a"), wait=False)
    rig.start_gateway()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(rig.ask({"x": 1})))
    thread.start()
    until(lambda: supervisor.asked)
    path.with_suffix(".json").write_text(json.dumps({"state": "failed", "at": time.time() + 1, "error": "secret path"}))
    thread.join(60)
    status, document, answer = answers[0]
    assert (status, answer.headers["retry-after"]) == (503, "10")
    assert "does not load" in document["error"]["message"]
    assert "secret" not in json.dumps(document)


def test_requests_that_wait_are_answered_by_what_came_in_its_place(rig, make_variant, supervisor, until):
    rig.publish(sleeping(rig, make_variant, "a"), wait=False)
    rig.start_gateway()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(rig.ask({"x": 3})[:2]))
    thread.start()
    until(lambda: supervisor.asked)
    rig.publish(make_variant("b", rig.start_server("b", ECHO)))
    thread.join(60)
    assert answers == [(200, {"predictions": [3.0]})]


def test_a_leaving_server_finishes_and_its_sibling_takes_over_without_a_loss(rig, make_variant, until):
    codes = {name: f"def load(d): pass\ndef predict(m, batch): return [{name!r}] * len(batch)" for name in ("a", "b")}
    paths = [rig.start_server(name, code) for name, code in codes.items()]
    rig.publish({**make_variant("v", paths[0]), "servers": paths}, wait=False)
    rig.start_gateway()
    stop, wrong, counted = threading.Event(), [], {"a": 0, "b": 0}

    def load():
        client = rig.client()
        while not stop.is_set():
            status, document, _ = rig.ask({"x": 1}, client)
            if status == 200:
                counted[document["predictions"][0]] += 1
            else:
                wrong.append((status, document))

    threads = [threading.Thread(target=load) for _ in range(16)]
    for thread in threads:
        thread.start()
    for name in ("a", "b", "a"):
        before = dict(counted)
        until(lambda before=before: all(counted[each] > before[each] + 20 for each in counted))  # both are at work
        rig.processes[name].send_signal(signal.SIGTERM)
        assert rig.processes[name].wait(60) == 0
        rig.start_server(name, codes[name])
    stop.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_each_request_names_its_model(rig, make_variant, supervisor):
    for number in (1, 2, 3):
        supervisor.codes[f"m{number}"] = named(number)
    rig.publish(
        sleeping(rig, make_variant, "m1", model="one", version=1, weight=100),
        sleeping(rig, make_variant, "m2", model="two", version=7, weight=0),
        sleeping(rig, make_variant, "m3", model="two", version=8, weight=100),
        multi_model=True,
        wait=False,
    )
    rig.start_gateway()

    def ask(model):
        status, document, answer = rig.ask({"x": 0}, x_loopline_model=model)
        return status, document.get("predictions"), answer.headers["x-loopline-version"]

    found = [ask(model) for model in ("one", "two", "two:7", "one:1", "two:8")]
    assert found == [(200, [1], "1"), (200, [3], "8"), (200, [2], "7"), (200, [1], "1"), (200, [3], "8")]
    status, document, _ = rig.ask({"x": 0}, x_loopline_model="three")
    assert (status, document["error"]["code"]) == (404, "not_found")
    assert "one" not in document["error"]["message"].split("serves")[1]
    assert rig.ask({"x": 0})[0] == 400
    rig.processes["gateway"].send_signal(signal.SIGTERM)
    rig.processes["gateway"].wait(60)
    records = [(record.meta["model"], record.meta["version"], record.meta["variant"]) for record in rig.records()]
    assert ("one", 1, "m1") in records and ("two", 7, "m2") in records and ("two", 8, "m3") in records


def test_a_model_that_loads_keeps_nobody_from_the_others(rig, make_variant, supervisor, until):
    supervisor.codes["m1"] = named(1)
    rig.publish(
        sleeping(rig, make_variant, "m1", model="one", version=1),
        sleeping(rig, make_variant, "m2", model="two", version=1),
        multi_model=True,
        wait=False,
        max_concurrent=4,
    )
    rig.start_gateway()
    waiting = [rig.client() for _ in range(300)]
    for client in waiting:
        client.connect()
        headers = {"authorization": f"Bearer {rig.key}", "content-type": "application/json", "x-loopline-model": "two"}
        client.request("POST", "/endpoints/e/invocations", b'{"x": 1}', headers)
    assert rig.ask({"x": 0}, x_loopline_model="one")[:2] == (200, {"predictions": [1]})
    told = until(lambda: len(found := readable(waiting)) == 300 - MAX_WAITING and found)
    too_many = [client.getresponse() for client in told]
    assert {(answer.status, answer.headers["retry-after"]) for answer in too_many} == {(503, "1")}
    for client in waiting:
        client.close()
