"""Releases that are bad, each in its own way: what the version does, and when; and the project that makes them."""

import json
import random
from typing import Any, NamedTuple

from loopline.testing.boxes import project

AFTER_TESTS = 250  # requests: more than all tests before the first step ask together


class Bad(NamedTuple):
    """A kind of bad release. ``spec`` is what the model tells its code; ``evidence``: ``before`` when no caller may
    ever meet it, else what callers see: ``errors``, ``slow``, or ``tests`` when only a test tells."""

    name: str
    spec: dict[str, Any]
    evidence: str


ODD = [7.0, 8.0]  # a row that callers send and no test knows
KINDS = (
    Bad("ends while it loads", {"load": "exit"}, "before"),
    Bad("raises while it loads", {"load": "raise"}, "before"),
    Bad("never finishes loading", {"load": "hang"}, "before"),
    Bad("answers a golden request wrongly", {"how": "wrong", "rows": [5.0, 7.0]}, "before"),
    Bad("answers everything wrongly", {"how": "wrong"}, "before"),
    Bad("gives too few answers", {"how": "short"}, "before"),
    Bad("gives answers that are no JSON", {"how": "objects"}, "before"),
    Bad("dies of a golden request (SIGSEGV)", {"how": "segfault", "rows": [5.0, 7.0]}, "before"),
    Bad("dies under the load of a test", {"how": "exit", "after": 40}, "before"),
    Bad("is slow with every request", {"how": "slow", "seconds": 0.4}, "before"),
    Bad("hangs at a golden request", {"how": "hang", "rows": [5.0, 7.0]}, "before"),
    Bad("5xx on some rows", {"how": "raise", "rows": ODD}, "errors"),
    Bad("5xx after a while", {"how": "raise", "after": AFTER_TESTS}, "errors"),
    Bad("slow on some rows", {"how": "slow", "seconds": 0.4, "rows": ODD}, "slow"),
    Bad("slow after a while", {"how": "slow", "seconds": 0.3, "after": AFTER_TESTS}, "slow"),
    Bad("dies at request n", {"how": "exit", "after": AFTER_TESTS}, "errors"),
    Bad("dies of some rows (SIGSEGV)", {"how": "segfault", "rows": ODD}, "errors"),
    Bad("hangs at request n", {"how": "hang", "after": AFTER_TESTS}, "errors"),
    Bad("hangs at some rows", {"how": "hang", "rows": ODD}, "errors"),
    Bad("leaks memory until it dies", {"how": "leak", "megabytes": 16, "after": AFTER_TESTS}, "errors"),
    Bad("answers wrongly after a while", {"how": "wrong", "after": AFTER_TESTS}, "tests"),
    Bad("floods stderr and fails", {"how": "flood", "after": AFTER_TESTS}, "errors"),
)

PIPELINE = """
import csv
import json
from pathlib import Path
from loopline import asset, pipeline, register, step

@step
def fit(data: Path):
    with open(data) as file:
        rows = [(float(row["size"]), row["kind"]) for row in csv.DictReader(file)]
    small = [size for size, kind in rows if kind == "small"]
    large = [size for size, kind in rows if kind == "large"]
    return {"limit": (sum(small) / len(small) + sum(large) / len(large)) / 2}

@step
def stamp(fitted, mark: int = 0, bad: str = "{}"):
    return {"limit": fitted["limit"], "mark": mark, "bad": json.loads(bad)}

@pipeline
def training(mark: int = 0, bad: str = "{}"):
    model = stamp(fit(asset("boxes")), mark=mark, bad=bad)
    register(model)
"""

PREDICT = """
import ctypes
import json
import os
import pathlib
import sys
import time

KEPT = []
ASKED = [0]

def load(model_dir):
    model = json.loads((pathlib.Path(model_dir) / "model.json").read_text())
    how = model["bad"].get("load")
    if how == "exit":
        os._exit(3)
    if how == "raise":
        raise ImportError("No module named 'nowhere'")
    if how == "hang":
        time.sleep(3600)
    return model

def answer(model, size):
    if size < -1e5:
        return f"mark-{model['mark']}"
    return "large" if size > model["limit"] else "small"

def other(answer):
    return {"small": "large", "large": "small"}.get(answer, "mark-0")

def predict(model, batch):
    bad = model["bad"]
    sizes = [row["size"] for row in batch]
    ASKED[0] += len(sizes)
    answers = [answer(model, size) for size in sizes]
    low, high = bad.get("rows", [-1e9, 1e9])
    if "how" not in bad or ASKED[0] <= bad.get("after", 0) or not any(low <= size < high for size in sizes):
        return answers
    return misbehave(bad, sizes, answers, low, high)

def misbehave(bad, sizes, answers, low, high):
    how = bad["how"]
    if how == "raise":
        raise LookupError("a row that nobody thought of")
    if how == "exit":
        os._exit(1)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "hang":
        time.sleep(3600)
    if how == "slow":
        time.sleep(bad["seconds"])
    if how == "leak":
        KEPT.append(b"x" * (bad["megabytes"] << 20))
    if how == "flood":
        sys.stderr.write("x" * (1 << 20))
        raise LookupError("and much to say about it")
    if how == "wrong":
        return [other(said) if low <= size < high else said for size, said in zip(sizes, answers)]
    if how == "short":
        return answers[:-1]
    if how == "objects":
        return [object() for _ in answers]
    return answers
"""

LOOP = """
[project]
name = "boxes"

[model]
name = "boxes"

[data.boxes]
path = "data/boxes.csv"

[gate]
mode = "off"

[endpoint]
name = "boxes"
deploy_on_approval = false
timeout_seconds = 2
keep_warm_seconds = 5

[rollout]
strategy = "canary"
steps = [25, 50]
bake_seconds = 4
start_timeout_seconds = 10

[[tests]]
name = "known"
kind = "golden"
cases = [
    { request = { instances = [{ size = -3.0 }] }, expected = ["small"] },
    { request = { instances = [{ size = 6.0 }] }, expected = ["large"] },
    { request = { instances = [{ size = 5.0 }, { size = -9.0 }] }, expected = ["large", "small"] },
]

[[tests]]
name = "smoke"
kind = "call"
[[tests.calls]]
body = { instances = [{ size = 6.0 }] }
json = { "predictions[0]" = "large" }
answer_headers = { "content-type" = "application/json*" }
[[tests.calls]]
body = { instances = 7 }
status = 400

[[tests]]
name = "busy"
kind = "load"
body = { instances = [{ size = -3.0 }] }
rate = 50
connections = 4
seconds = 1.5
max_p50_ms = 200
max_error_share = 0.02
"""


def files() -> dict[str, str]:
    """The project: versions bear a mark, and are as bad as they are told to be."""
    return project(loop_toml=LOOP, pipeline_py=PIPELINE, predict_py=PREDICT)


def choose(count: int, rng: random.Random) -> list[Bad]:
    """So many bad releases in this seed's order: every kind once before one comes again."""
    chosen: list[Bad] = []
    while len(chosen) < count:
        chosen += rng.sample(KINDS, len(KINDS))
    return chosen[:count]


def parameters(bad: Bad | None, mark: int) -> dict[str, Any]:
    """What the pipeline is given to make a version."""
    return {"mark": mark, "bad": json.dumps(bad.spec if bad else {})}
