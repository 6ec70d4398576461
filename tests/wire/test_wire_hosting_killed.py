"""Endpoints while control and the gateway are killed: they come to be, answer, and every request is captured once."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from loopline.testing.live import Platform, until

COUNT = 60


@pytest.fixture(scope="module")
def hosting(hosting: Any) -> Any:
    """Configurations x2 and x3 that capture everything, and answer later, too."""
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{hosting.bucket}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    output = {"OutputConfig": {"S3OutputPath": f"s3://{hosting.bucket}/answers"}}
    hosting.configure(2, 3, DataCaptureConfig=capture, AsyncInferenceConfig=output)
    return hosting


def captured(hosting: Any, endpoint: str) -> list[str]:
    """The inference id of every line that was captured."""
    found = hosting.s3.list_objects_v2(Bucket=hosting.bucket, Prefix=f"captured/{endpoint}/").get("Contents", [])
    bodies = [hosting.s3.get_object(Bucket=hosting.bucket, Key=each["Key"])["Body"].read() for each in found]
    rows = [json.loads(line) for body in bodies for line in body.splitlines()]
    return [row["eventMetadata"]["inferenceId"] for row in rows]


def test_an_endpoint_comes_to_serve_and_moves_on_although_control_is_killed(hosting: Any, platform: Platform) -> None:
    hosting.sagemaker.create_endpoint(EndpointName="hardy", EndpointConfigName="x2")
    platform.kill("control")
    hosting.in_service("hardy")
    assert hosting.slope("hardy") == 2.0
    routing = {
        "Type": "LINEAR",
        "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
        "WaitIntervalInSeconds": 1,
    }
    hosting.update("hardy", "x3", BlueGreenUpdatePolicy={"TrafficRoutingConfiguration": routing})
    platform.kill("control")
    until(lambda: hosting.slope("hardy") == 3.0, "traffic moves", 60.0)
    platform.kill("control")
    assert hosting.in_service("hardy")["EndpointConfigName"] == "x3"
    assert {hosting.slope("hardy") for _ in range(20)} == {3.0}


def test_every_request_is_captured_once_whatever_is_killed(hosting: Any, platform: Platform) -> None:
    hosting.start("recorded", "x2")
    answered = []
    for number in range(COUNT):
        hosting.ask("recorded", [float(number)], InferenceId=f"order-{number}")
        answered.append(f"order-{number}")
        if number in (10, 30):
            platform.kill("control")
        if number == 20:  # what the gateway has in memory is written within a tick; then it is killed
            until(lambda: platform.call("GET", "/api/endpoints/recorded/traffic")["total"]["requests"] == 21, "counted")
            platform.kill("gateway")
    platform.kill("control")
    until(lambda: len(captured(hosting, "recorded")) >= COUNT, "all are captured", 60.0)
    platform.kill("control")
    hosting.ask("recorded", [0.0], InferenceId="the last")
    until(lambda: "the last" in captured(hosting, "recorded"), "one more is captured", 60.0)
    assert sorted(captured(hosting, "recorded")) == sorted([*answered, "the last"])


def test_answers_that_are_fetched_later_come_once_although_control_is_killed(hosting: Any, platform: Platform) -> None:
    hosting.start("later", "x2")
    places = []
    for number in range(12):
        key = f"asked/{number}.json"
        hosting.s3.put_object(
            Bucket=hosting.bucket,
            Key=key,
            Body=json.dumps({"rows": [float(number)]}).encode(),
            ContentType="application/json",
        )
        made = hosting.runtime.invoke_endpoint_async(
            EndpointName="later", InputLocation=f"s3://{hosting.bucket}/{key}", InferenceId=f"later-{number}"
        )
        places.append(made["OutputLocation"].removeprefix(f"s3://{hosting.bucket}/"))
        if number == 5:
            platform.kill("control")
    platform.kill("control")

    def answer(key: str) -> Any:
        try:
            return json.loads(hosting.s3.get_object(Bucket=hosting.bucket, Key=key)["Body"].read())["values"]
        except (ClientError, BotoCoreError):
            return None

    for number, key in enumerate(places):
        assert until(lambda key=key: answer(key), f"{key} is there", 60.0) == [2.0 * number]
    listed = platform.call("GET", "/api/async-invocations?endpoint=later")["items"]
    assert [each["status"] for each in listed] == ["Succeeded"] * 12


def test_a_kill_of_control_costs_no_request(hosting: Any, platform: Platform) -> None:
    hosting.start("steady", "x2")
    over, slopes = threading.Event(), []

    def go_on() -> None:
        while not over.is_set():
            slopes.append(hosting.slope("steady"))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(go_on)
        try:
            until(lambda: len(slopes) > 3, "requests are on their way")
            platform.kill("control")
            since = len(slopes)
            until(lambda: len(slopes) > since + 3 or asking.done(), "more are asked")
        finally:
            over.set()
        asking.result()  # raises what a request was refused with
    assert set(slopes) == {2.0}
