"""Credit scoring, four ways, with the same answers: an endpoint, a function before it, FastAPI, and an exported folder.

    python examples/credit-scoring/run.py [--rows 1000] [--dir FOLDER]

Starts loopline in a folder of its own, trains on applicants that are made up (``applicants.py``), has the version
judged and approved, and lets it serve; a function before the endpoint gives the score alone. Then it exports the
version, starts the exported server and a plain FastAPI service with the same model file, each in its own environment
without loopline, and asks all of them about the same applicants: every score must be the same number, bit by bit, and
what one refuses the others refuse, too. The last line is JSON.
"""

import argparse
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from loopline.config import package_environment
from loopline.testing.live import Platform, until

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import applicants  # noqa: E402

TRAINING_ROWS, TEST_ROWS = 6000, 2000
WRONG = ({}, {"age": 30}, {"age": "thirty", "housing": "own"})
START_SECONDS = 240.0


def main() -> int:
    """Play it; 0 when all answers agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="applicants that are asked about")
    parser.add_argument("--dir", type=Path, help="an empty folder to work in, which stays (default: a temporary one)")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loopline-credit-")))
        result = play(folder, given.rows, stack)
    print(json.dumps(result))
    return 0 if result["different"] == 0 and result["refused_alike"] else 1


def play(folder: Path, rows: int, stack: ExitStack) -> dict[str, Any]:
    """From nothing to three servers and the comparison of their answers."""
    platform = Platform(folder / "data")
    platform.start()
    stack.callback(platform.stop)
    project = make_project(folder)
    train_and_release(platform, project)
    exported = folder / "export"
    command(platform, "export", "credit:1", "--docker", str(exported))
    service = make_service(folder, exported)
    by_hand = stack.enter_context(serving(exported, ["server.py", "--port", "{port}"]))
    plain = stack.enter_context(serving(service, ["-m", "uvicorn", "main:app", "--port", "{port}"]))
    say(f"asking all of them about {rows} applicants")
    ways: list[Callable[[dict[str, Any]], float | None]] = [
        partial(endpoint_score, platform),
        partial(function_score, platform),
        partial(export_score, by_hand),
        partial(service_score, plain),
    ]
    different = 0
    first = None
    for row in applicants.ask(rows, seed=3):
        scores = [way(row) for way in ways]
        first = first or {"applicant": row, "score": scores[0]}
        different += scores[0] is None or any(score != scores[0] for score in scores)
    refused = [[way(row) for way in ways] for row in WRONG]
    say(f"{rows - different} of {rows} applicants have the same score everywhere")
    return {
        "rows": rows,
        "different": different,
        "refused_alike": all(scores == [None] * len(ways) for scores in refused),
        "first": first,
    }


def say(text: str) -> None:
    """Progress, for a person."""
    print(text, file=sys.stderr, flush=True)


# -- the platform -----------------------------------------------------------------------------------------------------


def make_project(folder: Path) -> Path:
    """A copy of the project with its data."""
    project = folder / "project"
    shutil.copytree(HERE / "project", project, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    applicants.write(project / "data" / "applicants.csv", TRAINING_ROWS, seed=1)
    applicants.write(project / "data" / "applicants-test.csv", TEST_ROWS, seed=2)
    return project


def train_and_release(platform: Platform, project: Path) -> None:
    """Run the pipeline, approve what the gate let pass, and wait until it serves."""
    say("training on the platform")
    command(platform, "run", "--wait", "--project", str(project), seconds=600)
    command(platform, "approve", "credit", "1", "--comment", "judged on applicants it has not seen")
    until(lambda: platform.call("GET", "/api/live")["items"], "credit v1 serves")
    function = "/api/functions/credit"
    until(lambda: platform.call("GET", function)["status"] == "Ready", "the function before it is ready", 120.0)
    say("credit v1 serves")


def command(platform: Platform, *words: str, seconds: float = 60.0) -> None:
    """One command of loopline; ends the program when it fails."""
    done = platform.cli(*words, seconds=seconds)
    if done.returncode:
        sys.exit(f"loopline {' '.join(words)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")


def endpoint_score(platform: Platform, row: dict[str, Any]) -> float | None:
    """The endpoint's score; None when it refuses with 400."""
    answer = platform.predict(row, endpoint="credit")
    return _score(answer.status, answer.json)


def function_score(platform: Platform, row: dict[str, Any]) -> float | None:
    """The score that the function before the endpoint gives; None when it refuses with 400."""
    answer = platform.ask("POST", "/functions/credit/predict", row)
    return _score(answer.status, {"predictions": [answer.json]})


def _score(status: int, document: Any) -> float | None:
    if status == http.HTTPStatus.BAD_REQUEST:
        return None
    assert status == http.HTTPStatus.OK, (status, document)
    score: float = document["predictions"][0]["score"]
    return score


# -- elsewhere --------------------------------------------------------------------------------------------------------


def make_service(folder: Path, exported: Path) -> Path:
    """The plain service with the version's model file, in an environment with the version's packages and FastAPI."""
    service = folder / "service"
    shutil.copytree(HERE / "service", service, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(next((exported / "model").glob("*.joblib")), service / "model.joblib")
    make_environment(exported, exported / "requirements.txt")
    make_environment(service, exported / "requirements.txt", service / "requirements.txt")
    return service


def make_environment(folder: Path, *requirements: Path) -> None:
    """``folder/.venv`` with what these files name; loopline is in none of them."""
    say(f"packages for {folder.name}")
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(folder / ".venv" / "bin" / "python")
    run([uv, "venv", "--quiet", "--python", sys.executable, str(folder / ".venv")])
    for each in requirements:
        run([uv, "pip", "install", "--quiet", "--python", python, "-r", str(each)])


def run(argv: list[str]) -> None:
    """A program whose failure ends this one."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=package_environment())
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stderr}")


@contextmanager
def serving(folder: Path, argv: list[str]) -> Iterator[str]:
    """The address of a server that runs in a folder's own environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command_line = [str(folder / ".venv" / "bin" / "python"), *(word.format(port=port) for word in argv)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command_line, cwd=folder, env={"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(port):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the server in {folder} does not start:\n{(folder / 'server.log').read_text()}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def ask(address: str, path: str, row: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", path, json.dumps(row), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def export_score(address: str, row: dict[str, Any]) -> float | None:
    """The exported server's score; None when it refuses with 400."""
    return _score(*ask(address, "/invocations", row))


def service_score(address: str, row: dict[str, Any]) -> float | None:
    """The plain service's score; None when it refuses with 400."""
    status, document = ask(address, "/predict", row)
    return _score(status, {"predictions": [document]})


if __name__ == "__main__":
    sys.exit(main())
