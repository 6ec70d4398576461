"""Hosting, asked by boto3: models, configurations, endpoints, and what endpoints answer."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
BUCKET = "hosting-models"
ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}"
SCRIPT = """
import json, os, pathlib, time

def model_fn(model_dir):
    return {**json.loads((pathlib.Path(model_dir) / "weights.json").read_text()), "folder": model_dir}

def input_fn(data, content_type):
    if content_type == "text/csv":
        return [[float(cell) for cell in line.split(",")] for line in data.splitlines()]
    return json.loads(data)["rows"]

def predict_fn(rows, model, context):
    if rows == [["fail"]]:
        raise RuntimeError("no such row")
    print(f"asked about {len(rows)}")
    if rows == [["where"]]:
        root = "/opt/ml/model"
        return [], {"there": sorted(os.listdir(root)), "same": os.path.samefile(root, model["folder"])}
    custom = context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")
    said = {"factor": os.environ.get("FACTOR"), "custom": custom}
    return [model["slope"] * row[0] + model["offset"] for row in rows], said

def output_fn(found, accept):
    values, said = found
    if accept == "text/csv":
        return "\\n".join(str(value) for value in values), accept
    return json.dumps({"values": values, **said}), "application/json"
"""


def packed(files: dict[str, str]) -> bytes:
    """A model.tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def model_files(slope: float, offset: float = 0.0, script: str = SCRIPT) -> bytes:
    """A model that multiplies and adds."""
    return packed({"weights.json": json.dumps({"slope": slope, "offset": offset}), "code/inference.py": script})


@pytest.fixture(scope="module")
def sagemaker(client: Callable[..., Any], platform: Platform) -> Any:
    """boto3's client; the image ``plain`` needs no package, and models v1 and v2 differ by their slope."""
    platform.ask("PUT", "/api/images/plain", {"requirements": ""})
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    found = client("sagemaker")
    for name, slope in (("v1", 2.0), ("v2", 3.0)):
        s3.put_object(Bucket=BUCKET, Key=f"{name}/model.tar.gz", Body=model_files(slope))
        found.create_model(ModelName=name, PrimaryContainer=container(name), ExecutionRoleArn=ROLE)
        configure(found, name, [variant(name)])
    return found


@pytest.fixture(scope="module")
def runtime(client: Callable[..., Any]) -> Any:
    return client("sagemaker-runtime")


def container(name: str) -> dict[str, Any]:
    return {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/{name}/model.tar.gz", "Environment": {"FACTOR": name}}


def variant(model: str, name: str = "AllTraffic", weight: float = 1.0) -> dict[str, Any]:
    return {
        "VariantName": name,
        "ModelName": model,
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": weight,
    }


def configure(sagemaker: Any, name: str, variants: list[dict[str, Any]], **more: Any) -> None:
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, **more)


def started(sagemaker: Any, name: str, config: str) -> None:
    """An endpoint, once it serves."""
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
    in_service(sagemaker, name)


def in_service(sagemaker: Any, name: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=name)
        assert found["EndpointStatus"] != "Failed", found["FailureReason"]
        return found if found["EndpointStatus"] == "InService" else None

    return until(look, f"the endpoint {name} is in service", 90.0)


def ask(runtime: Any, endpoint: str, rows: list[Any], **more: Any) -> dict[str, Any]:
    """An answer, with its body read."""
    body = json.dumps({"rows": rows}).encode()
    answer: dict[str, Any] = runtime.invoke_endpoint(
        EndpointName=endpoint, Body=body, ContentType="application/json", **more
    )
    return {**answer, "said": json.loads(answer["Body"].read())}


def refused(call: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """The error that a call is answered with."""
    with pytest.raises(ClientError) as failure:
        call(**given)
    found: dict[str, Any] = failure.value.response
    return found


def test_model_data_may_be_named_by_its_address_in_s3(sagemaker: Any, platform: Platform) -> None:
    for number, host in enumerate((f"s3.amazonaws.com/{BUCKET}", f"{BUCKET}.s3-us-east-1.amazonaws.com")):
        given = {**container("v1"), "ModelDataUrl": f"https://{host}/v1/model.tar.gz"}
        sagemaker.create_model(ModelName=f"by-url-{number}", PrimaryContainer=given, ExecutionRoleArn=ROLE)
        native = platform.call("GET", f"/api/servables/by-url-{number}")
        assert native["source"]["data"]["uri"] == f"s3://{BUCKET}/v1/model.tar.gz"
        shown = sagemaker.describe_model(ModelName=f"by-url-{number}")["PrimaryContainer"]
        assert shown["ModelDataUrl"] == given["ModelDataUrl"]
        sagemaker.delete_model(ModelName=f"by-url-{number}")
    other = {**container("v1"), "ModelDataUrl": f"https://example.com/{BUCKET}/v1/model.tar.gz"}
    told = refused(sagemaker.create_model, ModelName="other", PrimaryContainer=other, ExecutionRoleArn=ROLE)
    assert "s3://BUCKET/KEY" in told["Error"]["Message"]


def test_a_model_answers_its_own_prediction(sagemaker: Any, runtime: Any, platform: Platform) -> None:
    started(sagemaker, "first", "v1")
    answer = ask(runtime, "first", [[21.0], [1.5]], CustomAttributes="trace-7")
    assert answer["said"] == {"values": [42.0, 3.0], "factor": "v1", "custom": "trace-7"}
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ContentType"] == "application/json"
    assert answer["ResponseMetadata"]["RequestId"].startswith("rq_")
    csv = runtime.invoke_endpoint(EndpointName="first", Body=b"4\n5", ContentType="text/csv", Accept="text/csv")
    assert (csv["Body"].read(), csv["ContentType"]) == (b"8.0\n10.0", "text/csv")
    native = platform.predict({"rows": [[3.0]]}, endpoint="first")
    assert native.json["values"] == [6.0]
    assert native.headers["x-loopline-version"] == "none"
    shown = sagemaker.describe_endpoint(EndpointName="first")
    assert shown["EndpointArn"] == f"{ARN}:endpoint/first"
    assert shown["EndpointConfigName"] == "v1"
    (told,) = shown["ProductionVariants"]
    assert (told["VariantName"], told["CurrentWeight"], told["CurrentInstanceCount"]) == ("AllTraffic", 1.0, 1)
    assert told["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    servable = platform.call("GET", "/api/servables/v1")
    assert (servable["gated"], servable["status"], "first" in servable["endpoints"]) == (False, "Ready", True)


def test_a_script_finds_its_model_where_a_container_has_it(sagemaker: Any, runtime: Any) -> None:
    found = ask(runtime, "first", [["where"]])["said"]

    assert (found["there"], found["same"]) == (["code", "weights.json"], True)
    assert not Path("/opt/ml").exists()  # nothing outside of the server has changed


def test_what_a_model_prints_is_found_in_its_log(sagemaker: Any, runtime: Any, client: Callable[..., Any]) -> None:
    logs = client("logs")
    started(sagemaker, "printing", "v1")
    for rows in ([[1.0]], [[1.0], [2.0]], [[3.0]]):
        ask(runtime, "printing", rows)
    asked = {"logGroupName": "/aws/sagemaker/Endpoints/printing", "logStreamNamePrefix": "AllTraffic/"}

    def look(**more: Any) -> list[str]:
        pages = logs.get_paginator("filter_log_events").paginate(**{**asked, **more})
        return [event["message"] for page in pages for event in page["events"]]

    until(lambda: look(filterPattern='"asked about 1"') == ["asked about 1"] * 2, "the lines are there")
    assert look(filterPattern="asked -2", PaginationConfig={"PageSize": 1}) == ["asked about 1"] * 2
    assert look(filterPattern="?nothing ?2") == ["asked about 2"]
    assert look(logStreamNamePrefix="Other/") == []
    first = logs.filter_log_events(**asked, filterPattern="asked")["events"][0]
    assert look(startTime=first["timestamp"], endTime=first["timestamp"] - 1) == []
    assert abs(first["timestamp"] / 1000 - time.time()) < 300
    absent = refused(logs.filter_log_events, logGroupName="/aws/sagemaker/Endpoints/none")
    assert absent["Error"]["Code"] == "ResourceNotFoundException"


def test_what_fails_inside_is_a_model_error(sagemaker: Any, runtime: Any) -> None:
    started(sagemaker, "failing", "v1")
    error = refused(
        runtime.invoke_endpoint, EndpointName="failing", Body=b'{"rows": [["fail"]]}', ContentType="application/json"
    )
    assert error["Error"]["Code"] == "ModelError"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error["OriginalStatusCode"] == 500
    assert "no such row" in error["OriginalMessage"]


def test_who_signs_badly_or_may_not_learns_nothing(
    sagemaker: Any, runtime: Any, client: Callable[..., Any], key: dict[str, Any], platform: Platform
) -> None:
    absent = refused(runtime.invoke_endpoint, EndpointName="nowhere", Body=b"{}")
    assert absent["Error"]["Code"] == "ValidationError"
    assert absent["Error"]["Message"] == f"Endpoint nowhere of account {ACCOUNT} not found."
    forged = client("sagemaker-runtime", {**key, "secret_key": key["secret_key"][::-1]})
    for endpoint in ("nowhere", "first"):
        error = refused(forged.invoke_endpoint, EndpointName=endpoint, Body=b"{}")
        assert error["Error"]["Code"] == "InvalidSignatureException"
    stranger = client("sagemaker-runtime", {**key, "id": "LLAK" + "A" * 16})
    assert (
        refused(stranger.invoke_endpoint, EndpointName="first", Body=b"{}")["Error"]["Code"]
        == "UnrecognizedClientException"
    )
    narrow = platform.call("POST", "/api/access-keys", {"name": "narrow", "role": "invoker", "endpoints": ["other"]})
    error = refused(client("sagemaker-runtime", narrow).invoke_endpoint, EndpointName="first", Body=b"{}")
    assert error["Error"]["Code"] == "AccessDeniedException"


def test_absent_and_existing_things_are_told_in_the_words_that_clients_read(sagemaker: Any) -> None:
    cases = (
        (sagemaker.describe_model, {"ModelName": "none"}, f'Could not find model "{ARN}:model/none".'),
        (sagemaker.delete_model, {"ModelName": "none"}, f'Could not find model "{ARN}:model/none".'),
        (
            sagemaker.describe_endpoint_config,
            {"EndpointConfigName": "none"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/none".',
        ),
        (sagemaker.describe_endpoint, {"EndpointName": "none"}, f'Could not find endpoint "{ARN}:endpoint/none".'),
        (sagemaker.delete_endpoint, {"EndpointName": "none"}, f'Could not find endpoint "{ARN}:endpoint/none".'),
        (
            sagemaker.create_model,
            {"ModelName": "v1", "PrimaryContainer": container("v1"), "ExecutionRoleArn": ROLE},
            f'Cannot create already existing model "{ARN}:model/v1".',
        ),
        (
            sagemaker.create_endpoint,
            {"EndpointName": "first", "EndpointConfigName": "v1"},
            f'Cannot create already existing endpoint "{ARN}:endpoint/first".',
        ),
        (
            sagemaker.create_endpoint,
            {"EndpointName": "unmade", "EndpointConfigName": "none"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/none".',
        ),
        (
            sagemaker.create_model,
            {"ModelName": "unmade", "PrimaryContainer": container("none"), "ExecutionRoleArn": ROLE},
            f"Could not find model data at s3://{BUCKET}/none/model.tar.gz.",
        ),
    )
    for call, given, told in cases:
        error = refused(call, **given)["Error"]
        assert (error["Code"], error["Message"]) == ("ValidationException", told)


def test_lists_and_descriptions_say_what_was_given(sagemaker: Any, platform: Platform) -> None:
    assert sagemaker.describe_model(ModelName="v1")["PrimaryContainer"] == container("v1")
    shown = sagemaker.describe_endpoint_config(EndpointConfigName="v2")
    assert shown["ProductionVariants"] == [variant("v2")]
    names = [each["ModelName"] for each in sagemaker.list_models(SortBy="Name", SortOrder="Ascending")["Models"]]
    assert names == sorted(names) and {"v1", "v2"} <= set(names)
    pages = sagemaker.get_paginator("list_endpoint_configs").paginate(PaginationConfig={"PageSize": 1})
    found = [each["EndpointConfigName"] for page in pages for each in page["EndpointConfigs"]]
    assert {"v1", "v2"} <= set(found)
    configure(sagemaker, "spare", [variant("v2")])
    sagemaker.delete_endpoint_config(EndpointConfigName="spare")
    assert "spare" not in [row["name"] for row in platform.call("GET", "/api/blueprints")["items"]]
    listed = sagemaker.list_endpoints(NameContains="firs")["Endpoints"]
    assert [each["EndpointName"] for each in listed] == ["first"]


def test_several_variants_share_traffic_by_their_weights(sagemaker: Any, runtime: Any, platform: Platform) -> None:
    configure(sagemaker, "both", [variant("v1", "old", 1.0), variant("v2", "new", 3.0)])
    started(sagemaker, "sharing", "both")
    seen = [ask(runtime, "sharing", [[1.0]])["InvokedProductionVariant"] for _ in range(60)]
    assert {"old", "new"} == set(seen)
    assert seen.count("new") > seen.count("old")
    told = {
        each["VariantName"]: each for each in sagemaker.describe_endpoint(EndpointName="sharing")["ProductionVariants"]
    }
    assert {name: each["CurrentWeight"] for name, each in told.items()} == {"old": 1.0, "new": 3.0}
    for name, expected in (("old", [2.0]), ("new", [3.0])):
        answer = ask(runtime, "sharing", [[1.0]], TargetVariant=name)
        assert (answer["said"]["values"], answer["InvokedProductionVariant"]) == (expected, name)
    missing = refused(runtime.invoke_endpoint, EndpointName="sharing", Body=b"{}", TargetVariant="none")
    assert missing["Error"]["Code"] == "ValidationError"
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="sharing", DesiredWeightsAndCapacities=[{"VariantName": "new", "DesiredWeight": 0}]
    )
    in_service(sagemaker, "sharing")
    assert {ask(runtime, "sharing", [[1.0]])["InvokedProductionVariant"] for _ in range(20)} == {"old"}
    live = platform.call("GET", "/api/live?endpoint=sharing")["items"]
    assert [(each["variant"], each["share"]) for each in live] == [("old", 1.0)]


def test_an_endpoint_moves_to_another_configuration_and_its_old_servers_answer_meanwhile(
    sagemaker: Any, runtime: Any
) -> None:
    started(sagemaker, "moving", "v1")
    sagemaker.update_endpoint(EndpointName="moving", EndpointConfigName="v2")
    assert ask(runtime, "moving", [[1.0]])["said"]["values"] in ([2.0], [3.0])
    busy = refused(sagemaker.update_endpoint, EndpointName="moving", EndpointConfigName="v1")["Error"]
    assert busy["Message"].startswith("Cannot update in-progress endpoint")
    shown = in_service(sagemaker, "moving")
    assert shown["EndpointConfigName"] == "v2"
    answer = ask(runtime, "moving", [[1.0]])
    assert (answer["said"]["values"], answer["InvokedProductionVariant"]) == ([3.0], "AllTraffic")
    sagemaker.delete_endpoint(EndpointName="moving")
    assert "Could not find" in refused(sagemaker.describe_endpoint, EndpointName="moving")["Error"]["Message"]
    assert refused(runtime.invoke_endpoint, EndpointName="moving", Body=b"{}")["Error"]["Code"] == "ValidationError"


def test_an_alarm_takes_a_canary_back(
    sagemaker: Any, runtime: Any, client: Callable[..., Any], platform: Platform
) -> None:
    cloudwatch = client("cloudwatch")
    started(sagemaker, "careful", "v1")
    cloudwatch.put_metric_alarm(
        AlarmName="careful-quality",
        Namespace="Shop",
        MetricName="Complaints",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
    )
    sagemaker.update_endpoint(
        EndpointName="careful",
        EndpointConfigName="v2",
        DeploymentConfig={
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "CANARY",
                    "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50},
                    "WaitIntervalInSeconds": 600,
                }
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "careful-quality"}]},
        },
    )
    until(lambda: ask(runtime, "careful", [[1.0]])["said"]["values"] == [3.0] or None, "the canary answers", 60.0)
    assert sagemaker.describe_endpoint(EndpointName="careful")["EndpointStatus"] == "Updating"
    pending = sagemaker.describe_endpoint(EndpointName="careful")["PendingDeploymentSummary"]
    assert pending["EndpointConfigName"] == "v2"
    cloudwatch.set_alarm_state(AlarmName="careful-quality", StateValue="ALARM", StateReason="customers complain")
    shown = in_service(sagemaker, "careful")
    assert shown["EndpointConfigName"] == "v1"
    assert "careful-quality" in shown["FailureReason"]
    assert {tuple(ask(runtime, "careful", [[1.0]])["said"]["values"]) for _ in range(20)} == {(2.0,)}
    (rollout, _) = platform.call("GET", "/api/endpoints/careful/rollouts")["items"]
    assert (rollout["status"], rollout["strategy"]) == ("RolledBack", "canary")


def test_a_model_that_does_not_start_fails_its_endpoint_with_the_reason(
    sagemaker: Any, client: Callable[..., Any]
) -> None:
    client("s3").put_object(
        Bucket=BUCKET, Key="broken/model.tar.gz", Body=model_files(1.0, script="import nothing_here")
    )
    sagemaker.create_model(ModelName="broken", PrimaryContainer=container("broken"), ExecutionRoleArn=ROLE)
    configure(sagemaker, "broken", [variant("broken")])
    sagemaker.create_endpoint(EndpointName="broken", EndpointConfigName="broken")

    def failed() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName="broken")
        return found if found["EndpointStatus"] == "Failed" else None

    assert "nothing_here" in until(failed, "the endpoint failed", 60.0)["FailureReason"]


def lines_below(s3: Any, prefix: str) -> list[dict[str, Any]]:
    """Every line of JSON in the objects below a prefix."""
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    bodies = [s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read() for each in found]
    return [json.loads(line) for body in bodies for line in body.splitlines()]


def test_what_is_asked_and_answered_is_captured_once_each(
    sagemaker: Any, runtime: Any, client: Callable[..., Any], platform: Platform
) -> None:
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{BUCKET}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"CsvContentTypes": ["text/csv"], "JsonContentTypes": ["application/json"]},
    }
    configure(sagemaker, "captured", [variant("v1")], DataCaptureConfig=capture)
    started(sagemaker, "captured", "captured")
    for number in range(20):
        ask(runtime, "captured", [[float(number)]], InferenceId=f"order-{number}")
    runtime.invoke_endpoint(EndpointName="captured", Body=b"4", ContentType="text/csv", Accept="text/csv")
    refused(runtime.invoke_endpoint, EndpointName="captured", Body=b'{"rows": [["fail"]]}')
    s3 = client("s3")
    lines = until(
        lambda: found if len(found := lines_below(s3, "captured/captured/AllTraffic/")) >= 21 else None,
        "all requests are captured",
        60.0,
    )
    assert len(lines) == 21
    told = {line["eventMetadata"].get("inferenceId"): line for line in lines}
    assert set(told) == {None, *(f"order-{number}" for number in range(20))}
    seventh = told["order-7"]["captureData"]
    assert seventh["endpointInput"] == {
        "observedContentType": "application/json",
        "mode": "INPUT",
        "data": json.dumps({"rows": [[7.0]]}),
        "encoding": "JSON",
    }
    assert json.loads(seventh["endpointOutput"]["data"])["values"] == [14.0]
    csv = told[None]["captureData"]
    assert [csv[side]["data"] for side in ("endpointInput", "endpointOutput")] == ["4", "8.0"]
    assert {csv[side]["encoding"] for side in ("endpointInput", "endpointOutput")} == {"CSV"}
    assert csv["endpointOutput"]["observedContentType"] == "text/csv"
    key = s3.list_objects_v2(Bucket=BUCKET, Prefix="captured/")["Contents"][0]["Key"]
    assert len(key.split("/")) == 8  # prefix, endpoint, variant, year, month, day, hour, name
    why = platform.call("GET", f"/api/requests/{told['order-7']['eventMetadata']['eventId']}/record")
    assert why["endpoint"] == "captured"
    shown = sagemaker.describe_endpoint(EndpointName="captured")["DataCaptureConfig"]
    assert (shown["CaptureStatus"], shown["CurrentSamplingPercentage"]) == ("Started", 100)


def test_a_shadow_sees_copies_and_answers_nobody(sagemaker: Any, runtime: Any, platform: Platform) -> None:
    configure(
        sagemaker, "shadowed", [variant("v1", "main")], ShadowProductionVariants=[variant("v2", "candidate", 1.0)]
    )
    started(sagemaker, "shadowed", "shadowed")
    for number in range(10):
        answer = ask(runtime, "shadowed", [[float(number)]])
        assert (answer["said"]["values"], answer["InvokedProductionVariant"]) == ([2.0 * number], "main")
    shown = sagemaker.describe_endpoint(EndpointName="shadowed")
    assert [each["VariantName"] for each in shown["ShadowProductionVariants"]] == ["candidate"]
    assert [each["VariantName"] for each in shown["ProductionVariants"]] == ["main"]

    def compared() -> Any:
        found = platform.call("GET", "/api/endpoints/shadowed/shadow?variant=candidate")
        return found if found["compared"] >= 10 else None

    assert until(compared, "the copies are compared", 60.0)["differing"] == 10


def test_the_number_of_servers_follows_a_target(sagemaker: Any, client: Callable[..., Any], platform: Platform) -> None:
    started(sagemaker, "elastic", "v1")
    scaling = client("application-autoscaling")
    place = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/elastic/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**place, MinCapacity=2, MaxCapacity=3)

    def instances(count: int) -> Any:
        (told,) = sagemaker.describe_endpoint(EndpointName="elastic")["ProductionVariants"]
        return told if told["CurrentInstanceCount"] == count else None

    until(lambda: instances(2), "the least number of servers runs", 60.0)
    tracking = {
        "TargetValue": 1000.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    scaling.put_scaling_policy(
        **place,
        PolicyName="by-requests",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
    native = platform.call("GET", "/api/endpoints/elastic")["settings"]["scaling"]
    assert (native["min"], native["max"], native["target_per_minute"]) == (2, 3, 1000.0)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert (policy["PolicyName"], policy["TargetTrackingScalingPolicyConfiguration"]) == ("by-requests", tracking)
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["ResourceId"], target["MaxCapacity"]) == (place["ResourceId"], 3)
    (activity, *_) = scaling.describe_scaling_activities(ServiceNamespace="sagemaker")["ScalingActivities"]
    assert activity["StatusCode"] == "Successful"
    scaling.delete_scaling_policy(**place, PolicyName="by-requests")
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    native = platform.call("GET", "/api/endpoints/elastic")["settings"]["scaling"]
    assert (native["min"], native.get("target_per_minute")) == (2, None)
    scaling.deregister_scalable_target(**place)
    assert "scaling" not in platform.call("GET", "/api/endpoints/elastic")["settings"]


def test_an_asynchronous_answer_becomes_an_object(
    sagemaker: Any, runtime: Any, client: Callable[..., Any], platform: Platform
) -> None:
    s3 = client("s3")
    output = {"OutputConfig": {"S3OutputPath": f"s3://{BUCKET}/answers", "S3FailurePath": f"s3://{BUCKET}/failures"}}
    configure(sagemaker, "later", [variant("v2")], AsyncInferenceConfig=output)
    started(sagemaker, "later", "later")
    s3.put_object(Bucket=BUCKET, Key="asked/good.json", Body=b'{"rows": [[7.0]]}', ContentType="application/json")
    s3.put_object(Bucket=BUCKET, Key="asked/bad.json", Body=b'{"rows": [["fail"]]}', ContentType="application/json")
    good = runtime.invoke_endpoint_async(
        EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/good.json", InferenceId="order-1"
    )
    assert (good["InferenceId"], good["OutputLocation"]) == ("order-1", f"s3://{BUCKET}/answers/order-1.out")
    bad = runtime.invoke_endpoint_async(EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/bad.json")

    def read(location: str) -> bytes | None:
        key = location.removeprefix(f"s3://{BUCKET}/")
        listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents")
        return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() if listed else None

    answer = until(lambda: read(good["OutputLocation"]), "the answer is an object", 60.0)
    assert json.loads(answer)["values"] == [21.0]
    assert b"no such row" in until(lambda: read(bad["FailureLocation"]), "the failure is an object", 60.0)
    listed = platform.call("GET", "/api/async-invocations?endpoint=later")["items"]
    assert sorted(each["status"] for each in listed) == ["Failed", "Succeeded"]
    missing = refused(runtime.invoke_endpoint_async, EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/none")
    assert missing["Error"]["Code"] == "ValidationError"
