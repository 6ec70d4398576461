"""A version is converted to ONNX where it answers the same, and served in that form; else it is served as it is."""

import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import artifacts, compilations, pushes, registry
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


def released(world: World, kind: str) -> dict[str, Any]:
    """The version that a run registered, once its conversion has ended."""
    tree = world.tree(FILES)
    push = pushes.run(world.ctx, world.actor, tree=tree, parameters={"kind": kind})["id"]
    world.settle(lambda: pushes.show(world.ctx, world.actor, push=push)["status"] != "Building", timeout=300)
    shown = pushes.show(world.ctx, world.actor, push=push)
    if shown["status"] == "Rejected" and "environment" in str(shown["reason"]):
        pytest.skip(f"the packages cannot be had here: {shown['reason'][:200]}")
    follow(world, push)
    number = registry.show_model(world.ctx, world.actor, model="boxes")["last_version"]

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
            python = records.get(tx, "environment", row["environment"])["python"]
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

    def ask(self, rows: list[list[float]]) -> list[dict[str, Any]]:
        kind = b"application/json"
        head = len(kind).to_bytes(2, "big") + kind + b"\x01r"
        self.client.sendall(encode_frame(1, PREDICT, head + json.dumps({"instances": rows}).encode()))
        frames: list[Any] = []
        while not frames:
            frames = self.reader.feed(self.client.recv(1 << 16))
        status, length = ANSWER.unpack_from(frames[0].payload)
        assert status == 200, frames[0].payload
        answers: list[dict[str, Any]] = json.loads(frames[0].payload[ANSWER.size + length :])["predictions"]
        return answers

    def modules(self) -> str:
        return Path(f"/proc/{self.process.pid}/maps").read_text()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


def test_a_model_that_converts_is_served_in_that_form_and_one_that_does_not_as_it_is(world: World, tmp_path: Path):
    version = released(world, "linear")
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
    finally:
        for server in (native, fast, fallen):
            server.close()

    other = released(world, "boosting")
    made = other["compilation"]
    assert made["status"] == "Refused", made
    assert [attempt["precision"] for attempt in made["report"]["attempts"]] == ["float64", "float32"]
    assert made["reason"].startswith("float64: ")
    with world.ctx.db.read() as tx:
        assert compilations.served(world.ctx, registry.version_row(tx, "boxes", other["number"])) is None
    assert other["evaluations"][0]["status"] == "Passed"  # the gate has judged it all the same
