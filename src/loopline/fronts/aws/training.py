"""SageMaker's training jobs: a script whose contract is training's."""

from collections.abc import Mapping
from typing import Any

from loopline.control import scripts
from loopline.domain.access import Permission
from loopline.errors import AwsError
from loopline.fronts.aws import programs
from loopline.fronts.aws.call import Call, Operation

CONTRACT = "training"
ABSENT = "Requested resource not found."
_REFUSED = ("ModelPackageConfig", "ServerlessJobConfig", "MlflowConfig")
_WITHOUT_EFFECT = ("VpcConfig", "CheckpointConfig", "EnableManagedSpotTraining", "TensorBoardOutputConfig")
_SHOWN = (
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "DebugHookConfig",
    "ExperimentConfig",
    "TensorBoardOutputConfig",
    "ProfilerConfig",
    "Environment",
    "RetryStrategy",
)
_PHASES = {
    "Preparing": "Starting",
    "Waiting": "Pending",
    "Running": "Training",
    "Stopping": "Stopping",
    "Publishing": "Uploading",
}
_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The native settings of a CreateTrainingJob request; its texts and numbers are not looked at."""
    programs.refuse(given, *_REFUSED)
    algorithm = given.get("AlgorithmSpecification") or {}
    if not algorithm.get("TrainingImage"):
        raise AwsError(
            "ValidationException", "AlgorithmSpecification needs TrainingImage: there is no marketplace here"
        )
    resources = given.get("ResourceConfig") or {}
    groups = resources.get("InstanceGroups") or []
    if len(groups) > 1:
        raise AwsError("ValidationException", "Not supported by loopline: more than one of InstanceGroups")
    machines = groups[0] if groups else resources
    output = given.get("OutputDataConfig") or {}
    if output.get("CompressionType") == "NONE":
        raise AwsError("ValidationException", "Not supported by loopline: OutputDataConfig.CompressionType NONE")
    channels = {each["ChannelName"]: _channel(each, algorithm) for each in given.get("InputDataConfig") or ()}
    return {
        "contract": CONTRACT,
        "image": algorithm["TrainingImage"],
        **programs.chosen(
            ("entrypoint", algorithm.get("ContainerEntrypoint")),
            ("arguments", algorithm.get("ContainerArguments")),
            ("hyperparameters", given.get("HyperParameters")),
            ("channels", channels),
            ("output_uri", output.get("S3OutputPath")),
            ("role", given.get("RoleArn")),
            ("environment", given.get("Environment")),
            ("metrics", [_metric(each) for each in algorithm.get("MetricDefinitions") or ()]),
            ("hosts", machines.get("InstanceCount")),
            ("machine", machines.get("InstanceType")),
        ),
        "timeout_seconds": programs.seconds(given),
        "network": not given.get("EnableNetworkIsolation"),
    }


def _metric(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": given["Name"], "regex": given["Regex"]}


def _channel(given: Mapping[str, Any], algorithm: Mapping[str, Any]) -> dict[str, Any]:
    source = (given.get("DataSource") or {}).get("S3DataSource")
    if source is None:
        raise AwsError("ValidationException", f"The channel {given['ChannelName']} needs DataSource.S3DataSource")
    return {
        "uri": source["S3Uri"],
        **programs.chosen(
            ("source", source.get("S3DataType")),
            ("sharded", source.get("S3DataDistributionType") == "ShardedByS3Key"),
            ("content_type", given.get("ContentType")),
            ("compression", given.get("CompressionType")),
            ("record_wrapper", given.get("RecordWrapperType")),
            ("mode", given.get("InputMode") or algorithm.get("TrainingInputMode")),
        ),
    }


def arn_of(call: Call, name: str) -> str:
    """The ARN of a training job."""
    return call.arn("sagemaker", f"training-job/{name}")


def create_training_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateTrainingJob."""
    name = given["TrainingJobName"]
    arn = arn_of(call, name)
    programs.warn(call, given, *_WITHOUT_EFFECT)
    wanted = settings(given)
    wanted["environment"] = {"TRAINING_JOB_ARN": arn, **(wanted.get("environment") or {})}
    taken = (
        "Training job names must be unique within an AWS account and region, and a training job with this name "
        f"already exists ({arn})"
    )
    programs.submit(call, name, wanted, given, taken)
    return {"TrainingJobArn": arn}


def describe_training_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeTrainingJob."""
    name = given["TrainingJobName"]
    row = programs.show(call, CONTRACT, name, ABSENT)
    asked, result = row["given"] or {}, row["result"] or {}
    found = scripts.metrics(call.ctx, call.actor, contract=CONTRACT, name=name)
    began, ended = row["job_started_at"], row["job_ended_at"]
    took = None if began is None or ended is None else int(ended - began) + 1
    return {
        **{key: asked[key] for key in _SHOWN if asked.get(key) is not None},
        "StoppingCondition": asked.get("StoppingCondition") or {"MaxRuntimeInSeconds": programs.DEFAULT_SECONDS},
        "TrainingJobName": name,
        "TrainingJobArn": arn_of(call, name),
        "ModelArtifacts": {"S3ModelArtifacts": result["model"]} if result.get("model") else None,
        "TrainingJobStatus": programs.status(row),
        "SecondaryStatus": _secondary(row),
        "SecondaryStatusTransitions": _transitions(row),
        "FailureReason": programs.failure(row),
        "CreationTime": row["created_at"],
        "TrainingStartTime": began,
        "TrainingEndTime": row["ended_at"],
        "LastModifiedTime": programs.changed_at(row),
        "FinalMetricDataList": [
            {"MetricName": each["name"], "Value": each["value"], "Timestamp": each["at"]} for each in found
        ],
        "TrainingTimeInSeconds": took,
        "BillableTimeInSeconds": took,
    }


def _secondary(row: Mapping[str, Any]) -> str:
    if row["ended_by"] == "timeout" and row["status"] in programs.ENDED:
        return "MaxRuntimeExceeded"
    return programs.ENDED.get(row["status"]) or _PHASES.get(row["phase"], "Starting")


def _transitions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the job has gone through, with times, the last one open while the job goes on."""
    times = [("Starting", row["created_at"]), ("Training", row["job_started_at"]), ("Uploading", row["job_ended_at"])]
    if row["ended_at"] is not None:
        times.append((_secondary(row), row["ended_at"]))
    known = [(what, at) for what, at in times if at is not None]
    found = []
    for place, (what, at) in enumerate(known):
        entry = {"Status": what, "StartTime": at, "StatusMessage": _MESSAGES[what]}
        following = known[place + 1][1] if place + 1 < len(known) else row["ended_at"]
        if following is not None:
            entry["EndTime"] = following
        found.append(entry)
    return found


def list_training_jobs(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListTrainingJobs."""
    return programs.page(call, given, CONTRACT, "TrainingJobSummaries", lambda row: _summary(call, row))


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "TrainingJobName": row["name"],
        "TrainingJobArn": arn_of(call, row["name"]),
        "CreationTime": row["created_at"],
        "TrainingEndTime": row["ended_at"],
        "LastModifiedTime": programs.changed_at(row),
        "TrainingJobStatus": programs.status(row),
        "SecondaryStatus": _secondary(row),
    }


def stop_training_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """StopTrainingJob."""
    return programs.stop(call, CONTRACT, given["TrainingJobName"], ABSENT)


def delete_training_job(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteTrainingJob."""
    return programs.delete(call, CONTRACT, given["TrainingJobName"], ABSENT)


OPERATIONS = {
    "CreateTrainingJob": Operation(
        create_training_job,
        Permission.WRITE,
        "the image's name chooses packages, no container is run; no built-in algorithms, Pipe mode or checkpoints",
    ),
    "DeleteTrainingJob": Operation(delete_training_job, Permission.WRITE),
    "DescribeTrainingJob": Operation(describe_training_job, Permission.READ),
    "ListTrainingJobs": Operation(list_training_jobs, Permission.READ),
    "StopTrainingJob": Operation(stop_training_job, Permission.WRITE),
}
