"""The client against a real server: answers, errors as their classes, retries, streams, waiting."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loopline import errors
from loopline.errors import GateRefused, InvalidInput, LooplineError, NotFound, Timeout, TooLarge, Unavailable
from loopline.sdk.client import Client


class Script:
    """What the server answers next, and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            script.asked.append((self.command, self.path, dict(self.headers.items()), body))
            status, headers, document = script.answers.pop(0)
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(url: str) -> Client:
    return Client(url, "lk_x", timeout=60)


def refused(code: str, message: str = "no", **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": details, "request_id": "rq_1"}}


def test_a_question_carries_key_path_and_query(script: Script, client: Client) -> None:
    script.answers.append((200, {}, {"items": []}))
    assert client.get("runs", "a/b c", where="accuracy > 0.9", limit=5, cursor=None, all=True) == {"items": []}
    method, path, headers, _ = script.asked[0]
    assert (method, path) == ("GET", "/api/runs/a%2Fb%20c?where=accuracy+%3E+0.9&limit=5&all=true")
    assert headers["authorization"] == "Bearer lk_x"


def test_a_body_is_json_without_what_was_not_given(script: Script, client: Client) -> None:
    script.answers.append((201, {}, {}))
    client.post("users", name="ada", role=None)
    assert json.loads(script.asked[0][3]) == {"name": "ada"}


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LooplineError)]
)
def test_errors_come_back_as_their_classes(script: Script, client: Client, kind: type[LooplineError]) -> None:
    script.answers.append((kind.status, {"x-request-id": "rq_1"}, refused(kind.code, "why", place="here")))
    with pytest.raises(LooplineError) as raised:
        client.post("x")
    assert type(raised.value) is kind
    assert raised.value.message == "why"
    assert raised.value.details == {"place": "here", "request_id": "rq_1"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (413, TooLarge), (418, InvalidInput), (502, LooplineError), (503, Unavailable)],
)
def test_an_answer_of_something_else_is_an_error_of_its_status(
    script: Script, client: Client, status: int, kind: type[LooplineError]
) -> None:
    script.answers.append((status, {}, b"<html>"))
    with pytest.raises(kind, match="is that a loopline server"):
        client.post("x")


def test_an_idempotent_question_is_asked_again_when_the_server_says_when(script: Script, client: Client) -> None:
    busy = (503, {"retry-after": "0"}, refused("unavailable"))
    script.answers += [busy, busy, (200, {}, {"ok": True})]
    assert client.get("status") == {"ok": True}
    assert len(script.asked) == 3


def test_an_act_is_not_repeated_unless_it_has_a_delivery_number(script: Script, client: Client) -> None:
    busy = (503, {"retry-after": "0"}, refused("unavailable"))
    script.answers.append(busy)
    with pytest.raises(Unavailable):
        client.post("pushes", tree="x")
    script.answers += [busy, (201, {}, {})]
    client.post("pushes", tree="x", delivery="d1")
    assert len(script.asked) == 3


def test_it_gives_up_after_some_tries(script: Script, client: Client) -> None:
    script.answers += [(503, {"retry-after": "0"}, refused("unavailable"))] * 9
    with pytest.raises(Unavailable):
        client.get("status")
    assert 1 < len(script.asked) < 9


def test_bytes_go_out_and_come_in_as_streams(script: Script, client: Client) -> None:
    script.answers += [(200, {}, {"tree": "d"}), (200, {}, b"x" * 200_000)]
    assert client.upload("POST", "trees", data=iter([b"ab", b"cd"]), file="a b") == {"tree": "d"}
    _, path, _, body = script.asked[0]
    assert (path, body) == ("/api/trees?file=a+b", b"abcd")
    pieces = list(client.download("assets", "p", "a", "content"))
    assert len(pieces) > 1
    assert b"".join(pieces) == b"x" * 200_000


def test_every_page_is_fetched(script: Script, client: Client) -> None:
    script.answers += [(200, {}, {"items": [{"n": 1}], "next": "1"}), (200, {}, {"items": [{"n": 2}], "next": None})]
    assert [item["n"] for item in client.pages("runs", project="p")] == [1, 2]
    assert script.asked[1][1] == "/api/runs?project=p&cursor=1"


def test_waiting_ends_with_the_execution_and_shows_each_look(script: Script, client: Client) -> None:
    script.answers += [(200, {}, {"status": status}) for status in ("Running", "Running", "Failed")]
    seen: list[str] = []
    found = client.wait_execution("ex_1", timeout=60, on_change=lambda record: seen.append(record["status"]))
    assert found["status"] == "Failed"
    assert seen == ["Running", "Running", "Failed"]


def test_waiting_has_an_end(script: Script, client: Client) -> None:
    script.answers += [(200, {}, {"status": "Running"})] * 5
    with pytest.raises(Timeout, match="still Running"):
        client.wait_execution("ex_1", timeout=0.05)


def test_nobody_there_is_told_with_a_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        with pytest.raises(Unavailable, match="loopline up"):
            Client(f"http://127.0.0.1:{taken.getsockname()[1]}", "k").get("status")


def test_silence_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Timeout):
            Client(f"http://127.0.0.1:{silent.getsockname()[1]}", "k", timeout=0.05).get("status")


def test_address_and_key_come_from_the_environment_then_from_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOPLINE_URL", "LOOPLINE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOPLINE_DIR", str(tmp_path))
    with pytest.raises(InvalidInput, match="loopline up"):
        Client()
    (tmp_path / "client.json").write_text(json.dumps({"url": "http://here:1", "key": "lk_file"}))
    found = Client()
    assert (found.url, found.key) == ("http://here:1", "lk_file")
    monkeypatch.setenv("LOOPLINE_URL", "http://there:2/")
    elsewhere = Client()
    assert (elsewhere.url, elsewhere.key) == ("http://there:2", None)  # this machine's key stays on this machine
    monkeypatch.setenv("LOOPLINE_KEY", "lk_env")
    assert Client().key == "lk_env"
    assert Client("http://x:3", "lk_arg").key == "lk_arg"


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(InvalidInput, match="http://HOST:PORT"):
        Client("localhost:8600", "k")


def test_the_gate_s_refusal_keeps_its_exit_code(script: Script, client: Client) -> None:
    script.answers.append((409, {}, refused("gate_refused")))
    with pytest.raises(GateRefused) as raised:
        client.post("models", "m", "versions", 1, "approve")
    assert raised.value.exit_code == 3
