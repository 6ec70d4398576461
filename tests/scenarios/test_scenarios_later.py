"""Asked now, answered later: asynchronous invocations, batches from the command line, and the logs of an endpoint."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.testing import boxes
from loopline.testing.live import Answer, Platform, until

# It prints what it is given, and is wrong as the size says, or waits for a file.
PREDICT = boxes.PREDICT.replace(
    "    return [",
    """    import logging, os, time
    for row in batch:
        print("size", row["size"], "\\x1b[31m" if row["size"] == 66 else "")
        while row["size"] == 50 and not os.path.exists("GO"):
            time.sleep(0.01)
        if row["size"] == 13:
            logging.warning("thirteen came")
            raise ValueError("thirteen")
        if row["size"] == 99:
            os.abort()
    return [""",
)
LOOP = (
    boxes.LOOP
    + """
[approval]
policy = "auto"

[endpoint]
name = "boxes"
deploy_on_approval = true
timeout_seconds = 300
"""
)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("live") / "data", async_queue=6, async_body_mb=8)
    running.start()
    try:
        predict_py = PREDICT.replace("GO", str(go(running)))
        found = running.run(boxes.project(loop_toml=LOOP, predict_py=predict_py))
        assert found["status"] == "Succeeded", found
        until(lambda: running.ask("GET", "/api/endpoints/boxes").json.get("status") == "InService", "boxes serves", 60)
        yield running
    finally:
        running.stop()


def go(platform: Platform) -> Path:
    """While this file is not there, sizes of 50 are not answered."""
    return platform.folder.with_name("go")


def submit(platform: Platform, body: Any, **options: Any) -> Answer:
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    return platform.ask("POST", "/endpoints/boxes/async-invocations", body, headers=headers, **options)


def over(platform: Platform, identifier: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        row: dict[str, Any] = platform.call("GET", f"/api/async-invocations/{identifier}")
        return row if row["status"] in ("Succeeded", "Failed") else None

    return until(look, f"{identifier} is over")


# -- asynchronous invocation ------------------------------------------------------------------------------------------


def test_an_answer_is_fetched_later_and_is_the_same(platform: Platform) -> None:
    body = {"instances": [{"size": 0.1}, {"size": 9}]}
    taken = submit(platform, body)
    assert taken.status == 202
    made = taken.json
    assert made["status"] == "Pending" and made["status_url"] == f"/api/async-invocations/{made['id']}"
    row = over(platform, made["id"])
    assert (row["status"], row["answer"]["status"], row["tries"]) == ("Succeeded", 200, 1)
    answer = platform.ask("GET", made["output_url"])
    assert answer.status == 200 and answer.json == platform.predict(body).json == {"predictions": ["small", "large"]}
    record = f"/api/requests/{row['request']}/record"
    until(lambda: platform.ask("GET", record).status == 200, "the request is logged")
    assert platform.call("GET", record)["status"] == 200


def test_a_failure_is_told_and_has_no_output(platform: Platform) -> None:
    row = over(platform, submit(platform, {"size": 13}).json["id"])
    assert row["status"] == "Failed" and row["answer"]["status"] == 500
    assert "the endpoint answered 500" in row["reason"] and "thirteen" in row["reason"]
    answer = platform.ask("GET", row["output_url"])
    assert answer.status == 409 and "is Failed: the endpoint answered 500" in answer.error["message"]
    assert (
        over(platform, submit(platform, b"{", headers={"content-type": "application/json"}).json["id"])["answer"][
            "status"
        ]
        == 400
    )


def test_what_cannot_be_taken_is_refused(platform: Platform) -> None:
    assert submit(platform, {"size": 1}, key=None).status == 401
    missing = platform.ask("POST", "/endpoints/none/async-invocations", {"size": 1})
    assert missing.status == 404
    assert submit(platform, b"x" * (9 << 20)).status == 413
    assert platform.ask("GET", "/api/async-invocations/in_none").status == 404


def test_a_large_body_passes_that_no_direct_request_could_have(platform: Platform) -> None:
    body = json.dumps({"instances": [{"size": 1.0, "note": "x" * (7 << 20)}]}).encode()
    assert platform.predict(body, headers={"content-type": "application/json"}).status == 413
    assert over(platform, submit(platform, body).json["id"])["status"] == "Succeeded"


def test_an_invokers_key_submits_to_its_endpoints_and_sees_its_own_alone(platform: Platform) -> None:
    def key(**body: Any) -> str:
        return str(platform.call("POST", "/api/keys", {"role": "invoker", **body})["key"])

    own, other = key(endpoints=["boxes"], name="own"), key(endpoints=["parcels"], name="other")
    platform.call("POST", "/api/users", {"name": "max", "role": "invoker"})
    stranger = key(endpoints=["boxes"], user="max")
    made = submit(platform, {"size": 1}, key=own)
    assert made.status == 202
    refused = submit(platform, {"size": 1}, key=other)
    assert refused.status == 403 and "may not invoke the endpoint 'boxes'" in refused.error["message"]
    over(platform, made.json["id"])
    path = made.json["output_url"]
    assert [platform.ask("GET", path, key=which).status for which in (own, stranger, other)] == [200, 404, 403]
    assert platform.ask("GET", "/api/async-invocations", key=own).status == 403


def test_what_is_asked_for_later_counts_against_the_limits_of_its_key(platform: Platform) -> None:
    limits = {"rate": 0.001, "burst": 3, "quota": "4/day"}
    made = platform.call("POST", "/api/keys", {"role": "invoker", "endpoints": ["boxes"], "name": "few", **limits})
    key, now, later = made["key"], "/endpoints/boxes/invocations", "/endpoints/boxes/async-invocations"
    until(lambda: platform.ask("POST", now, {"size": 1}, key=key).status == 200, "gateways know the key")
    taken = [submit(platform, {"size": 1}, key=key) for _ in range(2)]
    assert [answer.status for answer in taken] == [202, 202]
    refused = [
        platform.ask("POST", f"{prefix}{path}", {"size": 1}, key=key)
        for prefix, path in (("", now), ("", later), ("/api", later), ("", "/endpoints/boxes/async%2Dinvocations"))
    ]
    for answer in refused:
        assert (answer.status, answer.error["code"]) == (429, "rate_limited")
        assert answer.error["message"] == "this key may send 0.001 requests a second"
        assert 900 <= int(answer.headers["retry-after"]) <= 1000
    stored = platform.call("GET", "/api/async-invocations?limit=1000")["items"]
    assert {row["id"] for row in stored if row["key"] == made["id"]} == {answer.json["id"] for answer in taken}
    assert not list((platform.folder / "invocations").glob("*.new"))
    platform.call("PUT", f"/api/keys/{made['id']}/limits", {"quota": "4/day"})
    assert submit(platform, {"size": 1}, key=key).status == 202
    over_quota = submit(platform, {"size": 1}, key=key)
    assert (over_quota.status, over_quota.error["code"]) == (429, "quota_exceeded")
    assert int(over_quota.headers["retry-after"]) > 0


def test_the_queue_is_bounded_and_what_waits_survives_the_death_of_control(platform: Platform) -> None:
    answers = [submit(platform, {"size": 50}) for _ in range(8)]
    assert [answer.status for answer in answers].count(202) == 6
    refused = answers[-1]
    assert refused.status == 429 and refused.headers["retry-after"] and "wait for boxes" in refused.error["message"]
    path = "/api/async-invocations?status=Running"
    running = until(lambda: platform.call("GET", path)["items"], "they are at work")
    assert 1 <= len(running) <= 2
    platform.kill("control")
    go(platform).touch()
    rows = [over(platform, answer.json["id"]) for answer in answers if answer.status == 202]
    assert [row["status"] for row in rows] == ["Succeeded"] * 6
    recorded = platform.call("GET", "/api/events?noun=invocation&limit=1000")["items"]
    for row in rows:
        ends = [each for each in recorded if each["record"] == row["id"] and each["after"] == "Succeeded"]
        assert len(ends) == 1


def test_from_the_command_line(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"size": 9}')
    done = platform.cli("invocations", "submit", "boxes", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == {"predictions": ["large"]}
    listed = platform.cli("invocations", "list", "--endpoint", "boxes")
    assert "Succeeded" in listed.stdout


# -- logs -------------------------------------------------------------------------------------------------------------


def lines(platform: Platform, *options: str) -> list[dict[str, Any]]:
    done = platform.cli("logs", "boxes", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_a_model_prints_is_found_by_the_id_of_the_request(platform: Platform) -> None:
    answer = platform.predict({"size": 77})
    request = answer.headers["x-request-id"]
    found = until(lambda: lines(platform, "--request", request), "the line is there")
    assert [(line["text"], line["requests"], line["variant"]) for line in found] == [("size 77 ", [request], "v1")]
    platform.predict({"size": 13})
    warned = until(lambda: lines(platform, "--grep", "thirteen c.me"), "the warning is there")
    assert all("thirteen came" in line["text"] for line in warned)
    assert lines(platform, "--grep", "no such text") == []
    assert [line["text"] for line in lines(platform, "--lines", "1", "--grep", "size 77")] == ["size 77 "]


def test_a_log_is_followed(platform: Platform) -> None:
    platform.predict({"size": 76})
    pages = "/api/endpoints/boxes/logs?lines=1"
    page = until(lambda: (found := platform.call("GET", pages))["items"] and found, "something is logged")
    assert len(page["items"]) == 1
    request = platform.predict({"size": 78}).headers["x-request-id"]

    def new() -> list[dict[str, Any]]:
        found = platform.call("GET", f"/api/endpoints/boxes/logs?cursor={page['next']}")["items"]
        return [line for line in found if request in line["requests"]]

    assert [line["text"] for line in until(new, "the new line")] == ["size 78 "]
    since = time.time() + 60
    assert platform.call("GET", f"/api/endpoints/boxes/logs?start={since}")["items"] == []


@pytest.mark.parametrize(
    ("query", "status"), [("cursor=xx", 400), ("lines=0", 400), ("lines=10001", 400), ("variant=v9", 404)]
)
def test_what_is_no_question_about_a_log_is_refused(platform: Platform, query: str, status: int) -> None:
    assert platform.ask("GET", f"/api/endpoints/boxes/logs?{query}").status == status
    assert platform.ask("GET", "/api/endpoints/none/logs").status == 404


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_from_the_command_line(platform: Platform, tmp_path: Path) -> None:
    table = "id,size\n" + "".join(f"{number},{number % 5}.25\n" for number in range(5000)) + "5000,13\n5001,99\n"
    (tmp_path / "sizes.csv").write_text(table)
    out = tmp_path / "kinds.jsonl"
    done = platform.cli("batch", "run", "boxes:1", str(tmp_path / "sizes.csv"), "--keep", "id", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"{out}: 5000 rows" in done.stdout and "2 rows were set aside: loopline batch errors" in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(number) for number in range(5000)]
    assert {row["prediction"] for row in rows if int(row["id"]) % 5 >= 2} == {"large"}
    batch = done.stderr.partition("batch errors ")[2].split()[0]
    errors = platform.cli("batch", "errors", batch).stdout
    assert [json.loads(line)["reason"] for line in errors.splitlines()] == [
        "row 5001: ValueError: thirteen",
        "row 5002: the process that predicted it ended with signal 6 (SIGABRT)",
    ]
    assert "5002/5002" in platform.cli("batch", "list").stdout
    assert "Succeeded" in platform.cli("batch", "show", batch, "--follow").stdout
    again = platform.cli("batch", "run", "boxes:1", "boxes-test", "--out", str(out))
    assert again.returncode == 2 and "exists already" in again.stderr
    asset = platform.cli("batch", "run", "boxes", "boxes-test", "--out", str(tmp_path / "test.csv"))
    assert asset.returncode == 0 and (tmp_path / "test.csv").read_text().count("\n") == 201
