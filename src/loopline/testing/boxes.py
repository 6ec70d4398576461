"""A small project for tests: a threshold classifier of boxes in plain Python, so that no package is needed."""

import random
from typing import Any

from loopline.control import executions, pushes
from loopline.domain import states
from loopline.testing.world import World

PIPELINE = """
import csv
from pathlib import Path
from loopline import asset, fail, log_metric, otherwise, pipeline, register, step, when

def rows_of(path):
    with open(path) as file:
        return [(float(row["size"]), row["kind"]) for row in csv.DictReader(file)]

@step
def fit(data: Path, shift: float = 0.0):
    rows = rows_of(data)
    small = [size for size, kind in rows if kind == "small"]
    large = [size for size, kind in rows if kind == "large"]
    limit = (sum(small) / len(small) + sum(large) / len(large)) / 2 + shift
    log_metric("limit", limit)
    return {"limit": limit}

@step
def evaluate(model, data: Path):
    rows = rows_of(data)
    right = sum((size > model["limit"]) == (kind == "large") for size, kind in rows)
    log_metric("accuracy", right / len(rows))
    return {"accuracy": right / len(rows)}

@pipeline
def training(shift: float = 0.0, least: float = 0.5, status: str = "PendingManualApproval"):
    model = fit(asset("boxes"), shift=shift)
    report = evaluate(model, asset("boxes-test"))
    with when(report["accuracy"] >= least):
        register(model, metrics=report)
    with otherwise():
        fail("accuracy is only", report["accuracy"])

if __name__ == "__main__":
    training.run()
"""

PREDICT = """
import json
import pathlib

def load(model_dir):
    return json.loads((pathlib.Path(model_dir) / "model.json").read_text())["limit"]

def predict(model, batch):
    return ["large" if row["size"] > model else "small" for row in batch]
"""

LOOP = """
[project]
name = "boxes"

[model]
name = "boxes"

[data.boxes]
path = "data/boxes.csv"

[data.boxes-test]
path = "data/boxes-test.csv"

[gate]
test = "boxes-test"
label = "kind"
positive = "large"
thresholds = { accuracy = 0.8 }
"""


def table(seed: int, rows: int) -> str:
    """A CSV of boxes whose kinds overlap a little."""
    generator = random.Random(seed)  # noqa: S311 - test data
    lines = ["size,kind"]
    for number in range(rows):
        kind = "large" if number % 2 else "small"
        lines.append(f"{generator.gauss(2.0 if kind == 'large' else 0.0, 0.8):.4f},{kind}")
    return "\n".join(lines) + "\n"


def project(**files: str) -> dict[str, str]:
    """The files of the project; keywords replace loop_toml, pipeline_py, predict_py."""
    return {
        "loop.toml": files.get("loop_toml", LOOP),
        "pipeline.py": files.get("pipeline_py", PIPELINE),
        "predict.py": files.get("predict_py", PREDICT),
        "requirements.txt": "",
        "data/boxes.csv": table(1, 200),
        "data/boxes-test.csv": table(2, 200),
    }


def follow(world: World, push: str) -> dict[str, Any]:
    """Move the world on until a push has ended, and its execution too."""

    def shown() -> dict[str, Any]:
        return pushes.show(world.ctx, world.actor, push=push)

    world.settle(lambda: states.is_terminal("push", shown()["status"]))
    ended = shown()
    if ended["status"] != "Started":
        return ended
    execution = ended["execution"]

    def execution_status() -> str:
        return str(executions.show(world.ctx, world.actor, execution=execution)["status"])

    world.settle(lambda: states.is_terminal("execution", execution_status()))
    return executions.show(world.ctx, world.actor, execution=execution)
