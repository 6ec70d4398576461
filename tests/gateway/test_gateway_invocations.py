"""Invocations through a real gateway to real model servers."""

import json
import signal
import subprocess
import sys
import threading

import pytest

from loopline.children import start_time

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"
COUNT = "def load(d): pass\ndef predict(m, batch): return [len(batch)] * len(batch)"
SLOW = """
    import pathlib, time
    def load(d): return pathlib.Path(d)
    def predict(folder, batch):
        with (folder / "entered").open("a") as file:
            file.write("x" * len(batch))
        while not (folder / "go").exists():
            time.sleep(0.005)
        return [row[0] for row in batch]
"""


@pytest.fixture
def served(rig, make_variant):
    """An echo endpoint."""
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway()
    return rig


def read_answers(sock, count):
    """``count`` answers from a raw socket: (status, headers, document)."""
    buffer, answers = b"", []
    while len(answers) < count:
        while b"\r\n\r\n" not in buffer:
            data = sock.recv(65536)
            assert data, f"closed after {len(answers)} answers and {buffer!r}"
            buffer += data
        head, _, rest = buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(rest) < length:
            data = sock.recv(65536)
            assert data
            rest += data
        answers.append((int(first.split()[1]), headers, json.loads(rest[:length])))
        buffer = rest[length:]
    return answers


def test_an_answer_names_its_request_version_and_variant(served):
    status, document, answer = served.ask({"x": 4})
    assert (status, document) == (200, {"predictions": [4.0]})
    assert answer.headers["x-loopline-version"] == "1"
    assert answer.headers["x-loopline-variant"] == "v1"
    assert answer.headers["x-request-id"].startswith("rq_")
    assert len(answer.headers["x-request-id"]) == 23


def test_a_key_may_also_come_as_x_api_key(served):
    assert served.ask({"x": 4}, authorization="AWS4-HMAC-SHA256 x", x_api_key=served.key)[0] == 200


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("", 401, "unauthenticated"),
        ("Bearer nonsense", 401, "unauthenticated"),
        ("Bearer lk_abcdefgh_" + "A" * 43, 401, "unauthenticated"),
        ("Bearer lk_unknown0_{secret}", 401, "unauthenticated"),
        ("Bearer lk_expired0_{secret}", 401, "unauthenticated"),
        ("Bearer lk_viewer00_{secret}", 403, "forbidden"),
        ("Bearer lk_scoped00_{secret}", 403, "forbidden"),
    ],
)
def test_a_key_that_may_not_is_refused(served, authorization, status, code):
    found, document, answer = served.ask({"x": 1}, authorization=authorization.format(secret=served.secret))
    assert (found, document["error"]["code"]) == (status, code)
    assert document["error"]["request_id"] == answer.headers["x-request-id"]
    assert "x-loopline-version" in answer.headers


def test_only_a_key_that_could_invoke_it_learns_that_an_endpoint_does_not_exist(served):
    assert served.ask({"x": 1}, name="nothere")[0] == 404
    assert served.ask({"x": 1}, name="nothere", authorization="")[0] == 401
    assert served.ask({"x": 1}, name="nothere", authorization=f"Bearer lk_scoped00_{served.secret}")[0] == 403


def test_pipelined_requests_are_answered_in_order(served):
    with served.raw() as sock:
        sock.sendall(b"".join(served.request_bytes({"x": number}) for number in range(200)))
        answers = read_answers(sock, 200)
    assert [document["predictions"][0] for _, _, document in answers] == list(range(200))


def test_order_holds_when_an_early_refusal_stands_between_answers(served):
    other = served.request_bytes().replace(b"/endpoints/e/inv", b"/endpoints/x/inv")
    with served.raw() as sock:
        sock.sendall(served.request_bytes({"x": 1}) + other + served.request_bytes({"x": 3}))
        assert [status for status, _, _ in read_answers(sock, 3)] == [200, 404, 200]


def test_concurrent_requests_are_predicted_together(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", COUNT)), wait=False)
    rig.start_gateway()
    with rig.raw() as sock:
        sock.sendall(b"".join(rig.request_bytes({"x": 1}) for _ in range(50)))
        sizes = [document["predictions"][0] for _, _, document in read_answers(sock, 50)]
    assert max(sizes) > 10


def test_a_bad_row_fails_only_its_own_request(served):
    bodies = [{"x": 1}, {"x": "bad"}, {"x": 3}]
    with served.raw() as sock:
        sock.sendall(b"".join(served.request_bytes(body) for body in bodies))
        answers = read_answers(sock, 3)
    assert [status for status, _, _ in answers] == [200, 400, 200]
    error = answers[1][2]["error"]
    assert (error["row"], error["feature"]) == (0, "x")
    assert error["request_id"] == answers[1][1]["x-request-id"]


def test_servers_of_a_variant_take_turns(rig, make_variant, until):
    paths = [
        rig.start_server(name, f"def load(d): pass\ndef predict(m, batch): return ['{name}'] * len(batch)")
        for name in ("a", "b")
    ]
    rig.publish(make_variant("v1", *paths), wait=False)
    rig.start_gateway()
    client = rig.client()

    def says():
        return rig.ask({"x": 1}, client)[1].get("predictions", [None])[0]

    until(lambda: {says(), says()} == {"a", "b"})  # both are connected
    said = [says() for _ in range(10)]
    assert sorted(said[:2]) == ["a", "b"]
    assert said[0::2] == [said[0]] * 5
    assert said[1::2] == [said[1]] * 5
    rig.kill("a")
    rig.ask({"x": 1}, client)  # which may be lost: once it is answered, the gateway has seen the end of the server
    assert {says() for _ in range(4)} == {"b"}


def entered(rig, name="a"):
    path = rig.folder / name / "entered"
    return len(path.read_text()) if path.exists() else 0


def test_requests_in_flight_get_503_when_the_server_is_killed_and_later_ones_succeed(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False, max_concurrent=8)
    rig.start_gateway()
    with rig.raw() as sock:
        sock.sendall(rig.request_bytes() * 8)
        until(lambda: entered(rig) >= 1)
        assert rig.ask({"x": 1})[0] == 429  # so all eight are in flight
        rig.kill("a")
        answers = read_answers(sock, 8)  # before their time is over, which would be a 504
        assert [status for status, _, _ in answers] == [503] * 8
        assert all(headers["retry-after"] == "1" for _, headers, _ in answers)
    assert rig.ask({"x": 1})[0] == 503
    (rig.folder / "a" / "go").touch()
    rig.start_server("a", SLOW)
    until(lambda: rig.ask({"x": 2})[0] == 200)
    assert all(rig.ask({"x": 2})[0] == 200 for _ in range(20))


def test_a_client_that_goes_leaves_its_slot_until_the_server_has_answered(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False, max_concurrent=1)
    rig.start_gateway()
    with rig.raw() as sock:
        sock.sendall(rig.request_bytes({"x": 1}))
        until(lambda: entered(rig) == 1)
    assert rig.ask({"x": 2})[0] == 429
    (rig.folder / "a" / "go").touch()
    until(lambda: rig.ask({"x": 2})[0] == 200)
    recorded = until(lambda: [record.body for record in rig.records() if record.meta["status"] == 200][:2])
    assert recorded[0] == b'{"x": 1}'


def test_the_gateway_ends_with_its_parent(rig, until):
    script = "import subprocess, sys\np = subprocess.Popen(sys.argv[1:])\nprint(p.pid, flush=True)\np.wait()"
    command = [sys.executable, "-m", "loopline.gateway", "--dir", str(rig.folder), "--bind", "127.0.0.1:0"]
    log = rig.folder / "gateway.log"
    with log.open("wb") as file:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, stderr=file, env=rig.environ
        )
    rig.processes["parent"] = parent
    child = int(parent.stdout.readline())
    parent.stdout.close()
    until(lambda: b"listening" in log.read_bytes())
    rig.kill("parent")
    until(lambda: b"parent ended" in log.read_bytes())
    until(lambda: b"stopped" in log.read_bytes())
    until(lambda: start_time(child) is None)


def test_a_late_answer_is_504_and_the_connection_goes_on(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False, timeout_ms=300)
    rig.start_gateway()
    client = rig.client()
    status, document, _ = rig.ask({"x": 1}, client)
    assert (status, document["error"]["code"]) == (504, "timeout")
    (rig.folder / "a" / "go").touch()
    until(lambda: rig.ask({"x": 5}, client)[1] == {"predictions": [5.0]})


def test_more_than_max_concurrent_requests_are_turned_away(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False, max_concurrent=2)
    rig.start_gateway()
    with rig.raw() as sock:
        sock.sendall(rig.request_bytes({"x": 1}) * 2)
        until(lambda: entered(rig) >= 1)
        _, document, answer = until(lambda: (found := rig.ask({"x": 3}))[0] == 429 and found)
        assert (document["error"]["code"], answer.headers["retry-after"]) == ("overloaded", "1")
        (rig.folder / "a" / "go").touch()
        assert [status for status, _, _ in read_answers(sock, 2)] == [200, 200]
    assert rig.ask({"x": 3})[0] == 200


def test_a_body_over_the_cap_is_413_announced_or_streamed(served):
    assert served.ask(b" " * 100_001)[0] == 413
    head = f"POST /endpoints/e/invocations HTTP/1.1\r\nHost: {served.address}\r\nAuthorization: Bearer {served.key}\r\n"
    with served.raw() as sock:
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        sock.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 120)
        ((status, headers, _),) = read_answers(sock, 1)
        assert (status, headers["connection"]) == (413, "close")
        assert sock.recv(10) == b""


def test_a_body_of_many_tiny_chunks_arrives_whole(served):
    head = f"POST /endpoints/e/invocations HTTP/1.1\r\nHost: {served.address}\r\nAuthorization: Bearer {served.key}\r\n"
    body = b'{"x": ' + b" " * 50_000 + b"8}"
    with served.raw() as sock:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        sock.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert read_answers(sock, 1)[0][2] == {"predictions": [8.0]}


def test_a_chunked_body_and_expect_are_understood(served):
    head = f"POST /endpoints/e/invocations HTTP/1.1\r\nHost: {served.address}\r\nAuthorization: Bearer {served.key}\r\n"
    with served.raw() as sock:
        sock.sendall(head.encode() + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"x\r\n5\r\n": 6}\r\n0\r\n\r\n')
        assert read_answers(sock, 1)[0][2] == {"predictions": [6.0]}
        sock.sendall(head.encode() + b"Expect: 100-continue\r\nContent-Length: 8\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"x": 7}')
        assert read_answers(sock, 1)[0][2] == {"predictions": [7.0]}


def test_a_refused_expectation_is_answered_without_the_body(served):
    head = f"POST /endpoints/e/invocations HTTP/1.1\r\nHost: {served.address}\r\nExpect: 100-continue\r\n"
    with served.raw() as sock:
        sock.sendall(head.encode() + b"Content-Length: 8\r\n\r\n")
        assert read_answers(sock, 1)[0][0] == 401


def test_ping_says_whether_every_variant_with_traffic_has_a_server(rig, make_variant, until):
    def ping():
        client = rig.client()
        client.request("GET", "/endpoints/e/ping")
        return client.getresponse().status

    rig.start_gateway()
    assert ping() == 503  # no snapshot
    path = rig.start_server("a", ECHO)
    rig.publish(make_variant("v1", path), make_variant("v2", str(rig.run / "none.sock"), weight=0))
    until(lambda: ping() == 200)
    rig.publish(make_variant("v1", path), make_variant("v2", str(rig.run / "none.sock"), weight=1))
    assert ping() == 503
    rig.publish(make_variant("v1", path))
    rig.kill("a")
    until(lambda: ping() == 503)
    rig.start_server("a", ECHO)
    until(lambda: ping() == 200)


def test_traffic_splits_by_weight(rig, make_variant):
    paths = [rig.start_server(name, ECHO) for name in ("a", "b")]
    rig.publish(make_variant("old", paths[0], weight=90), make_variant("new", paths[1], weight=10), wait=False)
    rig.start_gateway(LOOPLINE_SEED="split")
    chosen = []
    with rig.raw() as sock:
        for _ in range(100):
            sock.sendall(rig.request_bytes() * 50)
            chosen += [headers["x-loopline-variant"] for _, headers, _ in read_answers(sock, 50)]
    share = chosen.count("new") / 5000
    assert len(chosen) == 5000
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 5000) ** 0.5  # four standard deviations of a binomial share


def test_a_swap_under_load_loses_nothing_and_every_answer_is_of_the_version_it_claims(rig, make_variant, until):
    def server(version):
        return rig.start_server(
            f"s{version}", f"def load(d): pass\ndef predict(m, batch): return [{version}] * len(batch)"
        )

    def publish(version, path):
        rig.publish(make_variant(f"v{version}", path, version=version))

    rig.publish(make_variant("v1", server(1), version=1), wait=False)
    rig.start_gateway()
    seen, wrong, stop = set(), [], threading.Event()
    counted = [0] * 32

    def load(index):
        client = rig.client()
        while not stop.is_set():
            status, document, answer = rig.ask({"x": 1}, client)
            version = answer.headers["x-loopline-version"]
            if (
                status != 200
                or document["predictions"] != [int(version)]
                or f"v{version}" != answer.headers["x-loopline-variant"]
            ):
                wrong.append((status, document, version))
            seen.add(version)
            counted[index] += 1

    threads = [threading.Thread(target=load, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    until(lambda: all(counted))
    for version in (2, 3, 4):
        publish(version, server(version))
        before = list(counted)
        until(lambda before=before: all(now > then + 1 for now, then in zip(counted, before, strict=True)))
        old = rig.processes[f"s{version - 1}"]
        old.send_signal(signal.SIGTERM)
        assert old.wait(60) == 0
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert seen == {"1", "2", "3", "4"}


def test_a_request_in_flight_finishes_on_the_old_server_after_a_swap(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW), version=1), wait=False)
    rig.start_gateway()
    with rig.raw() as sock:
        sock.sendall(rig.request_bytes({"x": 1}))
        until(lambda: entered(rig) == 1)
        rig.publish(make_variant("v2", rig.start_server("b", ECHO), version=2))
        assert rig.ask({"x": 2})[2].headers["x-loopline-version"] == "2"
        (rig.folder / "a" / "go").touch()
        ((status, headers, _),) = read_answers(sock, 1)
        assert (status, headers["x-loopline-version"]) == (200, "1")


def test_a_request_whose_body_comes_after_a_swap_goes_by_the_new_table(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO), version=1), wait=False)
    rig.start_gateway()
    parts = rig.request_bytes({"x": 3}).partition(b"\r\n\r\n")
    with rig.raw() as sock, rig.raw() as revoked:
        sock.sendall(parts[0] + parts[1])
        revoked.sendall(parts[0] + parts[1])
        assert rig.ask({"x": 1})[0] == 200  # so the heads have been read
        rig.publish(make_variant("v2", rig.start_server("b", ECHO), version=2))
        rig.kill("a")
        sock.sendall(parts[2])
        ((status, headers, document),) = read_answers(sock, 1)
        assert (status, headers["x-loopline-version"], document) == (200, "2", {"predictions": [3.0]})
        text = json.loads((rig.folder / "snapshot.json").read_text())
        text.update(number=3, keys={})
        rig.write_snapshot(json.dumps(text))
        until(lambda: rig.state()["number"] == 3)
        revoked.sendall(parts[2])
        assert read_answers(revoked, 1)[0][0] == 401


def test_a_snapshot_that_is_not_valid_changes_nothing(served, make_variant, until):
    for text in (
        "{",
        '{"number": 99}',
        "[]",
        '{"number": 5, "at": 0, "allowed_hosts": [], "endpoints": [], "keys": {}}',
    ):
        before = served.gateway_log().count("snapshot ignored")
        served.write_snapshot(text)
        until(lambda n=before: served.gateway_log().count("snapshot ignored") == n + 1)
        assert served.ask({"x": 1})[0] == 200
    assert served.state()["number"] == 1


def test_a_revoked_key_is_refused_after_the_swap(served, until):
    document = json.loads((served.folder / "snapshot.json").read_text())
    del document["keys"]["abcdefgh"]
    document["number"] = 2
    served.write_snapshot(json.dumps(document))
    until(lambda: served.ask({"x": 1})[0] == 401)


def test_the_switch_is_acknowledged_by_datagram(rig, make_variant):
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
        wake.bind(str(rig.run / "wake.sock"))
        wake.settimeout(60)
        rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
        rig.start_gateway()
        assert json.loads(wake.recv(1000)) == {"kind": "ack", "gateway": "gateway-0", "number": 1}
        assert rig.state()["number"] == 1


def test_sigterm_finishes_what_is_in_flight_writes_the_spool_and_exits_zero(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False)
    gateway = rig.start_gateway()
    with rig.raw() as sock, rig.raw() as idle:
        sock.sendall(rig.request_bytes({"x": 1}))
        until(lambda: entered(rig) == 1)
        idle.sendall(f"GET /healthz HTTP/1.1\r\nHost: {rig.address}\r\n\r\n".encode())
        assert read_answers(idle, 1)[0][0] == 200  # so the gateway has it
        gateway.send_signal(signal.SIGTERM)
        assert idle.recv(10) == b""
        assert gateway.poll() is None
        (rig.folder / "a" / "go").touch()
        ((status, headers, _),) = read_answers(sock, 1)
        assert (status, headers["connection"]) == (200, "close")
    assert gateway.wait(60) == 0
    assert [record.meta["status"] for record in rig.records()] == [200]


def test_a_restarted_gateway_takes_over_the_listening_socket(served):
    assert served.ask({"x": 1})[0] == 200
    served.kill("gateway")
    (served.folder / "gateway.log").unlink()
    served.start_gateway()
    assert served.ask({"x": 2})[0] == 200
