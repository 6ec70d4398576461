"""Endpoints with many models, by boto3: the archives below a prefix, each read when it is first asked for."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

PREFIX = "shops"


@pytest.fixture(scope="module")
def many(hosting: Any) -> Any:
    """The endpoint ``many``: three models below a prefix."""
    for slope in (2, 3, 4):
        hosting.put(f"{PREFIX}/north/x{slope}.tar.gz", float(slope))
    container = {
        "Image": hosting.image,
        "Mode": "MultiModel",
        "ModelDataUrl": f"s3://{hosting.bucket}/{PREFIX}",
        "MultiModelConfig": {"ModelCacheSetting": "Enabled"},
    }
    hosting.sagemaker.create_model(ModelName="shops", PrimaryContainer=container, ExecutionRoleArn=hosting.role)
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{hosting.bucket}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    hosting.configured("shops", "shops", DataCaptureConfig=capture)
    hosting.start("many", "shops")
    return hosting


def refused(hosting: Any, target: str | None, endpoint: str = "many") -> dict[str, Any]:
    given = {} if target is None else {"TargetModel": target}
    with pytest.raises(ClientError) as failure:
        hosting.ask(endpoint, [1.0], **given)
    error: dict[str, Any] = failure.value.response["Error"]
    return error


def code(hosting: Any, target: str) -> str | None:
    """What a request is refused with, if it is."""
    try:
        hosting.ask("many", [1.0], TargetModel=target)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def loaded(platform: Platform) -> dict[str, str]:
    """Each model that the endpoint has read, and whether its server runs, as loopline shows it."""
    return {each["model"]: each["state"] for each in platform.call("GET", "/api/endpoints/many/models")["items"]}


def test_each_request_names_its_model_and_only_those_are_loaded(many: Any, platform: Platform) -> None:
    assert loaded(platform) == {}
    answer = many.ask("many", [10.0], TargetModel="north/x3.tar.gz")
    assert (answer["values"], answer["InvokedProductionVariant"]) == ([30.0], "AllTraffic")
    assert loaded(platform) == {"north/x3.tar.gz": "running"}
    assert many.slope("many", TargetModel="north/x2.tar.gz") == 2.0
    assert set(loaded(platform)) == {"north/x2.tar.gz", "north/x3.tar.gz"}
    native = platform.predict(
        {"rows": [5.0]}, "many", headers={"content-type": "application/json", "x-loopline-model": "north/x4.tar.gz"}
    )
    assert native.json["values"] == [20.0]
    shown = many.sagemaker.describe_endpoint(EndpointName="many")
    (told,) = shown["ProductionVariants"]
    assert (told["VariantName"], told["CurrentWeight"], shown["EndpointStatus"]) == ("AllTraffic", 1.0, "InService")
    described = many.sagemaker.describe_model(ModelName="shops")["PrimaryContainer"]
    assert (described["Mode"], described["ModelDataUrl"]) == ("MultiModel", f"s3://{many.bucket}/{PREFIX}")


def test_an_archive_that_is_put_later_is_served_when_it_is_asked_for(many: Any, platform: Platform) -> None:
    assert "no object" in refused(many, "later.tar.gz")["Message"]
    many.put(f"{PREFIX}/later.tar.gz", 9.0)
    assert many.slope("many", TargetModel="later.tar.gz") == 9.0
    many.put(f"{PREFIX}/later.tar.gz", 11.0)
    until(lambda: many.slope("many", TargetModel="later.tar.gz") == 11.0, "the archive is read again", 60.0)
    many.s3.delete_object(Bucket=many.bucket, Key=f"{PREFIX}/later.tar.gz")
    until(lambda: code(many, "later.tar.gz") == "ValidationError", "the model is put down", 60.0)
    assert "later.tar.gz" not in loaded(platform)


def test_what_is_no_model_is_told_and_names_are_never_paths(many: Any) -> None:
    assert refused(many, None)["Code"] == "ValidationError"
    secret = many.put("secret.tar.gz", 1.0)
    assert secret.endswith("/secret.tar.gz")
    for target in ("../secret.tar.gz", "/etc/passwd", "north/../../secret.tar.gz", "x" * 1000, "北.tar.gz"):
        error = refused(many, target)
        assert (error["Code"], "serves no model" in error["Message"]) == ("ValidationError", True), (target, error)
    many.s3.put_object(Bucket=many.bucket, Key=f"{PREFIX}/broken.tar.gz", Body=b"no archive")
    error = refused(many, "broken.tar.gz")
    assert error["Code"] == "ServiceUnavailable" and "is no tar of files" in error["Message"]
    many.put(f"{PREFIX}/broken.tar.gz", 6.0)
    assert many.slope("many", TargetModel="broken.tar.gz") == 6.0


def test_models_that_were_read_answer_after_a_kill_and_new_ones_come(many: Any, platform: Platform) -> None:
    assert many.slope("many", TargetModel="north/x2.tar.gz") == 2.0
    platform.kill("control")
    assert many.slope("many", TargetModel="north/x2.tar.gz") == 2.0
    many.put(f"{PREFIX}/after.tar.gz", 12.0)
    assert many.slope("many", TargetModel="after.tar.gz") == 12.0
    platform.kill("gateway")
    assert many.slope("many", TargetModel="after.tar.gz") == 12.0


def test_requests_are_captured_under_the_variant_that_callers_know(many: Any) -> None:
    many.ask("many", [33.0], TargetModel="north/x2.tar.gz", InferenceId="seen")

    def lines() -> list[dict[str, Any]]:
        found = many.s3.list_objects_v2(Bucket=many.bucket, Prefix="captured/many/AllTraffic/").get("Contents", [])
        bodies = [many.s3.get_object(Bucket=many.bucket, Key=each["Key"])["Body"].read() for each in found]
        rows = [json.loads(line) for body in bodies for line in body.splitlines()]
        return [row for row in rows if row["eventMetadata"].get("inferenceId") == "seen"]

    (line,) = until(lines, "the request is captured", 60.0)
    assert json.loads(line["captureData"]["endpointOutput"]["data"])["values"] == [66.0]


def test_a_pipeline_brings_such_an_endpoint_up(many: Any) -> None:
    model = {
        "PrimaryContainer": {
            "Image": many.image,
            "Mode": "MultiModel",
            "ModelDataUrl": f"s3://{many.bucket}/{PREFIX}/",
        },
        "ExecutionRoleArn": many.role,
    }
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": {"Get": "Steps.Make.ModelName"},
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
    }
    steps = [
        {"Name": "Make", "Type": "Model", "Arguments": model},
        {"Name": "Configure", "Type": "EndpointConfig", "Arguments": {"ProductionVariants": [variant]}},
        {
            "Name": "Serve",
            "Type": "Endpoint",
            "Arguments": {
                "EndpointName": "from-pipeline",
                "EndpointConfigName": {"Get": "Steps.Configure.EndpointConfigName"},
            },
        },
    ]
    definition = json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": steps})
    many.sagemaker.create_pipeline(
        PipelineName="many", PipelineDefinition=definition, RoleArn=many.role, ClientRequestToken="t" * 32
    )
    arn = many.sagemaker.start_pipeline_execution(PipelineName="many")["PipelineExecutionArn"]

    def over() -> str | None:
        found = many.sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        return found["PipelineExecutionStatus"] if found["PipelineExecutionStatus"] != "Executing" else None

    assert until(over, "the pipeline is over", 90.0) == "Succeeded"
    assert many.slope("from-pipeline", TargetModel="north/x4.tar.gz") == 4.0


def test_what_such_an_endpoint_cannot_do_is_said(many: Any, platform: Platform) -> None:
    many.configure(5)
    for call, given in (
        (many.sagemaker.update_endpoint, {"EndpointConfigName": "x5"}),
        (
            many.sagemaker.update_endpoint_weights_and_capacities,
            {"DesiredWeightsAndCapacities": [{"VariantName": "AllTraffic", "DesiredWeight": 1}]},
        ),
    ):
        with pytest.raises(ClientError, match="many models"):
            call(EndpointName="many", **given)
    variants = [
        {"VariantName": name, "ModelName": model, "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
        for name, model in (("a", "shops"), ("b", "x5"))
    ]
    with pytest.raises(ClientError, match="is alone"):
        many.sagemaker.create_endpoint_config(EndpointConfigName="mixed", ProductionVariants=variants)
    many.sagemaker.delete_endpoint(EndpointName="many")
    until(lambda: code(many, "north/x2.tar.gz") == "ValidationError", "nobody answers", 30.0)
    until(lambda: platform.ask("GET", "/api/endpoints/many").status == 404, "it is gone", 30.0)
