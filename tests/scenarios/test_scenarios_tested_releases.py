"""A version is tested behind its endpoint before it gets traffic: on a real platform, from the command line, with a
person's chat at the other end."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.boxes import LOOP, PREDICT, project
from loopline.testing.live import Platform, until

TESTED = (
    LOOP.replace('[gate]\ntest = "boxes-test"\nlabel = "kind"\npositive = "large"\n', "[gate]\nmode = 'off'\n").replace(
        "thresholds = { accuracy = 0.8 }\n", ""
    )
    + """
[approval]
policy = "auto"

[endpoint]
name = "boxes"
timeout_seconds = 300

[rollout]
steps = [50]
bake_seconds = 1

[[tests]]
name = "known"
kind = "golden"
file = "known.jsonl"

[[tests]]
name = "busy"
kind = "load"
body = { instances = [{ size = 9.0 }] }
rate = 50
seconds = 0.5

[[functions]]
name = "judge"
file = "judge.py"
endpoints = ["boxes"]
"""
)
JUDGE = """
def handler(event, context):
    return {"kind": context.invoke("boxes", {"instances": [event["body"]]})["predictions"][0]}
"""
KNOWN = '{"request": {"instances": [{"size": 9.0}]}, "expected": ["large"]}\n'
WRONG = PREDICT.replace('"large" if', '"huge" if')
# It answers 55 when a file is there.
WAITING = PREDICT.replace(
    "def predict(model, batch):",
    """def predict(model, batch):
    import os, time
    while any(row["size"] == 55 for row in batch) and not os.path.exists("GO"):
        time.sleep(0.01)""",
)
SLOWLY = PREDICT.replace(
    "def predict(model, batch):",
    """def predict(model, batch):
    import time; time.sleep(0.2)
    if batch[0]["size"] == 77: return ["odd"]""",
)


class Chat(HTTPServer):
    """Where Slack would be."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.messages: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


class Hook(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.messages.append(body["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    chat = Chat()
    yield chat
    chat.shutdown()
    chat.server_close()
    chat.thread.join()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, chat: Chat) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("tested") / "p", outbound_allow=f"127.0.0.1:{chat.server_port}")
    try:
        platform.start()
        platform.call("POST", "/api/topics", {"name": "ops", "events": ["test_run.Failed"]})
        subscription = {"topic": "ops", "kind": "slack", "url": f"http://127.0.0.1:{chat.server_port}/hook"}
        platform.call("POST", "/api/subscriptions", subscription)
        assert released(platform, WAITING.replace("GO", str(go(platform))), "first")["status"] == "Succeeded"
        yield platform
    finally:
        platform.stop()


def go(platform: Platform) -> Path:
    """The file that the first version waits for."""
    return platform.folder.with_name("go")


def released(platform: Platform, predict: str, delivery: str) -> dict[str, Any]:
    """The rollout of a version with this code, once it is over."""
    before = len(platform.call("GET", "/api/rollouts")["items"])
    files = {**project(loop_toml=TESTED, predict_py=predict), "known.jsonl": KNOWN, "judge.py": JUDGE}
    assert platform.run(files, delivery=delivery)["status"] == "Succeeded"

    def begun() -> Any:
        items = platform.call("GET", "/api/rollouts")["items"]
        return items[0] if len(items) > before else None

    return platform.ended("rollout", until(begun, "a rollout")["id"])


def shares(platform: Platform) -> dict[int, float]:
    return {item["version"]: item["share"] for item in platform.call("GET", "/api/live")["items"]}


def test_a_wrong_version_keeps_0_percent_and_a_chat_hears_why(platform: Platform, chat: Chat) -> None:
    rollout = released(platform, WRONG, "wrong")
    assert rollout["status"] == "RolledBack" and 'expected "large", got "huge"' in rollout["reason"]
    assert shares(platform) == {1: 1.0}
    number = platform.call("GET", "/api/models/boxes/versions?limit=1")["items"][0]["number"]
    history = platform.cli("tests", "history", "--model", "boxes", "--version", str(number))
    assert history.returncode == 0 and "Failed" in history.stdout and "staging" in history.stdout
    until(lambda: chat.messages, "a message")
    assert f"Test run of boxes v{number} on endpoint boxes is Failed: known failed" in chat.messages[0]
    assert 'known, case 1, [0]: expected "large", got "huge"' in chat.messages[0]


def test_what_tests_ask_counts_in_no_metric(platform: Platform) -> None:
    before = counted(platform)
    assert platform.cli("tests", "run", "boxes").returncode == 0
    for _ in range(5):
        assert platform.predict({"instances": [{"size": 9.0}]}).status == 200
    until(lambda: counted(platform) >= before + 5, "the callers' requests are counted")
    assert counted(platform) == before + 5


def counted(platform: Platform) -> int:
    rows = platform.call("GET", "/api/endpoints/boxes/traffic?period_seconds=3600")["items"]
    return sum(int(row["requests"]) for row in rows)


def test_a_control_that_dies_in_the_middle_goes_on_with_the_tests(platform: Platform) -> None:
    case = {"request": {"instances": [{"size": 55.0}]}, "expected": ["large"]}
    definition = {"kind": "golden", "cases": [case], "timeout_seconds": 300}
    platform.call("PUT", "/api/endpoints/boxes/tests/long", {"definition": definition})
    run = platform.call("POST", "/api/endpoints/boxes/test-runs", {})["id"]

    def has_one() -> bool:
        found = platform.call("GET", f"/api/test-runs/{run}")
        return found["status"] == "Running" and len(found["results"]) == 1

    until(has_one, "the first of the tests has run")
    platform.kill("control")
    go(platform).touch()

    def over() -> Any:
        answer = platform.ask("GET", f"/api/test-runs/{run}")
        return answer.json if answer.status == 200 and answer.json["status"] in ("Passed", "Failed") else None

    found = until(over, "the run is over")
    assert found["status"] == "Passed", found["reason"]
    assert [result["test"] for result in found["results"]] == ["known", "long", "busy"]
    events = platform.call("GET", f"/api/events?noun=test_run&record={run}")["items"]
    assert [event["after"] for event in events].count("Passed") == 1
    platform.call("DELETE", "/api/endpoints/boxes/tests/long")


def test_the_command_line_makes_records_runs_and_removes_tests(platform: Platform, tmp_path: Path) -> None:
    def cli(*argv: str, code: int = 0) -> str:
        done = platform.cli("tests", *argv)
        assert done.returncode == code, (argv, done.stdout, done.stderr)
        return done.stdout

    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"request": {"instances": [{"size": -9}]}, "expected": ["large"]}\n')
    assert cli("put", "boxes", "wrong", "golden", "--cases", str(cases)) == "test wrong of boxes: golden, 1 cases\n"
    told = cli("run", "boxes", "wrong", code=1)
    assert "Failed  wrong (golden" in told and 'case 1, [0]: expected "large", got "small"' in told
    cli("delete", "boxes", "wrong")
    assert platform.predict({"instances": [{"size": 7.5}]}).status == 200
    until(lambda: platform.cli("tests", "record", "boxes").returncode == 0, "a request is in the log")
    assert json.loads(cli("show", "boxes", "recorded", "--json"))["source"] == "captured"
    assert "Passed  recorded (golden" in cli("run", "boxes", "recorded", "--variant", "v1")
    assert [line.split("\t")[0] for line in cli("list", "boxes").splitlines()] == ["known", "recorded", "busy"]
    body = tmp_path / "body.json"
    body.write_text('{"instances": [{"size": 9.0}]}')
    cli("put", "boxes", "hard", "load", "--body", str(body), "--set", "rate=20", "--set", "seconds=0.5")
    assert "Passed  hard (load" in cli("run", "boxes", "hard")
    cli("put", "boxes", "hard", "load", "--body", str(body), "--set", "rat=20", code=2)
    for name in ("hard", "recorded"):
        cli("delete", "boxes", name)


def test_a_load_test_from_outside_is_kept_and_has_limits(platform: Platform, tmp_path: Path) -> None:
    body = tmp_path / "body.csv"
    body.write_text('{"instances": [{"size": 9.0}]}')
    argv = ("loadtest", "boxes", "--body", str(body), "--content-type", "application/json", "--seconds", "0.5")
    done = platform.cli(*argv, "--rate", "40", "--connections", "4", "--save", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["requests"], figures["statuses"], figures["variants"]) == (20, {"200": 20}, {"v1": 20})
    kept = platform.call("GET", "/api/test-runs?model=boxes&number=1&limit=1")["items"][0]
    assert kept["stage"] == "loadtest" and kept["results"][0]["figures"]["requests"] == 20
    done = platform.cli(*argv, "--rate", "40", "--min-rate", "1000")
    assert done.returncode == 1 and "good answers per second: expected at least 1000" in done.stderr
    done = platform.cli(*argv, "--connections", "2", "--variant", "nobody")
    assert done.returncode == 0 and "x 404" in done.stdout
    assert "404: this endpoint has no variant by that name; variants: v1" in done.stderr


def judged(platform: Platform, size: float) -> Any:
    answer = platform.ask("POST", "/functions/judge", {"size": size})
    return answer.json if answer.status == 200 else None


def test_a_version_that_is_slow_and_wrong_behind_a_function_never_serves(platform: Platform) -> None:
    definition = {"kind": "load", "body": {"instances": [{"size": 9.0}]}, "rate": 20, "seconds": 1, "max_p50_ms": 150}
    platform.call("PUT", "/api/endpoints/boxes/tests/quick", {"definition": definition})
    call = {"path": "/functions/judge", "body": {"size": 77.0}, "json": {"kind": "large"}}
    platform.call("PUT", "/api/endpoints/boxes/tests/judged", {"definition": {"kind": "call", "calls": [call]}})
    until(lambda: judged(platform, 77.0) == {"kind": "large"}, "the function answers, by the version that serves")
    rollout = released(platform, SLOWLY, "slowly")
    assert rollout["status"] == "RolledBack" and "quick, p50: expected at most 150 ms" in rollout["reason"]
    assert 'judged, call 1, kind: expected "large", got "odd"' in rollout["reason"]
    assert shares(platform) == {1: 1.0} and judged(platform, 77.0) == {"kind": "large"}
