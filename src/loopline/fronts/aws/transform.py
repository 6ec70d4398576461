"""SageMaker's batch transform: a model answers the objects of a bucket; a script whose contract is transform's."""

from collections.abc import Mapping
from typing import Any

from loopline.control import servables as models
from loopline.domain.access import Permission
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws import programs, servables
from loopline.fronts.aws.call import Call, Operation

CONTRACT = "transform"
_WITHOUT_EFFECT = ("DataCaptureConfig", "ModelClientConfig", "MaxConcurrentTransforms")
_SHOWN = (
    "ModelName",
    "MaxConcurrentTransforms",
    "ModelClientConfig",
    "MaxPayloadInMB",
    "BatchStrategy",
    "Environment",
    "TransformInput",
    "TransformOutput",
    "TransformResources",
    "DataProcessing",
    "ExperimentConfig",
)


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The native settings of a CreateTransformJob request; its texts and numbers are not looked at."""
    source, target = given["TransformInput"], given["TransformOutput"]
    objects = (source.get("DataSource") or {}).get("S3DataSource")
    if objects is None:
        raise AwsError("ValidationException", "TransformInput needs DataSource.S3DataSource")
    processing = given.get("DataProcessing") or {}
    channel = programs.chosen(("source", objects.get("S3DataType")), ("compression", source.get("CompressionType")))
    return {
        "contract": CONTRACT,
        "servable": given["ModelName"],
        "channels": {"input": {"uri": objects["S3Uri"], **channel}},
        "outputs": {"output": {"uri": target["S3OutputPath"]}},
        **programs.chosen(
            ("environment", given.get("Environment")),
            ("machine", (given.get("TransformResources") or {}).get("InstanceType")),
        ),
        "transform": programs.chosen(
            ("content_type", source.get("ContentType")),
            ("accept", target.get("Accept")),
            ("split", source.get("SplitType")),
            ("strategy", given.get("BatchStrategy")),
            ("max_payload_mb", given.get("MaxPayloadInMB")),
            ("assemble", target.get("AssembleWith")),
            ("input_filter", processing.get("InputFilter")),
            ("output_filter", processing.get("OutputFilter")),
            ("join", processing.get("JoinSource")),
        ),
    }


def arn_of(call: Call, name: str) -> str:
    """The ARN of a transform job."""
    return call.arn("sagemaker", f"transform-job/{name}")


def absent(name: str) -> str:
    """What AWS says of a job that is not there."""
    return f"Could not find job to describe with name {name}"


def create_transform_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateTransformJob."""
    name = given["TransformJobName"]
    arn = arn_of(call, name)
    programs.warn(call, given, *_WITHOUT_EFFECT)
    try:
        model = models.describe(call.ctx, call.actor, servable=given["ModelName"])
    except NotFound:
        raise servables.unfound(call, given["ModelName"]) from None
    role = (model["given"] or {}).get("ExecutionRoleArn")
    taken = f"Job name must be unique within an AWS account and region, and a job with this name already exists ({arn})"
    programs.submit(call, name, {**settings(given), **programs.chosen(("role", role))}, given, taken)
    return {"TransformJobArn": arn}


def describe_transform_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeTransformJob."""
    name = given["TransformJobName"]
    row = programs.show(call, CONTRACT, name, absent(name))
    asked = row["given"] or {}
    summary = {key: value for key, value in _summary(call, row).items() if key != "LastModifiedTime"}
    return {
        **{key: asked[key] for key in _SHOWN if asked.get(key) is not None},
        **summary,
        "TransformStartTime": row["job_started_at"],
    }


def list_transform_jobs(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListTransformJobs."""
    return programs.page(call, given, CONTRACT, "TransformJobSummaries", lambda row: _summary(call, row))


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "TransformJobName": row["name"],
        "TransformJobArn": arn_of(call, row["name"]),
        "CreationTime": row["created_at"],
        "TransformEndTime": row["ended_at"],
        "LastModifiedTime": programs.changed_at(row),
        "TransformJobStatus": programs.status(row),
        "FailureReason": programs.failure(row),
    }


def stop_transform_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """StopTransformJob."""
    return programs.stop(call, CONTRACT, given["TransformJobName"], absent(given["TransformJobName"]))


OPERATIONS = {
    "CreateTransformJob": Operation(
        create_transform_job, Permission.WRITE, "one process; objects are split by lines or not at all"
    ),
    "DescribeTransformJob": Operation(describe_transform_job, Permission.READ),
    "ListTransformJobs": Operation(list_transform_jobs, Permission.READ),
    "StopTransformJob": Operation(stop_transform_job, Permission.WRITE),
}
