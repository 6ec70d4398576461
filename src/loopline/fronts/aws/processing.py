"""SageMaker's processing jobs: a script whose contract is processing's."""

from collections.abc import Mapping
from typing import Any

from loopline.domain.access import Permission
from loopline.errors import AwsError
from loopline.fronts.aws import programs
from loopline.fronts.aws.call import Call, Operation

CONTRACT = "processing"
_SHOWN = (
    "ProcessingInputs",
    "ProcessingOutputConfig",
    "ProcessingResources",
    "StoppingCondition",
    "AppSpecification",
    "Environment",
    "NetworkConfig",
    "RoleArn",
    "ExperimentConfig",
)


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The native settings of a CreateProcessingJob request; its texts and numbers are not looked at."""
    app = given.get("AppSpecification") or {}
    if not app.get("ImageUri"):
        raise AwsError("ValidationException", "AppSpecification needs ImageUri")
    cluster = (given.get("ProcessingResources") or {}).get("ClusterConfig") or {}
    outputs = (given.get("ProcessingOutputConfig") or {}).get("Outputs") or ()
    return {
        "contract": CONTRACT,
        "image": app["ImageUri"],
        **programs.chosen(
            ("entrypoint", app.get("ContainerEntrypoint")),
            ("arguments", app.get("ContainerArguments")),
            ("channels", {each["InputName"]: _input(each) for each in given.get("ProcessingInputs") or ()}),
            ("outputs", {each["OutputName"]: _output(each) for each in outputs}),
            ("environment", given.get("Environment")),
            ("role", given.get("RoleArn")),
            ("hosts", cluster.get("InstanceCount")),
            ("machine", cluster.get("InstanceType")),
        ),
        "timeout_seconds": programs.seconds(given),
        "network": not (given.get("NetworkConfig") or {}).get("EnableNetworkIsolation"),
    }


def _input(given: Mapping[str, Any]) -> dict[str, Any]:
    source = given.get("S3Input")
    if not source or not source.get("LocalPath"):
        raise AwsError("ValidationException", f"The input {given['InputName']} needs S3Input with a LocalPath")
    return {
        "uri": source["S3Uri"],
        "path": source["LocalPath"],
        **programs.chosen(
            ("source", source.get("S3DataType")),
            ("sharded", source.get("S3DataDistributionType") == "ShardedByS3Key"),
            ("compression", source.get("S3CompressionType")),
            ("mode", source.get("S3InputMode")),
        ),
    }


def _output(given: Mapping[str, Any]) -> dict[str, Any]:
    target = given.get("S3Output")
    if not target or not target.get("LocalPath"):
        raise AwsError("ValidationException", f"The output {given['OutputName']} needs S3Output with a LocalPath")
    return {"path": target["LocalPath"], "uri": target["S3Uri"]}


def arn_of(call: Call, name: str) -> str:
    """The ARN of a processing job."""
    return call.arn("sagemaker", f"processing-job/{name}")


def absent(name: str) -> str:
    """What AWS says of a job that is not there."""
    return f"Could not find requested job with name: {name}"


def create_processing_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateProcessingJob."""
    name = given["ProcessingJobName"]
    arn = arn_of(call, name)
    for each in (given.get("ProcessingOutputConfig") or {}).get("Outputs") or ():
        if (each.get("S3Output") or {}).get("S3UploadMode") == "Continuous":
            call.warn(f"The output {each['OutputName']} is uploaded when the job ends, not continuously")
    wanted = settings(given)
    wanted["environment"] = {"PROCESSING_JOB_ARN": arn, **(wanted.get("environment") or {})}
    taken = f"Job name must be unique within an AWS account and region, and a job with this name already exists ({arn})"
    programs.submit(call, name, wanted, given, taken)
    return {"ProcessingJobArn": arn}


def describe_processing_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeProcessingJob."""
    name = given["ProcessingJobName"]
    row = programs.show(call, CONTRACT, name, absent(name))
    asked = row["given"] or {}
    return {
        **{key: asked[key] for key in _SHOWN if asked.get(key) is not None},
        "StoppingCondition": asked.get("StoppingCondition") or {"MaxRuntimeInSeconds": programs.DEFAULT_SECONDS},
        **_summary(call, row),
        "ProcessingStartTime": row["job_started_at"],
    }


def list_processing_jobs(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListProcessingJobs."""
    return programs.page(call, given, CONTRACT, "ProcessingJobSummaries", lambda row: _summary(call, row))


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "ProcessingJobName": row["name"],
        "ProcessingJobArn": arn_of(call, row["name"]),
        "CreationTime": row["created_at"],
        "ProcessingEndTime": row["ended_at"],
        "LastModifiedTime": programs.changed_at(row),
        "ProcessingJobStatus": programs.status(row),
        "FailureReason": programs.failure(row),
        "ExitMessage": (row["result"] or {}).get("message"),
    }


def stop_processing_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """StopProcessingJob."""
    return programs.stop(call, CONTRACT, given["ProcessingJobName"], absent(given["ProcessingJobName"]))


def delete_processing_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteProcessingJob."""
    return programs.delete(call, CONTRACT, given["ProcessingJobName"], absent(given["ProcessingJobName"]))


OPERATIONS = {
    "CreateProcessingJob": Operation(
        create_processing_job,
        Permission.WRITE,
        "the image's name chooses packages, no container is run; inputs are S3Input, folders lie below /opt/ml",
    ),
    "DeleteProcessingJob": Operation(delete_processing_job, Permission.WRITE),
    "DescribeProcessingJob": Operation(describe_processing_job, Permission.READ),
    "ListProcessingJobs": Operation(list_processing_jobs, Permission.READ),
    "StopProcessingJob": Operation(stop_processing_job, Permission.WRITE),
}
