"""A batch that is killed again and again, beside the plain script: is the output exact, and how fast was it?

    python benchmarks/batch/run.py [--rows 2000000] [--workers 2] [--no-kills]

Trains a small gradient boosting on the platform, then scores a table of numbers in three ways: by a plain script of
Polars and ``predict_proba`` in an environment of its own, by ``loopline batch`` undisturbed, and by ``loopline batch``
while in its middle the job's process, then its shim, then control are killed (SIGKILL). All three outputs must be the
same, byte by byte. One line of JSON on standard output; the exit status is 1 when an output differs. Each tree of the
boosting is added to a row's score by itself, so that it does not matter which rows are predicted together; a model
whose last digit depends on that would not be compared exactly.
"""

import argparse
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopline.config import package_environment
from loopline.testing.live import Platform, until

HERE = Path(__file__).resolve().parent
FEATURES = [f"f{number}" for number in range(8)]
TRAINING_ROWS = 4000
KILL_AT = (0.2, 0.4, 0.6)  # of the rows
LONGEST_SECONDS = 3600.0
LOOP = """
[project]
name = "batch"

[environment]
requirements = "requirements.txt"

[data.rows]
path = "rows.csv"

[model]
name = "batch"
handler = "joblib"

[gate]
mode = "off"
"""
PIPELINE = """
from sklearn.ensemble import HistGradientBoostingClassifier

from loopline import asset, log_baseline, pipeline, register, step


@step
def fit(rows: list):
    names = [name for name in rows[0] if name != "label"]
    table = [[float(row[name]) for name in names] for row in rows]
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    model.fit(table, [row["label"] for row in rows])
    log_baseline(table, feature_names=names)
    return model


@pipeline
def training():
    register(fit(asset("rows")))


if __name__ == "__main__":
    training.run()
"""


def main() -> int:
    """Measure; 0 when every output is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-kills", action="store_true", help="leave out the batch that is killed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loopline-batch-") as folder:
        result = measure(Path(folder), given.rows, given.workers, kills=not given.no_kills)
    say(told(result))
    print(json.dumps(result))
    return 0 if result["exact"] else 1


def measure(folder: Path, rows: int, workers: int, *, kills: bool) -> dict[str, Any]:
    """Everything, in one folder."""
    say(f"a table of {rows} rows")
    table = folder / "table.csv"
    write_table(table, rows, seed=2, label=False)
    platform = Platform(folder / "data")
    platform.start()
    try:
        train(platform, folder)
        plain = run_plain(folder, platform, table)
        quiet = run_batch(platform, table, folder / "quiet.csv", workers)
        killed = run_batch(platform, table, folder / "killed.csv", workers, KILL_AT) if kills else None
    finally:
        platform.stop()
    outputs = [folder / "quiet.csv", *([folder / "killed.csv"] if kills else [])]
    exact = all(filecmp.cmp(folder / "plain.csv", output, shallow=False) for output in outputs)
    work = plain["work_seconds"] + plain["load_seconds"]
    return {
        "rows": rows,
        "workers": workers,
        "exact": exact,
        "plain_rows_per_second": round(rows / work),
        "batch_rows_per_second": round(quiet["rows_per_second"]),
        "ratio": round(quiet["rows_per_second"] * work / rows, 3),
        "ratio_without_loading": round(quiet["rows_per_second"] * plain["work_seconds"] / rows, 3),
        "plain": plain,
        "batch": quiet,
        "killed": killed,
    }


def told(result: dict[str, Any]) -> str:
    """The result in words."""
    lines = [
        f"plain script   {result['plain_rows_per_second']:>10,} rows/s",
        f"loopline batch {result['batch_rows_per_second']:>10,} rows/s, {result['ratio']:.2f} of the script's",
    ]
    if result["killed"]:
        lines.append(f"killed {result['killed']['kills']} times, {result['killed']['attempts']} attempts")
    return "\n".join([*lines, "every output is the same" if result["exact"] else "AN OUTPUT DIFFERS"])


def say(text: str) -> None:
    """Progress, for a person."""
    print(text, file=sys.stderr, flush=True)


# -- what is scored, and by what --------------------------------------------------------------------------------------


def write_table(path: Path, rows: int, *, seed: int, label: bool) -> None:
    """Numbers by chance; whether their weighted sum is positive is what the model learns."""
    rng = random.Random(seed)
    with path.open("w") as file:
        file.write(",".join([*([] if label else ["id"]), *FEATURES, *(["label"] if label else [])]) + "\n")
        for number in range(rows):
            values = [round(rng.gauss(0, 1), 6) for _ in FEATURES]
            cells = [str(value) for value in values]
            if label:
                cells.append(str(int(sum(value * (place - 3) for place, value in enumerate(values)) > 0)))
            else:
                cells.insert(0, str(number))
            file.write(",".join(cells) + "\n")


def train(platform: Platform, folder: Path) -> None:
    """Register version 1 of the model."""
    say("training on the platform")
    write_table(folder / "rows.csv", TRAINING_ROWS, seed=1, label=True)
    requirements = (HERE / "requirements-plain.txt").read_text()
    files = {
        "loop.toml": LOOP,
        "pipeline.py": PIPELINE,
        "requirements.txt": "".join(line + "\n" for line in requirements.splitlines() if "polars" not in line),
        "rows.csv": (folder / "rows.csv").read_text(),
    }
    tree = platform.upload(files)
    push = platform.call("POST", "/api/pushes", {"tree": tree})
    found = platform.ended("push", push["id"], LONGEST_SECONDS)
    found = platform.ended("execution", found["execution"], LONGEST_SECONDS) if found["execution"] else found
    if found["status"] != "Succeeded":
        sys.exit(f"the training is {found['status']}: {found['reason']}")


def run_plain(folder: Path, platform: Platform, table: Path) -> dict[str, Any]:
    """The plain script, in an environment of its own, with the model's file."""
    say("the plain script")
    uv, venv = str(Path(sys.executable).with_name("uv")), folder / "venv"
    python = str(venv / "bin" / "python")
    run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)])
    run([uv, "pip", "install", "--quiet", "--python", python, "-r", str(HERE / "requirements-plain.txt")])
    done = platform.cli("export", "batch:1", "--docker", str(folder / "export"))
    if done.returncode:
        sys.exit(done.stderr)
    model = next((folder / "export" / "model").glob("*.joblib"))
    said = run([python, str(HERE / "plain.py"), str(model), str(table), str(folder / "plain.csv")])
    found: dict[str, Any] = json.loads(said)
    return found


def run(argv: list[str]) -> str:
    """What a program prints; its failure ends this one."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=package_environment())
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stderr}")
    return done.stdout


# -- the batch --------------------------------------------------------------------------------------------------------


def run_batch(
    platform: Platform, table: Path, output: Path, workers: int, kill_at: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Score the table with ``loopline batch``, and kill something at each of these shares of the rows."""
    say(f"loopline batch{', killed on the way' if kill_at else ''}")
    done = platform.cli("batch", "run", "batch:1", str(table), "--keep", "id", "--workers", str(workers), "--json")
    if done.returncode:
        sys.exit(done.stderr)
    batch = json.loads(done.stdout)["id"]
    kills = 0
    for share, victim in zip(kill_at, victims(platform, batch), strict=False):
        until(lambda share=share: far(platform, batch) >= share, f"{share:.0%} of the rows", LONGEST_SECONDS)
        name, pid = victim()
        os.kill(pid, signal.SIGKILL)
        kills += 1
        say(f"  at {far(platform, batch):.0%}: killed the {name}")
    found = until(lambda: over(platform, batch), "the batch is over", LONGEST_SECONDS, pause=0.5)
    if found["status"] != "Succeeded":
        sys.exit(f"the batch is {found['status']}: {found['reason']}")
    done = platform.cli("batch", "output", batch, "-o", str(output), seconds=LONGEST_SECONDS)
    if done.returncode:
        sys.exit(done.stderr)
    job = platform.call("GET", f"/api/jobs/{found['job']}")
    return {
        "rows_per_second": found["output"]["rows_per_second"],
        "seconds": found["output"]["seconds"],
        "wall_seconds": round(_seconds(found["ended_at"]) - _seconds(found["created_at"]), 3),
        "attempts": len(job["attempts"]),
        "kills": kills,
        "max_rss_mb": round(max(each["exit"]["max_rss_bytes"] for each in job["attempts"] if each["exit"]) / 1048576),
    }


def _seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


def far(platform: Platform, batch: str) -> float:
    """The share of the rows that are done; what was said before a death is still there."""
    try:
        progress = platform.call("GET", f"/api/batches/{batch}")["progress"]
    except (AssertionError, OSError):
        return 0.0  # control was killed
    return float(progress.get("rows_done", 0)) / max(1, progress.get("rows_total", 0))


def over(platform: Platform, batch: str) -> dict[str, Any] | None:
    """The batch when it is over."""
    try:
        found: dict[str, Any] = platform.call("GET", f"/api/batches/{batch}")
    except (AssertionError, OSError):
        return None
    return found if found["status"] in ("Succeeded", "Failed", "Stopped") else None


def victims(platform: Platform, batch: str) -> Iterator[Any]:
    """What is killed, one after another: the job's own process, its shim, control."""

    gone: set[str] = set()  # attempts that were killed before

    def of_attempt(name: str, file: str) -> Any:
        def find() -> tuple[str, int]:
            def look() -> tuple[str, int] | None:
                job = platform.call("GET", f"/api/batches/{batch}")["job"]
                newest = platform.call("GET", f"/api/jobs/{job}")["attempts"][-1]
                path = platform.folder / "attempts" / newest["id"] / file
                if newest["id"] in gone or newest["status"] not in ("Starting", "Running") or not path.exists():
                    return None
                gone.add(newest["id"])
                return name, int(json.loads(path.read_text())["pid"])

            return until(look, f"the {name} runs", 60.0)

        return find

    def control() -> tuple[str, int]:
        tree = json.loads((platform.folder / "run" / "supervisor.json").read_text())
        return "control process", next(each["pid"] for each in tree["children"] if each["kind"] == "control")

    yield of_attempt("job", "group")
    yield of_attempt("shim", "claim")
    yield control


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    say(f"{time.monotonic() - started:.0f} s in all")
    sys.exit(code)
