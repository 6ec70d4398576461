"""A version is converted to ONNX where it answers the same, and served in that form; else it is served as it is.

The first version is converted when somebody asks for it, by the command line; the second one because loop.toml says so.
"""

import http.client
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopline.cli import root
from loopline.config import package_environment
from loopline.control import access, artifacts, compilations, fleets, pushes, registry
from loopline.runtime import serve
from loopline.runtime.frames import ANSWER, PREDICT, FrameReader, encode_frame
from loopline.store import records
from loopline.testing.boxes import follow
from loopline.testing.world import World

PIPELINE = """
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from loopline import asset, log_baseline, pipeline, register, step

@step
def fit(rows: list, kind: str):
    features = [[row["width"], row["height"]] for row in rows]
    labels = [row["kind"] for row in rows]
    last = LogisticRegression() if kind == "linear" else HistGradientBoostingClassifier(max_iter=5)
    model = make_pipeline(StandardScaler(), last).fit(features, labels)
    log_baseline(features, feature_names=["width", "height"], score=model.predict(features))
    return model

@pipeline
def training(kind: str = "linear"):
    register(fit(asset("boxes"), kind))
"""
LOOP = """
[project]
name = "boxes"
[model]
name = "boxes"
handler = "joblib"
compile = "onnx"
[data.boxes]
path = "boxes.csv"
[data.boxes-test]
path = "boxes-test.csv"
[gate]
test = "boxes-test"
label = "kind"
"""
REQUIREMENTS = "joblib>=1.4,<2\nnumpy>=2,<3\nscikit-learn>=1.7,<1.8\nskl2onnx>=1.19,<2\nonnxruntime>=1.22,<2\n"


def table(seed: int) -> str:
    generator = random.Random(seed)
    lines = ["width,height,kind"]
    for number in range(120):
        large = number % 2
        lines.append(f"{generator.gauss(large, 0.7):.4f},{generator.gauss(2 * large, 0.9):.4f},{'SL'[1 - large]}")
    return "\n".join(lines) + "\n"


FILES = {
    "loop.toml": LOOP,
    "pipeline.py": PIPELINE,
    "requirements.txt": REQUIREMENTS,
    "boxes.csv": table(1),
    "boxes-test.csv": table(2),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    opened = World(tmp_path_factory.mktemp("compile") / "data")
    yield opened
    opened.close()


Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[str]:
    with world.listening() as address:
        yield address


@pytest.fixture
def command(world: World, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command of loopline: its exit code, and what it said."""
    monkeypatch.setenv("LOOPLINE_URL", server)
    monkeypatch.setenv("LOOPLINE_KEY", str(access.bootstrap(world.ctx, server)))

    def run(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code = root.run(list(argv))
        out, err = capsys.readouterr()
        return code, out + err

    return run


def registered(world: World, kind: str, loop: str = LOOP) -> dict[str, Any]:
    """The version that a run registered, once its conversion has ended."""
    tree = world.tree({**FILES, "loop.toml": loop})
    push = pushes.run(world.ctx, world.actor, tree=tree, parameters={"kind": kind})["id"]
    world.settle(lambda: pushes.show(world.ctx, world.actor, push=push)["status"] != "Building", timeout=300)
    shown = pushes.show(world.ctx, world.actor, push=push)
    if shown["status"] == "Rejected" and "environment" in str(shown["reason"]):
        pytest.skip(f"the packages cannot be had here: {shown['reason'][:200]}")
    follow(world, push)
    number = registry.show_model(world.ctx, world.actor, model="boxes")["last_version"]

    return converted(world, number)


def converted(world: World, number: int) -> dict[str, Any]:
    """A version, once no conversion of it is going on."""

    def version() -> dict[str, Any]:
        return registry.show_version(world.ctx, world.actor, model="boxes", number=number)

    world.settle(lambda: not compilations.is_going_on(world.ctx, version()["id"]), timeout=120)
    return version()


class Served:
    """A model server of the version's own environment."""

    def __init__(self, world: World, version: dict[str, Any], folder: Path, compiled: dict[str, str] | None) -> None:
        folder.mkdir()
        with world.ctx.db.read() as tx:
            row = registry.version_row(tx, "boxes", version["number"])
        python = self.python_of(world, version)
        spec = {
            "id": "ms",
            "model_dir": str(artifacts.model_dir(world.ctx, row)),
            "handler": row["handler"],
            "signature": row["signature"],
            "compiled": compiled,
            "warmup": [[0.5, 0.5]],
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        status, path = folder / "status.json", folder / "s.sock"
        command = [python, "-I", serve.__file__, "--spec", str(folder / "spec.json")]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", str(path), "--status", str(status)], stdout=log, stderr=log
            )
        end = time.monotonic() + 120
        while not status.exists() or json.loads(status.read_text())["state"] == "loading":
            assert time.monotonic() < end
            time.sleep(0.02)
        assert json.loads(status.read_text())["state"] == "ready", self.log.read_text()
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(60)
        self.client.connect(str(path))
        self.reader = FrameReader()

    @staticmethod
    def python_of(world: World, version: dict[str, Any]) -> str:
        """The interpreter of a version's environment."""
        with world.ctx.db.read() as tx:
            row = registry.version_row(tx, "boxes", version["number"])
            return str(records.get(tx, "environment", row["environment"])["python"])

    def ask(self, rows: list[list[float]]) -> list[Any]:
        status, answer = self.answer(rows)
        assert status == 200, answer
        predictions: list[Any] = answer["predictions"]
        return predictions

    def answer(self, rows: list[list[float]]) -> tuple[int, Any]:
        kind = b"application/json"
        head = len(kind).to_bytes(2, "big") + kind + b"\x01r"
        self.client.sendall(encode_frame(1, PREDICT, head + json.dumps({"instances": rows}).encode()))
        frames: list[Any] = []
        while not frames:
            frames = self.reader.feed(self.client.recv(1 << 16))
        status, length = ANSWER.unpack_from(frames[0].payload)
        return status, json.loads(frames[0].payload[ANSWER.size + length :])

    def modules(self) -> str:
        return Path(f"/proc/{self.process.pid}/maps").read_text()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


def converted_by_hand(world: World, command: Command) -> dict[str, Any]:
    """A version whose project asked for no conversion, converted by a person; its servers are told."""
    version = registered(world, "linear", LOOP.replace('compile = "onnx"\n', ""))
    assert version["compilation"] is None
    code, said = command("export", "boxes:1", "--docker", "nowhere", "--compiled", "--force", "--reason", "a trial")
    assert (code, said) == (1, "error: boxes version 1 has no compiled form; run: loopline versions compile boxes 1\n")
    code, said = command("versions", "compile", "boxes", "1", "--tolerance", "7")
    assert (code, said) == (2, "error: tolerance: a number from 0 to 0.1, unlike 7\n")

    entry = running(world, version)
    code, said = command("versions", "compile", "boxes", "1", "--no-wait")
    assert (code, said) == (0, "boxes v1: onnx Converting: not done yet\n")
    first = registry.show_version(world.ctx, world.actor, model="boxes", number=1)["compilation"]
    assert first["tolerance"] == 1e-6 and first["by"] == "admin"
    version = converted(world, 1)
    said_again = (0, "boxes v1: onnx Passed: the same answers on 120 rows, in float64\n")
    assert command("versions", "compile", "boxes:1") == said_again
    assert version["compilation"]["id"] == first["id"], "what has passed is not converted again"
    spec = json.loads(Path(entry["process"]["argv"][entry["process"]["argv"].index("--spec") + 1]).read_text())
    assert spec["compiled"]["handler"] == "onnx", "a server that runs already has it when it is started again"
    return version


def running(world: World, version: dict[str, Any]) -> dict[str, Any]:
    """The entry of a server of the version behind an endpoint; nobody starts it here."""
    with world.ctx.db.transaction() as tx:
        records.create(tx, "endpoint", actor="ada", name="boxes", model="boxes", settings={}, created_by="ada")
        given = {"endpoint": "boxes", "name": "v1", "version": version["id"], "model": "boxes", "number": 1}
        row = records.create(tx, "variant", actor="ada", weight=100.0, instances=1, digest="", **given)
    entries = fleets.grown(world.ctx, row, 1)
    with world.ctx.db.transaction() as tx:
        records.set(tx, "variant", row["id"], actor="ada", server=entries)
    return entries[0]


def test_a_model_that_converts_is_served_in_that_form_and_one_that_does_not_as_it_is(
    world: World, command: Command, tmp_path: Path
) -> None:
    version = converted_by_hand(world, command)
    made = version["compilation"]
    assert made["status"] == "Passed", made
    assert made["reason"] == "the same answers on 120 rows, in float64"
    assert made["report"]["attempts"][0]["largest_difference"] < 1e-9
    assert made["artifact"]["executable"] is False
    with world.ctx.db.read() as tx:
        compiled = compilations.served(world.ctx, registry.version_row(tx, "boxes", version["number"]))
    assert compiled is not None and compiled["handler"] == "onnx"

    rows = [[0.1 * at, 2.0 - 0.2 * at] for at in range(20)]
    native, fast = (
        Served(world, version, tmp_path / name, spec) for name, spec in (("native", None), ("fast", compiled))
    )
    broken = tmp_path / "no-model"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"\x08\x09 and nothing that follows is right")
    fallen = Served(world, version, tmp_path / "fallen", {**compiled, "model_dir": str(broken)})
    try:
        expected = native.ask(rows)
        for server in (fast, fallen):
            for one, other in zip(expected, server.ask(rows), strict=True):
                assert one["prediction"] == other["prediction"]
                assert list(one["probabilities"]) == list(other["probabilities"])
                assert list(one["probabilities"].values()) == pytest.approx(list(other["probabilities"].values()))
        assert "onnxruntime" in fast.modules() and "sklearn" not in fast.modules()
        assert "sklearn" in fallen.modules()
        assert "the compiled model cannot be used, so the model itself serves" in fallen.log.read_text()
        assert_it_leaves(command, tmp_path / "export", rows, expected)
    finally:
        for server in (native, fast, fallen):
            server.close()

    other = registered(world, "boosting")
    made = other["compilation"]
    assert made["status"] == "Refused", made
    assert [attempt["precision"] for attempt in made["report"]["attempts"]] == ["float64", "float32"]
    assert made["reason"].startswith("float64: ")
    with world.ctx.db.read() as tx:
        assert compilations.served(world.ctx, registry.version_row(tx, "boxes", other["number"])) is None
    assert other["evaluations"][0]["status"] == "Passed"  # the gate has judged it all the same
    code, said = command("export", "boxes:2", "--docker", "nowhere", "--compiled", "--force", "--reason", "a trial")
    assert code == 1 and "boxes version 2 has no compiled form; its conversion was Refused: float64: " in said


SINGLE = """
import sys
import numpy, onnx
from onnx import helper, numpy_helper
weights = numpy_helper.from_array(numpy.array([[1.0], [1.0]], dtype=numpy.float32), "weights")
table = helper.make_tensor_value_info("table", onnx.TensorProto.FLOAT, [None, 2])
total = helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, [None, 1])
node = helper.make_node("MatMul", ["table", "weights"], ["total"])
graph = helper.make_graph([node], "sum", [table], [total], [weights])
onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 15)]), sys.argv[1])
"""


def test_a_model_of_single_precision_gets_the_nearest_numbers_and_refuses_what_it_cannot_hold(
    world: World, tmp_path: Path
) -> None:
    version = registered(world, "linear")
    folder = tmp_path / "model"
    folder.mkdir()
    python = Served.python_of(world, version)
    subprocess.run([python, "-I", "-c", SINGLE, str(folder / "model.onnx")], check=True)
    server = Served(world, version, tmp_path / "single", {"handler": "onnx", "model_dir": str(folder)})
    try:
        rows = [[0.1, 0.2], [1e38, 2e38], [16777217.0, 0.0], [1e-40, 0.0]]
        expected = [float(total) for total in np.array(rows, dtype=np.float32) @ np.ones(2, dtype=np.float32)]
        assert server.ask(rows) == expected
        assert [server.ask([row])[0] for row in rows] == expected
        for number in (1e39, -1e300):
            status, answer = server.answer([[1.0, number]])
            assert status == 500 and "too large" in answer["error"]["message"], answer
        assert "the compiled model cannot be used" not in server.log.read_text()
    finally:
        server.close()


def assert_it_leaves(command: Command, folder: Path, rows: list[list[float]], expected: list[dict[str, Any]]) -> None:
    """The exported folder answers the same, in an environment with nothing but what its requirements name."""
    asked = ("export", "boxes:1", "--docker", str(folder), "--compiled", "--force", "--reason", "a trial")
    code, said = command(*asked)
    assert code == 0, said
    assert not (folder / "code").exists() and [path.name for path in (folder / "model").iterdir()] == ["model.onnx"]
    assert "compiled form (ONNX, float64)" in (folder / "README.md").read_text()
    packages = set(re.findall(r"^[a-z0-9-]+(?===)", (folder / "requirements.txt").read_text(), re.MULTILINE))
    assert {"numpy", "onnxruntime"} <= packages and not packages & {"scikit-learn", "skl2onnx", "joblib"}

    python, uv = str(folder / ".venv" / "bin" / "python"), str(Path(sys.executable).with_name("uv"))
    for argv in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder / ".venv")],
        [uv, "pip", "install", "--quiet", "--python", python, "-r", str(folder / "requirements.txt")],
    ):
        subprocess.run(argv, check=True, env=package_environment())
    process = subprocess.Popen(
        [python, "server.py", "--port", "0"],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("serving at http://").partition("/")[0]
        connection = http.client.HTTPConnection(address, timeout=60)
        kind = {"content-type": "application/json"}
        connection.request("POST", "/invocations", json.dumps({"instances": rows}), kind)
        answers = json.loads(connection.getresponse().read())["predictions"]
        connection.close()
    finally:
        process.terminate()
        process.wait(60)
    assert [answer["prediction"] for answer in answers] == [answer["prediction"] for answer in expected]
    for one, other in zip(expected, answers, strict=True):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)
