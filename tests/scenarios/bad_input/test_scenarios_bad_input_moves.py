"""The right requests at the wrong moment, twice, or many at once: one wins, the others are told, nothing is doubled."""

import http.client
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import pytest

from loopline import config
from loopline.testing.live import Answer, Platform, until

SLOW = """
import time
from loopline import pipeline, step

@step(cache=False)
def wait(seconds: float = 600.0):
    time.sleep(seconds)
    return 1

@pipeline
def training(seconds: float = 600.0):
    wait(seconds=seconds)
"""
SLOW_LOOP = '[project]\nname = "slow"\n[model]\nname = "slow"\n'


def at_once(platform: Platform, count: int, method: str, path: str, body: Any = None) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: platform.ask(method, path, body), range(count)))


@contextmanager
def stopped_gateway(platform: Platform) -> Iterator[None]:
    """No gateway takes a new snapshot meanwhile, so that what moves traffic stays under way."""
    pid = until(lambda: platform.process("gateway"), "a gateway runs")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask_control(platform: Platform, path: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
    """A request past the gateway."""
    connection = http.client.HTTPConnection("control", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(config.run_dir_for(platform.folder) / "control.sock"))
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"authorization": f"Bearer {platform.key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def registered(platform: Platform, files: dict[str, str], shift: float) -> int:
    """Train another version, and wait until the gate has judged it; gives its number."""
    ended = platform.run(files, parameters={"shift": shift})
    assert ended["status"] == "Succeeded", ended
    number = int(platform.call("GET", "/api/models/boxes")["last_version"])
    path = f"/api/models/boxes/versions/{number}"
    until(lambda: any(e["verdict"] for e in platform.call("GET", path)["evaluations"]), "the gate has judged")
    return number


def settled(platform: Platform) -> list[dict[str, Any]]:
    """What is live once no rollout is going on."""
    until(lambda: platform.call("GET", "/api/endpoints/boxes")["rollout"] is None, "no rollout is going on")
    return list(platform.call("GET", "/api/live")["items"])


def test_there_is_nothing_to_go_back_to_at_first(platform: Platform) -> None:
    error = platform.ask("POST", "/api/endpoints/boxes/rollback", {}).error
    assert error["code"] == "conflict" and "none to go back to" in error["message"]
    assert [item["version"] for item in settled(platform)] == [1]
    error = platform.ask("POST", "/api/endpoints/boxes/release", {"number": 1}).error
    assert error["code"] == "conflict" and "serves boxes version 1 already" in error["message"]
    error = platform.ask("POST", "/api/endpoints/boxes/release", {"number": 77}).error
    assert error["code"] == "not_found" and "1 to" in error["message"]
    error = platform.ask("POST", "/api/endpoints/boxes/release", {"model": "other", "number": 1}).error
    assert error["code"] == "not_found"


def test_of_twenty_approvals_at_once_one_wins(platform: Platform, project_files: dict[str, str]) -> None:
    number = registered(platform, project_files, 0.01)
    path = f"/api/models/boxes/versions/{number}"
    answers = at_once(platform, 20, "POST", f"{path}/approve", {"comment": "me"})
    assert Counter(answer.status for answer in answers) == {200: 1, 409: 19}
    told = {answer.error["code"] for answer in answers if answer.status != 200}
    assert told == {"illegal_move"}
    again = platform.ask("POST", f"{path}/approve", {"comment": "again"})
    assert again.error["code"] == "illegal_move"
    assert "Approved" in again.error["message"]
    moves = [move["after"] for move in platform.call("GET", path)["history"] if move["kind"] == "moved"]
    assert moves.count("Approved") == 1
    until(lambda: [item["version"] for item in settled(platform)] == [number], "the approved version is live")
    rollouts = platform.call("GET", "/api/endpoints/boxes/rollouts")["items"]
    assert [row["plan"]["number"] for row in rollouts].count(number) == 1


def test_two_rollbacks_at_once_go_back_once(platform: Platform, project_files: dict[str, str]) -> None:
    numbers = [registered(platform, project_files, shift) for shift in (0.02, 0.03)]
    for number in numbers:
        platform.call("POST", f"/api/models/boxes/versions/{number}/approve", {"comment": "good"})
        until(lambda number=number: [i["version"] for i in settled(platform)] == [number], f"version {number} is live")
    with ThreadPoolExecutor(8) as pool:
        with stopped_gateway(platform):
            path, body = "/api/endpoints/boxes/rollback", {"reason": "worse"}
            asked = as_completed([pool.submit(ask_control, platform, path, body) for _ in range(8)])
            refused = [next(asked).result() for _ in range(7)]  # the eighth waits for the gateway
        status, done = next(asked).result()
    assert {(code, answer["error"]["code"]) for code, answer in refused} == {(409, "conflict")}, refused
    assert (status, done["serving"]["version"]) == (200, numbers[0])
    assert [item["version"] for item in settled(platform)] == [numbers[0]]
    assert platform.call("GET", f"/api/models/boxes/versions/{numbers[1]}")["status"] == "Rejected"
    assert platform.predict({"size": 9.0}).headers["x-loopline-version"] == str(numbers[0])


def test_of_many_releases_at_once_one_begins_and_what_is_in_its_way_is_refused(
    platform: Platform, project_files: dict[str, str]
) -> None:
    before = settled(platform)[0]["version"]
    number = registered(platform, project_files, 0.04)
    path = "/api/endpoints/boxes"
    error = platform.ask("POST", f"{path}/release", {"number": number}).error
    assert error["code"] == "gate_refused" and "not Approved" in error["message"]
    force = {"number": number, "force": True}
    assert "--reason" in platform.ask("POST", f"{path}/release", force).error["message"]
    with stopped_gateway(platform), ThreadPoolExecutor(8) as pool:
        body = {**force, "reason": "a test"}
        answers = list(pool.map(lambda _: ask_control(platform, f"{path}/release", body), range(8)))
        assert Counter(status for status, _ in answers) == {201: 1, 409: 7}, answers
        for method, place, wanted in (("POST", f"{path}/release", {"number": before}), ("DELETE", path, None)):
            status, answer = ask_control(platform, place, wanted, method)
            assert (status, answer["error"]["code"]) == (409, "conflict"), answer
            assert "is going on" in answer["error"]["message"], answer
    assert [item["version"] for item in settled(platform)] == [number]


def test_rejecting_the_live_version_is_told_and_takes_nothing_away(platform: Platform) -> None:
    live = settled(platform)[0]["version"]
    path = f"/api/models/boxes/versions/{live}"
    assert platform.ask("POST", f"{path}/reject", {}).error["code"] == "invalid_input"
    answer = platform.ask("POST", f"{path}/reject", {"comment": "oh no"})
    assert answer.status in (200, 409), answer
    assert platform.predict({"size": 9.0}).status == 200
    assert [item["version"] for item in settled(platform)] == [live]
    if answer.status == 200:
        assert platform.ask("POST", "/api/endpoints/boxes/release", {"number": live}).status in (403, 409)


def test_a_delivery_that_comes_twenty_times_at_once_starts_one_execution(platform: Platform) -> None:
    tree = platform.upload({"loop.toml": SLOW_LOOP, "pipeline.py": SLOW, "predict.py": "", "requirements.txt": ""})
    body = {"tree": tree, "delivery": "once", "parameters": {"seconds": 0.0}}
    answers = at_once(platform, 20, "POST", "/api/pushes", body)
    assert {answer.status for answer in answers} == {201}, [answer.body for answer in answers]
    assert len({answer.json["id"] for answer in answers}) == 1
    platform.ended("push", answers[0].json["id"])
    assert len(platform.call("GET", "/api/executions?project=slow")["items"]) == 1
    starts = at_once(
        platform,
        20,
        "POST",
        "/api/executions",
        {"project": "slow", "delivery": "again", "parameters": {"seconds": 0.0}},
    )
    assert {answer.status for answer in starts} == {201}, [answer.body for answer in starts]
    assert len({answer.json["id"] for answer in starts}) == 1


def test_pushes_at_once_to_one_project_all_count_and_apply_one_after_the_other(platform: Platform) -> None:
    trees = []
    for number in range(4):
        code = SLOW.replace("600.0", "0.0") + f"\n# {number % 2}\n"
        files = {"loop.toml": SLOW_LOOP.replace("slow", "crowd"), "pipeline.py": code, "predict.py": ""}
        trees.append(platform.upload({**files, "requirements.txt": ""}))
    with ThreadPoolExecutor(4) as pool:
        pushes = list(pool.map(lambda tree: platform.call("POST", "/api/pushes", {"tree": tree}), trees))
    ended = [platform.ended("push", push["id"]) for push in pushes]
    assert [row["status"] for row in ended] == ["Started"] * 4, [row["reason"] for row in ended]
    executions = [platform.ended("execution", row["execution"]) for row in ended]
    assert [row["status"] for row in executions] == ["Succeeded"] * 4, [row["reason"] for row in executions]
    assert len({row["id"] for row in executions}) == 4
    assert len([row for row in platform.call("GET", "/api/projects")["items"] if row["name"] == "crowd"]) == 1


def test_stopping_what_has_ended_and_retrying_what_succeeded(platform: Platform) -> None:
    tree = platform.upload({"loop.toml": SLOW_LOOP, "pipeline.py": SLOW, "predict.py": "", "requirements.txt": ""})
    push = platform.call("POST", "/api/pushes", {"tree": tree, "parameters": {"seconds": 0.0}})
    done = platform.ended("execution", platform.ended("push", push["id"])["execution"])
    assert done["status"] == "Succeeded"
    for verb in ("stop", "retry"):
        error = platform.ask("POST", f"/api/executions/{done['id']}/{verb}", {}).error
        assert error["code"] in ("conflict", "illegal_move") and "Succeeded" in error["message"], error
    push = platform.call("POST", "/api/pushes", {"tree": tree})
    slow = platform.ended("push", push["id"])["execution"]
    until(lambda: platform.call("GET", f"/api/executions/{slow}")["status"] == "Running", "it runs")
    error = platform.ask("POST", f"/api/executions/{slow}/retry", {}).error
    assert error["code"] in ("conflict", "illegal_move"), error
    answers = at_once(platform, 8, "POST", f"/api/executions/{slow}/stop", {})
    assert {answer.status for answer in answers} <= {200, 409}, [answer.body for answer in answers]
    assert platform.ended("execution", slow)["status"] == "Stopped"
    events = platform.call("GET", f"/api/events?noun=execution&record={slow}&limit=100")["items"]
    assert [event["after"] for event in events].count("Stopping") == 1


@pytest.mark.parametrize("count", [12])
def test_the_same_key_name_made_many_times_at_once_stays_within_its_limit(platform: Platform, count: int) -> None:
    platform.call("POST", "/api/users", {"name": "greedy", "role": "viewer"})
    answers = at_once(platform, count, "POST", "/api/keys", {"user": "greedy", "name": "one"})
    assert Counter(answer.status for answer in answers) == {201: 2, 409: count - 2}
    users = at_once(platform, count, "POST", "/api/users", {"name": "twin", "role": "viewer"})
    assert Counter(answer.status for answer in users) == {201: 1, 409: count - 1}, [answer.body for answer in users]
    models = at_once(platform, count, "POST", "/api/models", {"name": "twin"})
    assert Counter(answer.status for answer in models) == {201: 1, 409: count - 1}
    endpoints = at_once(platform, count, "POST", "/api/endpoints", {"name": "twin"})
    assert Counter(answer.status for answer in endpoints) == {201: 1, 409: count - 1}
    gone = at_once(platform, count, "DELETE", "/api/endpoints/twin")
    assert Counter(answer.status for answer in gone) == {200: 1, 404: count - 1}
