"""A model server under what gateways and models may do to it: floods, drips, noise, crashes."""

import io
import random
import re
import select
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest

from loopline.runtime.frames import PING, PREDICT, encode_frame
from loopline.testing.live import until

from .test_runtime_serve import ECHO, ONE, ServerProcess, request

ACCELERATOR = str(Path(msgspec.__file__).parent)


@pytest.fixture
def start(tmp_path):
    started = []

    def make(code: str | None = ECHO, **spec: object) -> ServerProcess:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(ServerProcess(folder, code, **{"accelerator": ACCELERATOR, **spec}))
        return started[-1]

    yield make
    for server in started:
        server.close()


def log_of(server: ServerProcess) -> str:
    return (server.path.parent / "log").read_text(errors="replace")


def test_a_gateway_that_sends_everything_before_it_reads_anything_loses_nothing(start):
    code = "def load(d): pass\ndef predict(m, batch): return [[row[0]] * 30_000 for row in batch]"
    server = start(code, signature=ONE).connect()
    count = 150
    padding = b" " * 60_000
    outgoing = b"".join(request(number, b'{"x":%d%b}' % (number, padding)) for number in range(count))
    server.client.settimeout(60)
    server.client.sendall(outgoing)  # returns only if the server reads although nobody takes its answers
    answers = [server.answer() for _ in range(count)]
    assert [number for number, _, _ in answers] == list(range(count))
    assert all(answer == {"predictions": [[float(number)] * 30_000]} for number, _, answer in answers)


def test_frames_that_arrive_byte_by_byte_are_frames(start):
    server = start(signature=ONE).connect()
    for byte in request(1, {"x": 7}) + encode_frame(2, PING, b""):
        server.client.send(bytes([byte]))
    frames = sorted([server.receive(), server.receive()])
    assert [(frame.id, frame.kind) for frame in frames] == [(1, PREDICT), (2, PING)]
    assert frames[0].payload.endswith(b'{"predictions":[7.0]}')


@pytest.mark.parametrize("seed", range(4))
def test_noise_harms_nobody_but_its_own_connection(start, seed):
    server = start(signature=ONE).connect()
    generator = random.Random(seed)
    for _ in range(60):
        noise = bytearray(b"".join(request(number, {"x": number}) for number in range(generator.randrange(1, 4))))
        for _ in range(generator.randrange(1, 6)):
            if generator.random() < 0.3:
                del noise[generator.randrange(len(noise)) :]
                noise += generator.randbytes(generator.randrange(1, 40))
            else:
                noise[generator.randrange(len(noise))] = generator.randrange(256)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(server.path))
            other.sendall(noise)
            other.shutdown(socket.SHUT_WR)
            other.settimeout(60)
            while other.recv(1 << 16):  # until the server has closed, having answered what was right
                pass
    assert server.ask({"x": 5}) == (200, {"predictions": [5.0]})


def test_what_is_printed_during_a_prediction_bears_the_id_of_its_request(start):
    server = start(
        """
        import logging, os, sys
        print("at import")
        log = logging.getLogger("mine")
        logging.basicConfig(level=logging.INFO)
        def load(d): pass
        def predict(m, batch):
            print("row", batch[0][0])
            log.info("logged")
            sys.stdout.write("a part")
            os.write(1, b"from below\\n")
            return [0] * len(batch)
        """,
        signature=ONE,
    ).connect()
    server.ask({"x": 4})
    server.client.sendall(b"".join(request(number, {"x": number}) for number in range(5)))
    for _ in range(5):
        server.answer()
    lines = log_of(server).splitlines()
    stamped = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamped} \[-\] at import", lines[0])
    assert re.fullmatch(rf"{stamped} \[rq1\] row 4.0", lines[1])
    assert re.fullmatch(rf"{stamped} \[rq1\] INFO:mine:logged", lines[2])
    assert lines[3] == "from below"
    assert re.fullmatch(rf"{stamped} \[rq1\] a part", lines[4])
    assert "[rq1,rq1,rq1,+2] row 0.0" in lines[5]


def test_a_model_that_floods_its_log_answers_all_the_same(start):
    server = start(
        """
        import sys
        def load(d): pass
        def predict(m, batch):
            for _ in range(2000):
                sys.stderr.write("x" * 5000)
            return [row[0] for row in batch]
        """,
        signature=ONE,
    ).connect()
    assert [server.ask({"x": value})[1]["predictions"] for value in (1, 2)] == [[1.0], [2.0]]
    assert len(log_of(server)) > 20_000_000


def test_a_model_that_crashes_ends_its_server_and_says_where(start):
    code = "import ctypes\ndef load(d): pass\ndef predict(m, batch): return ctypes.string_at(0)"
    server = start(code, signature=ONE).connect()
    server.client.sendall(request(1, {"x": 1}))
    assert server.client.recv(10) == b""
    assert server.process.wait(60) == -11
    assert "Segmentation fault" in log_of(server) and 'predict.py", line 3 in predict' in log_of(server)


def test_a_model_that_hangs_holds_its_requests_but_the_server_is_no_silence(start):
    code = "import threading\ndef load(d): pass\ndef predict(m, batch): threading.Event().wait()"
    server = start(code, signature=ONE).connect()
    server.client.sendall(request(1, {"x": 1}))
    for number in (7, 8):
        server.client.sendall(encode_frame(number, PING, b""))
        assert server.receive().id == number
    assert not select.select([server.client], [], [], 0)[0]


def test_a_second_gateway_is_served_beside_the_first(start):
    server = start(signature=ONE).connect()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(server.path))
        other.sendall(request(1, {"x": 1}))
        assert server.ask({"x": 2}) == (200, {"predictions": [2.0]})
        other.settimeout(60)
        assert other.recv(1 << 16).endswith(b'{"predictions":[1.0]}')


def test_a_gateway_that_goes_while_its_request_is_predicted_harms_nobody(start):
    code = """
        import pathlib, time
        def load(d): return pathlib.Path(d)
        def predict(folder, batch):
            (folder / "entered").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
            return [row[0] for row in batch]
        """
    server = start(code, signature=ONE).connect()
    folder = server.path.parent
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(server.path))
        other.sendall(request(1, {"x": 1}))
        until((folder / "entered").exists, "the model is asked")
    (folder / "go").touch()
    assert server.ask({"x": 2}) == (200, {"predictions": [2.0]})


def test_predict_code_may_ask_for_a_matrix(start):
    code = """
        INPUT = "numpy"
        def load(d): pass
        def predict(m, batch):
            return [f"{type(batch).__name__} {batch.dtype} {row.tolist()}" for row in batch]
        """
    two = {"features": [{"name": "a", "type": "number"}, {"name": "b", "type": "integer", "required": False}]}
    server = start(code, signature=two).connect()
    assert server.ask({"instances": [[1, 2], {"a": 0.5}]})[1]["predictions"] == [
        "ndarray float64 [1.0, 2.0]",
        "ndarray float64 [0.5, nan]",
    ]


@pytest.mark.parametrize(
    ("head", "kind", "part"),
    [
        ('INPUT = "frame"', "number", "INPUT of predict.py must be one of rows, numpy"),
        ('INPUT = "numpy"', "string", "features that are no numbers"),
    ],
)
def test_an_input_that_cannot_be_had_is_said_at_the_start(start, head, kind, part):
    code = f"{head}\ndef load(d): pass\ndef predict(m, batch): return batch"
    status = start(code, signature={"features": [{"name": "x", "type": kind}]}).wait()
    assert status["state"] == "failed" and part in status["error"]


def test_predict_code_gets_lists_however_the_rows_were_read(start):
    code = (
        "def load(d): pass\ndef predict(m, batch): return [type(batch).__name__ + type(batch[0]).__name__] * len(batch)"
    )
    server = start(code, signature=ONE).connect()
    for body in ({"x": 1}, {"instances": [[1]]}, {"instances": [{"x": 1.5}]}):
        assert server.ask(body) == (200, {"predictions": ["listlist"]})
    file = io.BytesIO()
    np.save(file, np.array([[1.0]]))
    assert server.ask(file.getvalue(), "application/x-npy") == (200, {"predictions": ["listlist"]})


def test_bodies_of_several_kinds_are_predicted_together(start):
    code = 'INPUT = "numpy"\ndef load(d): pass\ndef predict(m, batch): return [len(batch)] * len(batch)'
    server = start(code, signature=ONE).connect()
    file = io.BytesIO()
    np.save(file, np.array([[3.0], [4.0]]))
    kinds = [({"x": 1}, "application/json"), (b"2\n", "text/csv"), (file.getvalue(), "application/x-npy")]
    server.client.sendall(b"".join(request(number, body, kind) for number, (body, kind) in enumerate(kinds)))
    assert [server.answer()[2]["predictions"] for _ in kinds] == [[4], [4], [4, 4]]
