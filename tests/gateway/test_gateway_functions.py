"""Functions behind a real gateway: what they see, what they answer, what they may ask, and what their failures are."""

import asyncio
import base64
import http.client
import json
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import zlib

import pytest

from loopline.gateway.links import Link
from loopline.runtime import serve
from loopline.runtime.frames import encode_answer, encode_call

ECHO = """
    def load(model_dir): return None
    def predict(model, rows): return [row[0] * 2 for row in rows]
"""
FUNCTIONS = """
    import base64, os, struct, time, zlib

    def reshape(event, context):
        rows = [{"x": value} for value in event["body"]["columns"]["x"]]
        return context.invoke("e", {"instances": rows})

    def image(event, context):
        data = base64.b64decode(event["body"]["image"])
        width, height = struct.unpack(">II", data[16:24])
        at, packed = 8, b""
        while at < len(data):
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
            at += size + 12
        pixels = zlib.decompress(packed)
        gray = [pixels[row * (width + 1) + 1 : (row + 1) * (width + 1)] for row in range(height)]
        return {"width": width, "height": height, "mean": sum(map(sum, gray)) / (width * height)}

    def show(event, context):
        return {**event, "function": context.function, "request_id": context.request_id,
                "remaining": context.remaining_seconds()}

    def proxied(event, context):
        return {"statusCode": 418, "headers": {"X-Pot": "tea", "content-type": "text/html",
                "Set-Cookie": "a=b", "x-loopline-version": "9"}, "body": "<b>short and stout</b>"}

    def injected(event, context):
        return {"statusCode": 200, "headers": {"x-a": "b\\r\\nx-evil: 1"}, "body": "x"}

    def binary(event, context):
        return base64.b64decode(event["body_base64"])[::-1]

    def broken(event, context):
        return {"answer": event["body"]["missing"]}

    def dies(event, context):
        os._exit(3)

    def sleeps(event, context):
        time.sleep(3600)

    def naps(event, context):
        if event["body"]["long"]:
            open(os.path.join(os.path.dirname(__file__), "napping"), "w").close()
            while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
                time.sleep(0.01)

    def nonsense(event, context):
        return object()

    def outside(event, context):
        return context.invoke("other", {"x": 1})

    def failing_model(event, context):
        return context.invoke("e", {"y": 1})

    def handled(event, context):
        try:
            return context.invoke("e", {"y": 1})
        except Exception as error:
            return {"status": error.status, "code": error.body["error"]["code"], "says": str(error)}
"""
NAMES = [line.split("(")[0].split()[1] for line in textwrap.dedent(FUNCTIONS).splitlines() if line.startswith("def ")]


class World:
    """The rig with the endpoint ``e``, and functions, each in a process of its own."""

    def __init__(self, rig, make_variant, until) -> None:
        self.rig, self.until = rig, until
        self._variant = make_variant("v1", rig.start_server("model", ECHO))
        self._home = rig.folder / "functions"
        self._home.mkdir()
        (self._home / "functions.py").write_text(textwrap.dedent(FUNCTIONS))

    def start(self, name: str, handler: str | None = None) -> str:
        status, path = self._home / f"{name}.status", self.rig.run / f"f-{name}.sock"
        spec = {
            "id": name,
            "handler": "function",
            "function": {"name": handler or name, "file": "functions.py", "handler": handler or name},
            "model_dir": str(self._home),
            "code_dir": str(self._home),
            "sandbox": {"network": False, "write": [str(self._home)]},
        }
        (self._home / f"{name}.json").write_text(json.dumps(spec))
        status.unlink(missing_ok=True)
        command = [sys.executable, "-I", serve.__file__, "--spec", str(self._home / f"{name}.json")]
        with (self._home / f"{name}.log").open("ab") as log:
            self.rig.processes[name] = subprocess.Popen(
                [*command, "--socket", str(path), "--status", str(status)], stdout=log, stderr=log
            )
        self.until(lambda: status.exists() and json.loads(status.read_text())["state"] == "ready")
        return str(path)

    def publish(self, *names: str, **fields: object) -> None:
        self.rig.publish(self._variant, wait=False)
        document = json.loads((self.rig.folder / "snapshot.json").read_text())
        document["functions"] = {
            name: {
                "variants": [{"name": "live", "version": None, "weight": 100, "servers": [self.start(name)]}],
                "calls": ["e"],
                "timeout_ms": 20_000,
                **fields,
            }
            for name in names
        }
        document["keys"]["onlyfun0"] = self.rig.key_spec(endpoints=["function:show"])
        self.rig.write_snapshot(json.dumps(document))
        self.rig.start_gateway()

    def ask(self, path: str, body: object = None, method: str = "POST", **headers: str):
        """(status, headers, body) of one request."""
        client = self.rig.client()
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.rig.key}"}
        if raw is not None:
            sent["content-type"] = "application/json"
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        client.request(method, f"/functions/{path}", raw, sent)
        answer = client.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        raw = answer.read()
        client.close()
        return answer.status, found, raw

    def stage(self, make_variant) -> None:
        """A second version behind ``e``, which answers three times the number, and has no traffic."""
        document = json.loads((self.rig.folder / "snapshot.json").read_text())
        document["number"] += 1
        second = self.rig.start_server("second", ECHO.replace("* 2", "* 3"))
        document["endpoints"]["e"]["variants"].append(make_variant("v2", second, weight=0.0, version=2))
        self.rig.write_snapshot(json.dumps(document))
        self.until(lambda: self.rig.state().get("number") == document["number"])

    def test(self, path: str, body: object, **headers: str):
        """(status, document) of what the platform itself asks for a test, over the private socket."""
        client = http.client.HTTPConnection("private", timeout=60)
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(str(self.rig.run / "gateway-0.http.sock"))
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request("POST", f"/functions/{path}", json.dumps(body), {"x-loopline-purpose": "test", **sent})
        answer = client.getresponse()
        document = json.loads(answer.read())
        client.close()
        return answer.status, document


@pytest.fixture
def world(rig, make_variant, until):
    return World(rig, make_variant, until)


def png(width: int, height: int, value: int) -> bytes:
    """A grey image."""
    rows = b"".join(b"\0" + bytes([value]) * width for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_body_is_reshaped_and_an_endpoint_is_asked(world):
    world.publish("reshape")
    status, headers, body = world.ask("reshape", {"columns": {"x": [1, 2, 3]}})
    assert (status, json.loads(body)) == (200, {"predictions": [2.0, 4.0, 6.0]})
    assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("rq_")
    world.until(lambda: len(world.rig.records()) >= 2)
    kinds = {(record.meta["endpoint"], record.meta.get("purpose")) for record in world.rig.records()}
    assert kinds == {("function:reshape", None), ("e", "function")}


def test_an_image_in_base_64_is_decoded(world):
    world.publish("image")
    image = base64.b64encode(png(8, 4, 51)).decode()
    status, _, body = world.ask("image", {"image": image})
    assert (status, json.loads(body)) == (200, {"width": 8, "height": 4, "mean": 51.0})


def test_a_function_sees_the_request_without_its_credentials(world):
    world.publish("show")
    status, headers, body = world.ask(
        "show/a/b?c=1&d=x%20y", b"a,b", "PUT", content_type="text/csv", cookie="s=1", x_own="1", x_loopline_other="2"
    )
    seen = json.loads(body)
    assert status == 200
    assert (seen["method"], seen["path"], seen["query"]) == ("PUT", "/a/b", {"c": "1", "d": "x y"})
    assert (seen["body"], seen["body_base64"]) == ("a,b", None)
    assert seen["headers"]["x-own"] == "1"
    assert not {"authorization", "cookie", "x-loopline-other", "connection"} & set(seen["headers"])
    assert seen["function"] == "show" and seen["request_id"] == headers["x-request-id"]
    assert 0 < seen["remaining"] <= 20
    assert json.loads(world.ask("show", method="GET")[2])["body"] is None
    assert json.loads(world.ask("show", b"{no json")[2])["body_base64"] == base64.b64encode(b"{no json").decode()


def test_an_answer_may_have_a_status_and_headers_but_not_the_platforms_own(world):
    world.publish("proxied", "injected", "binary")
    status, headers, body = world.ask("proxied", {})
    assert (status, body, headers["x-pot"], headers["content-type"]) == (
        418,
        b"<b>short and stout</b>",
        "tea",
        "text/html",
    )
    assert "set-cookie" not in headers and headers["x-loopline-version"] == "none"
    assert headers["content-security-policy"] == "sandbox"
    status, headers, body = world.ask("injected", {})
    assert status == 502 and "x-evil" not in headers and json.loads(body)["error"]["code"] == "function_failed"
    status, headers, body = world.ask("binary", b"\x00\x01\xff", content_type="application/octet-stream")
    assert (status, body, headers["content-type"]) == (200, b"\xff\x01\x00", "application/octet-stream")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "KeyError: 'missing'"),
        ("nonsense", "not JSON serializable"),
        ("dies", "ended while it had this request"),
        ("outside", "may not invoke that endpoint"),
        ("failing_model", "the endpoint e answered 400"),
    ],
)
def test_a_failure_is_a_502_with_the_request_id(world, name, says):
    world.publish(name)
    status, headers, body = world.ask(name, {})
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (502, "function_failed")
    assert says in error["message"] and error["request_id"] == headers["x-request-id"]


def test_a_function_may_handle_what_an_endpoint_refuses(world):
    world.publish("handled")
    status, _, body = world.ask("handled", {})
    answer = json.loads(body)
    assert (status, answer["status"], answer["code"]) == (200, 400, "invalid_input")
    assert answer["says"].startswith("the endpoint e answered 400: ")


def test_a_function_that_takes_too_long_is_a_504_and_is_restarted(world):
    world.publish("sleeps", timeout_ms=500)
    status, headers, body = world.ask("sleeps", {})
    error = json.loads(body)["error"]
    assert (status, error["code"], error["request_id"]) == (504, "timeout", headers["x-request-id"])
    world.until(lambda: world.rig.state().get("ejections"))
    assert world.rig.state()["ejections"][0]["endpoint"] == "function:sleeps"


def test_a_key_opens_the_functions_that_its_scope_names(world):
    world.publish("show", "reshape")
    scoped = f"Bearer lk_onlyfun0_{world.rig.secret}"
    assert world.ask("show", {}, authorization=scoped)[0] == 200
    assert world.ask("reshape", {}, authorization=scoped)[0] == 403
    assert world.rig.ask({"x": 1}, authorization=scoped)[0] == 403
    assert world.ask("show", {}, authorization="Bearer none")[0] == 401
    assert world.ask("nothing", {}, authorization=scoped)[0] == 403
    assert world.ask("nothing", {})[0] == 404
    assert world.ask("show", method="DELETE")[0] == 200
    client = world.rig.client()
    client.request("OPTIONS", "/functions/show")
    assert client.getresponse().status == 405


def test_requests_at_the_same_time_all_get_their_own_answer(world):
    world.publish("reshape")
    answers: dict[int, list] = {}

    def ask(number: int) -> None:
        answers[number] = json.loads(world.ask("reshape", {"columns": {"x": [number]}})[2])["predictions"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [2.0 * number] for number in range(24)}


def test_what_a_test_asks_through_a_function_reaches_the_version_under_test_and_nothing_else_does(world, make_variant):
    world.publish("reshape")
    world.stage(make_variant)
    tested = {"x_loopline_tested": "e/v2"}
    assert world.test("reshape", {"columns": {"x": [5]}}, **tested) == (200, {"predictions": [15.0]})
    answers: dict[int, list] = {}

    def ask(number: int) -> None:
        body = {"columns": {"x": [number]}}
        if number % 2:
            answers[number] = world.test("reshape", body, **tested)[1]["predictions"]
        else:  # what a caller says of tests counts nothing
            said = {"x_loopline_tested": "e/v2", "x_loopline_purpose": "test"}
            answers[number] = json.loads(world.ask("reshape", body, **said)[2])["predictions"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [(3.0 if number % 2 else 2.0) * number] for number in range(24)}
    world.until(lambda: len(world.rig.records()) == 50)
    asked = [record.meta for record in world.rig.records() if record.meta["endpoint"] == "e"]
    assert {(each["variant"], each["purpose"]) for each in asked} == {("v1", "function"), ("v2", "test")}
    assert world.test("reshape", {"columns": {"x": [5]}})[1] == {"predictions": [10.0]}
    assert world.test("reshape", {"columns": {"x": [5]}}, x_loopline_tested="other/v2")[1] == {"predictions": [10.0]}
    status, document = world.test("reshape", {"columns": {"x": [5]}}, x_loopline_tested="e/v3")
    assert status == 502 and "404" in document["error"]["message"]
    assert world.test("reshape", {}, x_loopline_tested="v2")[0] == 400


def test_a_question_belongs_to_the_request_that_the_process_is_at_work_on():
    asyncio.run(attributed())


async def attributed() -> None:
    class Request:
        deadline, expired = 1e12, False

        def answered(self, *_):
            pass

        def lost(self):
            pass

    class Pipe(asyncio.Transport):
        def write(self, data):
            pass

    link = Link("nowhere", on_demand=True)
    link._transport = Pipe()
    told = []
    link.on_call = lambda number, payload, serving, write: told.append(serving)
    requests = [Request() for _ in range(4)]
    for request in requests:
        link.submit(request, b"a/b", b"rq", b"")
    call, done = encode_call(9, b"e", b"a/b", 10, b""), [encode_answer(n, 200, b"a/b", b"") for n in range(5)]
    link.data_received(call)
    link.data_received(call + done[1] + call + call)
    link.data_received(done[2])
    assert told == [requests[0], requests[0], requests[1], requests[1]]
    link.eject()  # the process goes on with the third and the fourth, for which nobody waits any more
    link.take_back()
    late = Request()
    link.submit(late, b"a/b", b"rq", b"")
    link.data_received(call + done[3])
    link.data_received(call)
    link.data_received(done[4])
    link.data_received(call)
    assert told[4:] == [None, None, late]


def test_a_process_that_is_busy_keeps_nobody_from_one_that_is_not(world):
    world.publish("naps", timeout_ms=60_000)
    document = json.loads((world.rig.folder / "snapshot.json").read_text())
    document["number"] += 1
    document["functions"]["naps"]["variants"][0]["servers"].append(world.start("second", "naps"))
    world.rig.write_snapshot(json.dumps(document))
    world.until(lambda: world.rig.state().get("number") == document["number"])
    busy = threading.Thread(target=world.ask, args=("naps", {"long": True}))
    busy.start()
    world.until((world.rig.folder / "functions" / "napping").exists)
    assert [world.ask("naps", {"long": False})[0] for _ in range(6)] == [200] * 6
    assert busy.is_alive(), "they waited for the one that was busy"
    (world.rig.folder / "functions" / "go").touch()
    busy.join()
