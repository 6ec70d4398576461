"""Functions and sick model servers on a real platform: pushed with a project, called, replaced, hung and restarted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loopline.config import run_dir_for
from loopline.testing.boxes import LOOP, PREDICT, project
from loopline.testing.live import Platform, until

FUNCTION = """
import os
import time

def handler(event, context):
    if event["body"].get("who"):
        return os.getpid()
    if event["body"].get("hang"):
        time.sleep(3600)
    print("sizes", event["body"]["sizes"])
    rows = [{"size": size} for size in event["body"]["sizes"]]
    answer = context.invoke("boxes", {"instances": rows})
    return {"kinds": answer["predictions"], "edition": 1}
"""
SERVED = (
    LOOP.replace('[gate]\ntest = "boxes-test"\nlabel = "kind"\npositive = "large"\n', "[gate]\nmode = 'off'\n").replace(
        "thresholds = { accuracy = 0.8 }\n", ""
    )
    + """
[approval]
policy = "auto"

[endpoint]
name = "boxes"
timeout_seconds = 60

[[functions]]
name = "kinds"
file = "kinds.py"
endpoints = ["boxes"]
code = []
timeout_seconds = 60
"""
)
HANGING = PREDICT.replace(
    "def predict(model, batch):",
    """
BROKEN = []
def predict(model, batch):
    import time
    if any(row["size"] == 666 for row in batch): time.sleep(3600)
    if any(row["size"] == 500 for row in batch): BROKEN.append(1)
    if BROKEN: raise RuntimeError("something that it needs is lost")""",
)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("functions") / "data")
    try:
        made.start()
        assert made.run(files())["status"] == "Succeeded"
        until(lambda: made.predict({"size": 9}).status == 200, "the endpoint serves")
        until(lambda: status(made) == "Ready", "the function is ready")
        yield made
    finally:
        made.stop()


def files(seconds: int = 60, edition: int = 1) -> dict[str, str]:
    """The project: how long endpoint and function may take, and what the function says that it is."""
    loop_toml = SERVED.replace("timeout_seconds = 60", f"timeout_seconds = {seconds}")
    code = FUNCTION.replace('"edition": 1', f'"edition": {edition}')
    return {**project(loop_toml=loop_toml, predict_py=HANGING), "kinds.py": code}


def apply(platform: Platform, wanted: dict[str, str]) -> None:
    platform.call("POST", "/api/projects", {"tree": platform.upload(wanted)})


@contextmanager
def impatient(platform: Platform) -> Iterator[None]:
    """Who does not answer within a second is taken for one that hangs, meanwhile."""

    def allowed() -> set[int]:
        document = json.loads((platform.folder / "snapshot.json").read_text())
        state = json.loads((run_dir_for(platform.folder) / "gateway-0.json").read_text())
        served = document["endpoints"]["boxes"], document["functions"]["kinds"]
        return {each["timeout_ms"] for each in served} if state["number"] >= document["number"] else set()

    for seconds in (1, 60):
        apply(platform, files(seconds))
        until(lambda seconds=seconds: allowed() == {seconds * 1000}, f"{seconds} s are allowed")
        until(lambda: status(platform) == "Ready", "the function is ready")
        if seconds == 1:
            yield


def status(platform: Platform) -> str:
    return str(platform.call("GET", "/api/functions/kinds")["status"])


def ask(platform: Platform, body: Any, **options: Any) -> Any:
    return platform.ask("POST", "/functions/kinds", body, **options)


def counted(platform: Platform) -> int:
    return int(platform.call("GET", "/api/endpoints/function:kinds/traffic")["total"]["requests"])


def told(platform: Platform, noun: str, kind: str = "ejected") -> list[dict[str, Any]]:
    items = platform.call("GET", "/api/events?limit=200")["items"]
    return [event for event in items if event["kind"] == kind and event["noun"] == noun]


def test_a_function_reshapes_a_body_and_asks_the_model(platform: Platform) -> None:
    answer = ask(platform, {"sizes": [9, -9]})
    assert (answer.status, answer.json) == (200, {"kinds": ["large", "small"], "edition": 1})
    shown = platform.cli("functions", "list")
    assert shown.returncode == 0 and "kinds\tReady\tboxes\tkinds.py\tboxes" in shown.stdout
    invoked = platform.cli("functions", "invoke", "kinds", '{"sizes": [9]}')
    assert json.loads(invoked.stdout) == {"kinds": ["large"], "edition": 1}, invoked.stderr
    request = answer.headers["x-request-id"]
    logged = until(
        lambda: platform.cli("logs", "function:kinds", "--request", request).stdout, "what it printed can be read"
    )
    assert "sizes [9, -9]" in logged and request in logged
    until(lambda: counted(platform) >= 2, "the monitor has counted")
    items = platform.call("GET", "/api/endpoints/function:kinds/requests")["items"]
    assert request in [item["id"] for item in items] and items[0]["variant"] == "live"
    assert "kinds\tReady\t" in platform.cli("status").stdout


def test_a_key_for_one_function_opens_nothing_else(platform: Platform) -> None:
    made = platform.cli("keys", "create", "--name", "fn", "--role", "invoker", "--endpoint", "function:kinds")
    key = made.stdout.strip()
    until(lambda: ask(platform, {"sizes": [9]}, key=key).status == 200, "the key is known to the gateway")
    assert platform.predict({"size": 9}, key=key).status == 403


def test_a_failure_is_a_502_that_can_be_found_by_its_id(platform: Platform) -> None:
    answer = ask(platform, {"wrong": 1})
    assert answer.status == 502 and answer.error["code"] == "function_failed"
    assert answer.error["message"] == "KeyError: 'sizes'"
    shown = platform.cli("functions", "invoke", "kinds", "{}")
    assert shown.returncode == 1 and "KeyError" in shown.stderr


def test_a_function_that_hangs_is_restarted_by_the_supervisor(platform: Platform) -> None:
    with impatient(platform):
        assert ask(platform, {"hang": True}).status == 504
        until(lambda: told(platform, "function"), "the event is there")
    until(lambda: ask(platform, {"sizes": [9]}).status == 200, "the function answers again")
    assert "answered nothing for 1 s" in told(platform, "function")[0]["reason"]


def test_a_model_server_that_hangs_is_restarted_by_the_supervisor(platform: Platform) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda size=size: answers.append(platform.predict({"size": size}).status))
        for size in (666, 1, 2)
    ]
    with impatient(platform):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 503, 504} and 504 in answers
        until(lambda: told(platform, "variant"), "the event is there")
    until(lambda: platform.predict({"size": 9}).status == 200, "the endpoint serves again")
    assert "answered nothing for 1 s" in told(platform, "variant")[0]["reason"]


def test_an_only_model_server_that_fails_whatever_it_is_asked_is_replaced(platform: Platform) -> None:
    assert platform.predict({"size": 500}).status == 500
    statuses = []

    def serves_again() -> bool:
        statuses.append(platform.predict({"size": 9}).status)
        return statuses[-1] == 200

    until(serves_again, "another process serves")
    assert set(statuses) <= {500, 503, 200} and statuses.count(500) > 20
    (failing,) = until(lambda: told(platform, "variant", "failing"), "the event is there")
    (replaced,) = until(lambda: told(platform, "variant", "replaced"), "the other event is there")
    assert failing["record"] == replaced["record"] and "took its place (attempt 1 of 6)" in replaced["reason"]


def test_a_new_tree_replaces_the_function_without_a_failed_request(platform: Platform) -> None:
    ended, statuses = threading.Event(), []

    def load() -> None:
        while not ended.is_set():
            statuses.append(ask(platform, {"sizes": [9]}).status)

    first = ask(platform, {"who": 1}).json
    thread = threading.Thread(target=load)
    thread.start()
    apply(platform, {**files(), "README.md": "Boxes.", "pipeline.py": project()["pipeline.py"] + "# revised"})
    assert (ask(platform, {"who": 1}).json, status(platform)) == (first, "Ready"), "what it sees has not changed"
    apply(platform, files(edition=2))
    until(lambda: ask(platform, {"sizes": [9]}).json.get("edition") == 2, "the new code answers")
    until(lambda: status(platform) == "Ready", "the old processes are let go")
    ended.set()
    thread.join()
    assert set(statuses) == {200} and ask(platform, {"who": 1}).json != first


def test_limits_of_a_key_hold_on_the_platform(platform: Platform) -> None:
    limits = ("--role", "invoker", "--endpoint", "boxes", "--rate", "0.01", "--burst", "2", "--quota", "100/day")
    key = platform.cli("keys", "create", "--name", "limited", *limits).stdout.strip()
    until(lambda: platform.predict({"size": 9}, key=key).status != 401, "the key is known to the gateway")
    answer = platform.predict({"size": 9}, key=key)
    assert answer.status == 200 and answer.headers["x-quota-remaining"] == "98"
    refused = platform.predict({"size": 9}, key=key)
    assert refused.status == 429 and refused.error["code"] == "rate_limited" and int(refused.headers["retry-after"]) > 1
    listed = platform.cli("keys", "list").stdout
    assert "0.01/s, burst 2, 100/day" in listed


def test_a_proxy_configuration_is_printed_for_the_port_in_use(platform: Platform) -> None:
    made = platform.cli("gateway", "config", "--haproxy", "--port", "8999")
    port = platform.host.rpartition(":")[2]
    assert f"server loopline 127.0.0.1:{port} check" in made.stdout and "bind :8999" in made.stdout
    assert f"server 127.0.0.1:{port} max_fails=0;" in platform.cli("gateway", "config", "--nginx").stdout
    wrong = platform.cli("gateway", "config", "--nginx", "--tls-cert", "/a b.pem")
    assert wrong.returncode == 2 and "path" in wrong.stderr
    assert platform.ask("GET", "/healthz", key=None).status == 200
