"""SageMaker's pipelines: a Pipeline is a stored pipeline.

Texts that the SageMaker SDK reads: "already exists" (``workflow/pipeline.py``, ``upsert``).
"""

from typing import Any

from loopline.control import objects, pipelines, tags
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, InvalidInput, NotFound
from loopline.fronts.aws import arns, definitions, stepkinds
from loopline.fronts.aws.call import Call, Operation

DEFAULT_RESULTS = 100
MAX_DEFINITION_BYTES = 10 << 20
ORDERS = {"Name": "name", "CreationTime": "created"}


def pipeline_arn(call: Call, name: str) -> str:
    """The ARN of a pipeline."""
    return call.arn("sagemaker", f"pipeline/{name}")


def name_of(text: str) -> str:
    """The name that a member means which takes a name or an ARN."""
    return arns.name_of(text, "sagemaker", "pipeline")


def absent(call: Call, name: str) -> AwsError:
    """What AWS says of a pipeline that is not there."""
    return AwsError("ResourceNotFound", f"Pipeline '{pipeline_arn(call, name)}' does not exist.")


def seconds(moment: Any) -> float | None:
    """A timestamp as seconds since the epoch."""
    return None if moment is None else float(moment.timestamp())


def parallel(given: dict[str, Any]) -> int | None:
    """How many steps may run at once, where it is said."""
    found = (given.get("ParallelismConfiguration") or {}).get("MaxParallelExecutionSteps")
    return None if found is None else int(found)


# -- keeping ----------------------------------------------------------------------------------------------------------


def create_pipeline(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreatePipeline."""
    name = given["PipelineName"]
    text = _definition(call, given)
    if text is None:
        raise AwsError("ValidationException", "PipelineDefinition or PipelineDefinitionS3Location is needed")
    try:
        pipelines.create(
            call.ctx,
            call.actor,
            spec=_compiled(call, name, text),
            definition=text,
            delivery=given["ClientRequestToken"],
            **_words(given),
        )
    except Conflict:
        raise AwsError(
            "ValidationException",
            "Pipeline names must be unique within an AWS account and region. Pipeline with name "
            f"({name}) already exists.",
        ) from None
    wanted = {tag["Key"]: tag["Value"] for tag in given.get("Tags") or ()}
    if wanted:
        tags.put(call.ctx, call.actor, noun="stored_pipeline", name=name, tags=wanted)
    return {"PipelineArn": pipeline_arn(call, name)}


def _words(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": given.get("PipelineDisplayName"),
        "description": given.get("PipelineDescription"),
        "role": given.get("RoleArn"),
        "max_parallel": parallel(given),
    }


def _definition(call: Call, given: dict[str, Any]) -> str | None:
    place = given.get("PipelineDefinitionS3Location")
    text: str | None = given.get("PipelineDefinition")
    if place is None:
        return text
    if text is not None:
        raise AwsError("ValidationException", "Give PipelineDefinition or PipelineDefinitionS3Location, not both")
    found, reader = objects.open_(call.ctx, place["Bucket"], place["ObjectKey"], place.get("VersionId"))
    with reader:
        if found["size_bytes"] > MAX_DEFINITION_BYTES:
            raise AwsError("ValidationException", f"A definition has at most {MAX_DEFINITION_BYTES} bytes")
        data = b"".join(reader)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise AwsError("ValidationException", "Unable to parse pipeline definition. It is not text.") from None


def _compiled(call: Call, name: str, text: str) -> dict[str, Any]:
    return definitions.compile_(text, name, call, stepkinds.KINDS)


def update_pipeline(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """UpdatePipeline: another definition is the next version."""
    name = name_of(given["PipelineName"])
    text = _definition(call, given)
    try:
        row = pipelines.update(
            call.ctx,
            call.actor,
            pipeline=name,
            spec=None if text is None else _compiled(call, name, text),
            definition=text,
            **_words(given),
        )
    except NotFound:
        raise absent(call, name) from None
    return {"PipelineArn": pipeline_arn(call, name), "PipelineVersionId": row["version"]}


def describe_pipeline(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribePipeline."""
    name = name_of(given["PipelineName"])
    try:
        row = pipelines.show(call.ctx, call.actor, pipeline=name, version=given.get("PipelineVersionId"))
    except NotFound:
        raise absent(call, name) from None
    return {
        **_told(call, row),
        "PipelineDefinition": row["definition"] or definitions.dump(row["spec"]),
        "PipelineStatus": "Active",
        "LastRunTime": row["last_started_at"],
        "CreatedBy": {"UserProfileName": row["created_by"]},
        "LastModifiedBy": {"UserProfileName": row["changed_by"]},
        "ParallelismConfiguration": row["max_parallel"] and {"MaxParallelExecutionSteps": row["max_parallel"]},
    }


def _told(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "PipelineArn": pipeline_arn(call, row["name"]),
        "PipelineName": row["name"],
        "PipelineDisplayName": row["title"] or row["name"],
        "PipelineDescription": row["description"],
        "RoleArn": row["role"],
        "CreationTime": row["created_at"],
        "LastModifiedTime": row["changed_at"],
    }


def list_pipelines(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListPipelines."""
    found = pipelines.list_(
        call.ctx,
        call.actor,
        prefix=given.get("PipelineNamePrefix") or "",
        created_from=seconds(given.get("CreatedAfter")),
        created_to=seconds(given.get("CreatedBefore")),
        order=ORDERS[given.get("SortBy") or "CreationTime"],
        descending=given.get("SortOrder") != "Ascending",
        limit=given.get("MaxResults") or DEFAULT_RESULTS,
        cursor=given.get("NextToken"),
    )
    summaries = [{**_told(call, row), "LastExecutionTime": row["last_started_at"]} for row in found["items"]]
    return {"PipelineSummaries": summaries, "NextToken": found["next"]}


def delete_pipeline(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeletePipeline."""
    name = name_of(given["PipelineName"])
    try:
        pipelines.delete(call.ctx, call.actor, pipeline=name)
    except NotFound:
        raise absent(call, name) from None
    except Conflict as error:
        raise AwsError("ConflictException", error.message) from None
    return {"PipelineArn": pipeline_arn(call, name)}


# -- starting ---------------------------------------------------------------------------------------------------------


def start_pipeline_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """StartPipelineExecution; the values of parameters are texts, which are read as their types."""
    name = name_of(given["PipelineName"])
    chosen = given.get("SelectiveExecutionConfig")
    source = (chosen or {}).get("SourcePipelineExecutionArn")
    try:
        row = pipelines.start(
            call.ctx,
            call.actor,
            pipeline=name,
            version=given.get("PipelineVersionId"),
            parameters={each["Name"]: each["Value"] for each in given.get("PipelineParameters") or ()},
            texts=True,
            title=given.get("PipelineExecutionDisplayName"),
            description=given.get("PipelineExecutionDescription"),
            max_parallel=parallel(given),
            steps=None if chosen is None else [each["StepName"] for each in chosen["SelectedSteps"]],
            source=None if source is None else reference(source)[1],
            delivery=given["ClientRequestToken"],
        )
    except NotFound as error:
        try:
            pipelines.show(call.ctx, call.actor, pipeline=name)
        except NotFound:
            raise absent(call, name) from None
        raise InvalidInput(error.message) from None
    return {"PipelineExecutionArn": execution_arn(call, row)}


def execution_arn(call: Call, row: dict[str, Any]) -> str:
    """The ARN of an execution; its last part is the id that loopline shows."""
    return f"{pipeline_arn(call, row['pipeline'])}/execution/{row['id']}"


def reference(text: str) -> tuple[str, str]:
    """(pipeline, execution's id) of an execution's ARN."""
    name, between, identifier = arns.parse(text, "sagemaker", "pipeline").name.partition("/execution/")
    if not between or not identifier:
        raise AwsError("ValidationException", f"{text!r} is not the ARN of a pipeline's execution")
    return name, identifier


OPERATIONS = {
    "CreatePipeline": Operation(create_pipeline, Permission.WRITE, definitions.PARTLY),
    "UpdatePipeline": Operation(update_pipeline, Permission.WRITE, definitions.PARTLY),
    "DescribePipeline": Operation(describe_pipeline, Permission.READ),
    "ListPipelines": Operation(list_pipelines, Permission.READ),
    "DeletePipeline": Operation(delete_pipeline, Permission.WRITE),
    "StartPipelineExecution": Operation(start_pipeline_execution, Permission.WRITE),
}
