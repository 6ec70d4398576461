"""The gateway's own socket for the platform: trusted because of the folder that it stands in."""

import http.client
import json
import re
import socket
import stat

import pytest

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"


@pytest.fixture
def served(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway()
    return rig


def ask(rig, body, path="/endpoints/e/invocations", **headers):
    """(status, document) of a POST over the private socket, with a Host that no public client may name."""
    client = http.client.HTTPConnection("anywhere", timeout=60)
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(60)
    client.sock.connect(str(rig.run / "gateway-0.http.sock"))
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    client.request("POST", path, json.dumps(body).encode(), sent)
    answer = client.getresponse()
    document = json.loads(answer.read())
    client.close()
    return answer.status, document


def test_only_this_user_may_open_the_private_socket(served):
    assert stat.S_IMODE(served.run.stat().st_mode) == 0o700
    assert stat.S_IMODE((served.run / "gateway-0.http.sock").stat().st_mode) & 0o077 == 0


def test_a_private_invocation_needs_no_key_and_its_record_says_what_it_was_for(served, until):
    assert ask(served, {"x": 1}, x_loopline_purpose="test") == (200, {"predictions": [1.0]})
    assert ask(served, {"x": 2})[0] == 200
    records = until(lambda: len(found := served.records()) == 2 and found)
    assert [record.meta.get("purpose") for record in records] == ["test", None]
    assert [record.meta["key"] for record in records] == [None, None]
    assert "purpose" not in records[1].meta


@pytest.mark.parametrize("purpose", ["", "TEST", "holiday", "x" * 5000])
def test_a_purpose_that_is_none_is_refused(served, purpose):
    status, document = ask(served, {"x": 1}, x_loopline_purpose=purpose)
    assert status == 400
    assert "async, function, test" in document["error"]["message"]


def test_two_purposes_are_refused(served):
    raw = served.request_bytes({"x": 1}, extra="X-Loopline-Purpose: test\r\nX-Loopline-Purpose: async\r\n")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(served.run / "gateway-0.http.sock"))
        sock.sendall(raw)
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_the_public_port_ignores_a_purpose_and_still_wants_a_key(served, until):
    assert served.ask({"x": 1}, x_loopline_purpose="test")[0] == 200
    assert served.ask({"x": 1}, x_loopline_purpose="nonsense")[0] == 200
    assert served.ask({"x": 1}, x_loopline_purpose="test", authorization="")[0] == 401
    records = until(lambda: len(found := served.records()) == 3 and found)
    assert all("purpose" not in record.meta for record in records)


def test_the_private_socket_leads_to_endpoints_only(served):
    status, document = ask(served, {}, path="/v1/projects")
    assert (status, document["error"]["code"]) == (404, "not_found")


def test_the_private_socket_is_as_strict_about_http_as_the_public_port(served):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(served.run / "gateway-0.http.sock"))
        sock.sendall(
            b"POST /endpoints/e/invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert re.match(rb"HTTP/1.1 400 ", sock.recv(1000))


def test_a_gateway_started_again_takes_its_private_socket_back(served):
    served.kill("gateway")
    (served.folder / "gateway.log").unlink()
    served.start_gateway()
    assert ask(served, {"x": 3})[0] == 200
