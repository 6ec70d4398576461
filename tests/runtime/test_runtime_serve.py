"""Model servers as real processes behind real sockets."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from loopline.children import start_time
from loopline.runtime import sandbox, serve
from loopline.runtime.frames import ANSWER, LEAVING, PING, PREDICT, FrameReader, encode_frame
from loopline.testing.live import until

SERVE = Path(serve.__file__)
ECHO = """
    def load(model_dir):
        return None
    def predict(model, batch):
        return [row[0] for row in batch]
"""
TWO = {"features": [{"name": "age", "type": "number"}, {"name": "city", "type": "string", "required": False}]}
ONE = {"features": [{"name": "x", "type": "number"}]}


class ServerProcess:
    """A model server with one client connection."""

    def __init__(self, folder: Path, code: str | None, **spec: object) -> None:
        self.status_file, self.path = folder / "status.json", folder / "server.sock"
        if code is not None:
            (folder / "predict.py").write_text(textwrap.dedent(code))
        document = {"id": "ms_1", "model_dir": str(folder), "handler": "predict", "code_dir": str(folder), **spec}
        document.setdefault("sandbox", {"write": [str(folder)]})
        (folder / "spec.json").write_text(json.dumps(document))
        command = [sys.executable, "-I", str(SERVE), "--spec", str(folder / "spec.json")]
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [*command, "--socket", str(self.path), "--status", str(self.status_file)], stdout=self.log, stderr=self.log
        )
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(60)
        self.reader = FrameReader()
        self.frames: list = []

    def wait(self) -> dict:
        def said() -> dict | None:
            status = json.loads(self.status_file.read_text()) if self.status_file.exists() else {"state": "loading"}
            return None if status["state"] == "loading" else status

        return until(said, "it is ready or has failed")

    def connect(self) -> "ServerProcess":
        status = self.wait()
        assert status["state"] == "ready", status
        self.client.connect(str(self.path))
        return self

    def receive(self):
        while not self.frames:
            data = self.client.recv(1 << 16)
            assert data, "the server closed the connection"
            self.frames += self.reader.feed(data)
        return self.frames.pop(0)

    def answer(self):
        frame = self.receive()
        status, length = ANSWER.unpack_from(frame.payload)
        return frame.id, status, json.loads(frame.payload[ANSWER.size + length :])

    def ask(self, body: object, content_type: str = "application/json"):
        self.client.sendall(request(1, body, content_type))
        return self.answer()[1:]

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


def request(number: int, body: object, content_type: str = "application/json") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = content_type.encode()
    return encode_frame(number, PREDICT, len(kind).to_bytes(2, "big") + kind + b"\x03rq1" + raw)


@pytest.fixture
def start(tmp_path):
    started = []

    def make(code: str | None = ECHO, **spec: object) -> ServerProcess:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(ServerProcess(folder, code, **spec))
        return started[-1]

    yield make
    for server in started:
        server.close()


def test_rows_are_answered_in_order_whatever_their_form(start):
    server = start(signature=TWO, warmup=[{"age": 1}]).connect()
    assert server.ask({"instances": [{"age": 1}, {"age": 2.5, "city": "Bern"}, [3, None]]}) == (
        200,
        {"predictions": [1.0, 2.5, 3.0]},
    )
    assert server.ask({"age": 7}) == (200, {"predictions": [7.0]})
    assert server.ask({"instances": []}) == (200, {"predictions": []})
    assert server.ask(b"4,Bern\n5,\n", "text/csv; charset=utf-8") == (200, {"predictions": [4.0, 5.0]})


@pytest.mark.parametrize(
    ("body", "row", "feature"),
    [
        ({"instances": [{"age": 1}, {"age": "x"}]}, 1, "age"),
        ({"instances": [{"age": True}]}, 0, "age"),
        ({"instances": [{"city": "Bern"}]}, 0, "age"),
        ({"instances": [{"age": None}]}, 0, "age"),
        ({"instances": [{"age": 1, "zip": 2}]}, 0, "zip"),
        ({"instances": [[1]]}, 0, None),
        ({"instances": [[1, 5]]}, 0, "city"),
        ({"instances": [[1, "a"], 5]}, 1, None),
        (b'{"instances": [[1e999, "a"]]}', 0, "age"),
        (b'{"age": ' + b"9" * 400 + b"}", 0, "age"),
        (b'{"age": NaN}', None, None),
        (b'{"age": -Infinity}', None, None),
        (b'{"age": 1, "age": 2}', None, None),
        (b'{"age": ' + b"9" * 5000 + b"}", None, None),
        (b'{"age": ' + b"[" * 100_000, None, None),
        (b"[" * 2_000_000, None, None),
        (b'{"age": "\xff"}', None, None),
        (b"age=1", None, None),
        (b"", None, None),
        ({"instances": {"age": 1}}, None, None),
        ({"instances": [], "parameters": {}}, None, None),
    ],
)
def test_a_wrong_body_is_refused_naming_row_and_feature(start, body, row, feature):
    server = start(signature=TWO).connect()
    status, answer = server.ask(body)
    assert status == 400
    assert answer["error"]["code"] == "invalid_input"
    assert (answer["error"].get("row"), answer["error"].get("feature")) == (row, feature)
    assert server.ask({"age": 1})[0] == 200


@pytest.mark.parametrize("number", ["1e999", "-1E+400", "1" * 310 + ".5"])
def test_a_model_without_a_signature_gets_no_infinite_number_either(start, number):
    server = start("def load(d): pass\ndef predict(m, batch): return [0] * len(batch)").connect()
    status, answer = server.ask(b'{"age": %b}' % number.encode())
    assert (status, answer["error"]["code"]) == (400, "invalid_input")
    assert server.ask(b'{"age": 1e300, "name": "1e999"}')[0] == 200


def test_an_unknown_content_type_is_refused(start):
    assert start(signature=ONE).connect().ask(b"\x80\x04.", "application/x-pickle")[0] == 400


def test_requests_of_one_tick_are_predicted_together_and_a_bad_one_fails_alone(start):
    server = start(
        "def load(d): pass\ndef predict(m, batch): return [len(batch)] * len(batch)", signature=ONE
    ).connect()
    bodies = [{"x": 1}] * 3 + [{"x": "bad"}] + [{"instances": [[1], [2]]}] * 2
    server.client.sendall(b"".join(request(number, body) for number, body in enumerate(bodies)))
    answers = [server.answer() for _ in bodies]
    assert [number for number, _, _ in answers] == list(range(6))
    assert [status for _, status, _ in answers] == [200, 200, 200, 400, 200, 200]
    assert answers[0][2] == {"predictions": [7]}
    assert answers[5][2] == {"predictions": [7, 7]}


def test_requests_that_arrive_during_a_prediction_form_the_next_batch_and_pings_are_answered_meanwhile(start):
    server = start(
        """
        import pathlib, time
        def load(d):
            return pathlib.Path(d)
        def predict(folder, batch):
            (folder / "entered").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
            return [len(batch)] * len(batch)
        """,
        signature=ONE,
    ).connect()
    folder = server.path.parent
    server.client.sendall(request(1, {"x": 1}))
    until((folder / "entered").exists, "the model is asked")
    for number in (2, 3):
        server.client.sendall(request(number, {"x": 1}))
    server.client.sendall(encode_frame(99, PING, b""))
    pong = server.receive()
    assert (pong.id, pong.kind) == (99, PING)
    (folder / "go").touch()
    assert [server.answer() for _ in range(3)] == [
        (1, 200, {"predictions": [1]}),
        (2, 200, {"predictions": [2]}),
        (3, 200, {"predictions": [2]}),
    ]


def test_the_model_never_sees_more_rows_than_the_cap(start):
    code = "def load(d): pass\ndef predict(m, batch): return [len(batch)] * len(batch)"
    server = start(code, signature=ONE, max_batch_rows=4).connect()
    assert server.ask({"instances": [[1]] * 9}) == (200, {"predictions": [4] * 8 + [1]})
    server.client.sendall(b"".join(request(number, {"instances": [[1]] * 3}) for number in range(3)))
    assert [server.answer()[2]["predictions"] for _ in range(3)] == [[3] * 3] * 3


def test_a_row_that_makes_the_model_raise_costs_only_its_own_request(start):
    server = start(
        """
        def load(d): pass
        def predict(m, batch):
            if any(row[0] < 0 for row in batch):
                raise ArithmeticError("below zero")
            return [row[0] for row in batch]
        """,
        signature=ONE,
    ).connect()
    server.client.sendall(b"".join(request(number, {"x": x}) for number, x in enumerate([1, -1, 2])))
    answers = [server.answer() for _ in range(3)]
    assert [status for _, status, _ in answers] == [200, 500, 200]
    assert answers[1][2]["error"] == {"code": "model_error", "message": "ArithmeticError: below zero"}
    assert b"Traceback" in (server.path.parent / "log").read_bytes()


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("batch[:-1]", "0 predictions for 1 rows"),
        ("'a'", "one prediction per row"),
        ("None", "one prediction per row"),
        ("[float('nan')]", "row 0"),
        ("[{'p': [1.0, float('inf')]}]", "row 0"),
        ("[object()]", "row 0"),
        ("exit(3)", "SystemExit"),
    ],
)
def test_what_is_no_answer_is_a_model_error(start, expression, part):
    server = start(f"def load(d): pass\ndef predict(m, batch): return {expression}", signature=ONE).connect()
    status, answer = server.ask({"x": 1})
    assert status == 500
    assert answer["error"]["code"] == "model_error"
    assert part in answer["error"]["message"]


def test_a_nan_prediction_names_its_row_and_fails_only_its_request(start):
    code = (
        "import math\ndef load(d): pass\ndef predict(m, batch): return [math.nan if r[0] < 0 else r[0] for r in batch]"
    )
    server = start(code, signature=ONE).connect()
    server.client.sendall(request(1, {"x": 5}) + request(2, {"instances": [[1], [-1]]}))
    assert server.answer() == (1, 200, {"predictions": [5.0]})
    _, status, answer = server.answer()
    assert (status, answer["error"]["row"]) == (500, 1)


def test_numpy_predictions_become_json(start):
    server = start(
        """
        import numpy
        def load(d): pass
        def predict(m, batch):
            return [{"label": numpy.int64(3), "p": numpy.array([0.25, 0.75])} for _ in batch]
        """,
        signature=ONE,
    ).connect()
    assert server.ask({"x": 1}) == (200, {"predictions": [{"label": 3, "p": [0.25, 0.75]}]})
    other = start("import numpy\ndef load(d): pass\ndef predict(m, batch): return numpy.array(batch)", signature=ONE)
    assert other.connect().ask({"instances": [[1], [2]]}) == (200, {"predictions": [[1.0], [2.0]]})


def test_without_a_signature_rows_arrive_as_they_were_sent(start):
    server = start("def load(d): pass\ndef predict(m, batch): return batch").connect()
    rows = [{"a": [1, {"b": None}]}, "text", 5]
    assert server.ask({"instances": rows}) == (200, {"predictions": rows})
    assert server.ask(b'{"instances": ' + b"[" * 70 + b"]" * 70 + b"}")[0] == 400


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (None, "no predict.py"),
        ("def load(d): pass", "no function predict(model, batch)"),
        ("def predict(m, b): pass", "no function load(model_dir)"),
        ("def load(d): pass\ndef predict(m): pass", "callable as predict(model, batch)"),
        ("import no_such_module_xyz", "needs the module 'no_such_module_xyz'"),
        ("def load(d): import no_such_module_xyz\ndef predict(m, b): pass", "needs the module 'no_such_module_xyz'"),
        ("def load(d): 1 / 0\ndef predict(m, b): pass", "ZeroDivisionError"),
        ("def load(d): pass\ndef predict(m, b): 1 / 0", "warm-up prediction failed: ZeroDivisionError"),
        ("def load(d): pass\ndef predict(m, b): return []", "warm-up prediction failed: predict returned 0"),
        ("def load(:", "SyntaxError"),
    ],
)
def test_what_cannot_be_served_says_why_and_never_listens(start, code, part):
    server = start(code, signature=ONE, warmup=[[1]])
    status = server.wait()
    assert (status["state"], status["id"], status["pid"]) == ("failed", "ms_1", server.process.pid)
    assert part in status["error"]
    assert server.process.wait(60) == 1
    with pytest.raises(ConnectionRefusedError):
        server.client.connect(str(server.path))


def test_user_code_writes_nothing_but_its_scratch_folder(start):
    server = start(
        """
        import tempfile, pathlib
        def load(d): return pathlib.Path(d)
        def predict(folder, batch):
            with tempfile.TemporaryFile() as file:
                file.write(b"x")
            said = []
            for path in (folder / "new", folder / "predict.py", folder.parent / "other", folder / "status.json"):
                try:
                    path.write_text("x")
                    said.append("written")
                except PermissionError:
                    said.append("denied")
            return [said]
        """,
        signature=ONE,
        sandbox={"write": []},
    ).connect()
    if not sandbox.landlock_abi():
        pytest.skip("the kernel has no Landlock")
    assert server.ask({"x": 1}) == (200, {"predictions": [["denied"] * 4]})


def test_the_project_may_import_what_marks_its_steps(start):
    code = "from loopline import step\ndef load(d): pass\ndef predict(m, batch): return [callable(step)]"
    assert start(code, signature=ONE).connect().ask({"x": 1}) == (200, {"predictions": [True]})


def test_a_server_that_takes_too_much_memory_ends(start):
    code = """
        import time
        def load(d): pass
        def predict(m, batch):
            hoard = bytearray(300 << 20)
            time.sleep(600)
            return [len(hoard)]
        """
    server = start(code, signature=ONE, limits={"memory_mb": 200}).connect()
    server.client.sendall(request(1, {"x": 1}))
    assert server.client.recv(10) == b""
    assert server.process.wait(60) == 137


def test_an_unknown_handler_is_named(start):
    assert "handlers: joblib, onnx, predict" in start(handler="../predict").wait()["error"]


def test_sigterm_finishes_what_has_arrived_and_exits_zero(start):
    server = start(
        """
        import pathlib, time
        def load(d): return pathlib.Path(d)
        def predict(folder, batch):
            (folder / "entered").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
            return [row[0] for row in batch]
        """,
        signature=ONE,
    ).connect()
    folder = server.path.parent
    server.client.sendall(request(1, {"x": 1}))
    until((folder / "entered").exists, "the model is asked")
    server.client.sendall(request(2, {"x": 2}))
    server.client.sendall(encode_frame(9, PING, b""))
    assert server.receive().id == 9  # so both requests have arrived
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    assert server.process.poll() is None
    (folder / "go").touch()
    frames = {frame.id: frame.payload for frame in (server.receive() for _ in range(3))}
    assert set(frames) == {LEAVING, 1, 2}
    assert [frames[number].endswith(b'{"predictions":[%d.0]}' % number) for number in (1, 2)] == [True, True]
    server.client.sendall(request(3, {"x": 3}))  # sent before this gateway has read that the server leaves
    assert server.answer()[2]["predictions"] == [3.0]
    server.client.close()
    assert server.process.wait(60) == 0


def test_a_malformed_frame_closes_only_its_connection(start):
    server = start(signature=ONE).connect()
    for poison in (
        b"\xff" * 13,
        b"\x00\x00\x00\x01" + b"\x00" * 9,
        encode_frame(1, 7, b""),
        encode_frame(1, PREDICT, b""),
    ):
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(60)
            other.connect(str(server.path))
            other.sendall(poison)
            assert other.recv(10) == b""
    assert server.ask({"x": 1})[0] == 200


def test_the_server_dies_with_its_parent(start, tmp_path):
    script = (
        "import subprocess, sys, time\np = subprocess.Popen(sys.argv[1:])\nprint(p.pid, flush=True)\ntime.sleep(600)"
    )
    (tmp_path / "predict.py").write_text(textwrap.dedent(ECHO))
    spec = {"id": "ms", "model_dir": str(tmp_path), "handler": "predict", "code_dir": str(tmp_path)}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-I", str(SERVE), "--spec", str(tmp_path / "spec.json")]
    command += ["--socket", str(tmp_path / "s.sock"), "--status", str(tmp_path / "status.json")]
    parent = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    try:
        status = tmp_path / "status.json"
        until(lambda: status.exists() and "ready" in status.read_text(), "the server is ready")
    finally:
        parent.kill()
        parent.wait()
    until(lambda: start_time(child) is None, "the server has ended")


def test_a_wake_datagram_says_that_the_status_changed(start, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
        wake.bind(str(tmp_path / "wake.sock"))
        wake.settimeout(60)
        start(signature=ONE, wake=str(tmp_path / "wake.sock"))
        assert json.loads(wake.recv(1000)) == {"kind": "server", "id": "ms_1"}


def test_the_joblib_handler_answers_labels_and_probabilities(start, tmp_path):
    joblib = pytest.importorskip("joblib")
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LogisticRegression().fit([[0, 1], [1, 0], [0, 2], [2, 0]], ["a", "b", "a", "b"])
    joblib.dump(model, tmp_path / "model.joblib")
    features = {"features": [{"name": "u", "type": "number"}, {"name": "v", "type": "number"}]}
    server = start(None, handler="joblib", model_dir=str(tmp_path), code_dir=None, signature=features).connect()
    status, answer = server.ask({"instances": [[0, 1], {"v": 0, "u": 3}]})
    assert status == 200
    expected = model.predict_proba([[0, 1], [3, 0]])
    assert [row["prediction"] for row in answer["predictions"]] == ["a", "b"]
    for row, probabilities in zip(answer["predictions"], expected, strict=True):
        assert list(row["probabilities"]) == ["a", "b"]
        assert list(row["probabilities"].values()) == pytest.approx(list(probabilities))


def test_the_joblib_handler_answers_numbers_of_a_regressor(start, tmp_path):
    joblib = pytest.importorskip("joblib")
    linear = pytest.importorskip("sklearn.linear_model")
    joblib.dump(linear.LinearRegression().fit([[0], [1]], [1, 3]), tmp_path / "model.joblib")
    server = start(None, handler="joblib", model_dir=str(tmp_path), code_dir=None, signature=ONE).connect()
    assert server.ask({"x": 2})[1]["predictions"] == [pytest.approx(5.0)]


def test_the_joblib_handler_refuses_a_folder_without_a_model(start):
    assert "holds no model file" in start(handler="joblib").wait()["error"]
