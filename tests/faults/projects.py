"""The projects of fault tests: the boxes, with knobs that hold a status for as long as a signal needs to arrive."""

from loopline.testing.boxes import project

PIPELINE = """
import csv
import os
import signal
import time
from pathlib import Path
from loopline import asset, pipeline, register, step

def linger(*_):
    time.sleep(0.4)
    raise SystemExit(1)

def rows_of(path):
    with open(path) as file:
        return [(float(row["size"]), row["kind"]) for row in csv.DictReader(file)]

@step
def fit(data: Path, hold: float = 0.0):
    signal.signal(signal.SIGTERM, linger)
    time.sleep(hold)
    rows = rows_of(data)
    small = [size for size, kind in rows if kind == "small"]
    large = [size for size, kind in rows if kind == "large"]
    limit = (sum(small) / len(small) + sum(large) / len(large)) / 2
    return {"limit": limit, "mark": int.from_bytes(os.urandom(5))}

@step
def evaluate(model, data: Path):
    rows = rows_of(data)
    right = sum((size > model["limit"]) == (kind == "large") for size, kind in rows)
    return {"accuracy": right / len(rows), "mark": model["mark"]}

@pipeline
def training(hold: float = 0.0):
    model = fit(asset("boxes"), hold=hold)
    report = evaluate(model, asset("boxes-test"))
    register(model, metrics=report)
"""

PREDICT = """
import json
import pathlib
import time

def load(model_dir):
    time.sleep({load})
    return json.loads((pathlib.Path(model_dir) / "model.json").read_text())

def predict(model, batch):
    rows = [row["size"] if isinstance(row, dict) else row[0] for row in batch]
    return [
        f"mark-{{model['mark']}}" if size < -1e5 else ("large" if size > model["limit"] else "small") for size in rows
    ]
"""

LOOP = """
[project]
name = "boxes"

[model]
name = "boxes"

[checks]
commands = {checks}

[data.boxes]
path = "data/boxes.csv"

[data.boxes-test]
path = "data/boxes-test.csv"

[gate]
test = "boxes-test"
label = "kind"
positive = "large"
better_than_champion = "off"
thresholds = {{ accuracy = 0.8 }}

[approval]
policy = "{approval}"

[endpoint]
name = "boxes"

[rollout]
strategy = "{strategy}"
steps = [50]
bake_seconds = {bake}
max_error_rate = 1.0
max_latency_ratio = 1000.0

[retrain]
enabled = true
asset = "boxes"
min_rows = 1
cooldown_seconds = 0
budget = 1000
"""

COMPANION_LOOP = """
[project]
name = "companion"

[model]
name = "companion"
"""

COMPANION = """
import os
import time
from loopline import pipeline, step

@step
def wait(hold: float = 0.0):
    time.sleep(hold)
    return {"waited": hold}

@pipeline
def waiting(hold: float = 0.0):
    wait(hold)

if __name__ == "__main__":
    waiting.run()
"""


def boxes(
    *,
    approval: str = "auto",
    strategy: str = "canary",
    bake: float = 0.0,
    load: float = 0.3,
    check_seconds: float | None = 0.3,
    requirements: str = "",
) -> dict[str, str]:
    """The boxes. ``load``: seconds that a model server loads; ``check_seconds``: how long the check of a push takes."""
    checks = "[]" if check_seconds is None else '["python checks.py"]'
    loop = LOOP.format(approval=approval, strategy=strategy, bake=bake, checks=checks)
    files = project(loop_toml=loop, pipeline_py=PIPELINE, predict_py=PREDICT.format(load=load))
    files["requirements.txt"] = requirements
    return {**files, "checks.py": f"import time\ntime.sleep({check_seconds or 0})\n"}


def companion() -> dict[str, str]:
    """A project whose one job keeps a slot busy, so that there is a job to kill whatever else is going on."""
    files = {"loop.toml": COMPANION_LOOP, "pipeline.py": COMPANION, "requirements.txt": ""}
    return {**files, "predict.py": PREDICT.format(load=0)}


ROUNDS = """
import csv
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
def stamp(fitted, mark: int = 0):
    return {"limit": fitted["limit"], "mark": mark}

@pipeline
def training(mark: int = 0):
    model = stamp(fit(asset("boxes")), mark=mark)
    register(model)
"""


def rounds() -> dict[str, str]:
    """The boxes with a training that is cached, versions that bear the mark they are asked for, and no deployment by
    itself."""
    loop = LOOP.format(approval="manual", strategy="canary", bake=0, checks="[]")
    loop = loop.replace('name = "boxes"\n\n[rollout]', 'name = "boxes"\ndeploy_on_approval = false\n\n[rollout]')
    return project(loop_toml=loop, pipeline_py=ROUNDS, predict_py=PREDICT.format(load=0))
