"""Executions of SageMaker's pipelines, and their steps."""

from typing import Any

from loopline.control import executions, pipelines
from loopline.domain import calls, states
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, LooplineError, NotFound
from loopline.fronts.aws import definitions
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.pipelines import (
    DEFAULT_RESULTS,
    absent,
    execution_arn,
    name_of,
    parallel,
    pipeline_arn,
    reference,
    seconds,
)

_JOBS = {
    "training": ("TrainingJob", "training-job"),
    "processing": ("ProcessingJob", "processing-job"),
    "transform": ("TransformJob", "transform-job"),
}
_STEP_STATUS = {"Running": "Executing"}
_MAX_STEPS = 100
MAX_REASON = 1024


def _row(call: Call, arn: str) -> dict[str, Any]:
    """The execution that an ARN names, with its steps."""
    pipeline, identifier = reference(arn)
    try:
        row = executions.show(call.ctx, call.actor, execution=identifier)
    except NotFound:
        row = {}
    if row.get("pipeline") != pipeline or row["project"] != pipelines.NO_PROJECT:
        raise AwsError("ResourceNotFound", f"Pipeline execution '{arn}' does not exist.")
    return row


def _status(status: str) -> str:
    return {"Pending": "Executing", "Running": "Executing"}.get(status, status)


def describe_pipeline_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribePipelineExecution."""
    row = _row(call, given["PipelineExecutionArn"])
    words, chosen = row["trigger"] or {}, row["selection"]
    changed = [row["created_at"], *(s[key] for s in row["steps"] for key in ("started_at", "ended_at"))]
    found = {
        "PipelineArn": pipeline_arn(call, row["pipeline"]),
        "PipelineExecutionArn": execution_arn(call, row),
        "PipelineExecutionDisplayName": words.get("title") or row["id"],
        "PipelineExecutionStatus": _status(row["status"]),
        "PipelineExecutionDescription": words.get("description"),
        "PipelineExperimentConfig": {"ExperimentName": row["pipeline"], "TrialName": row["id"]},
        "FailureReason": _reason(row),
        "CreationTime": row["created_at"],
        "LastModifiedTime": max(at for at in (*changed, row["ended_at"]) if at is not None),
        "CreatedBy": {"UserProfileName": row["by"]},
        "LastModifiedBy": {"UserProfileName": row["by"]},
        "ParallelismConfiguration": {"MaxParallelExecutionSteps": row["max_parallel"]},
        "PipelineVersionId": row["pipeline_version"],
    }
    if chosen is not None:
        found["SelectiveExecutionConfig"] = {
            "SourcePipelineExecutionArn": execution_arn(call, {**row, "id": chosen["source"]}),
            "SelectedSteps": [{"StepName": name} for name in chosen["steps"]],
        }
    return found


def _reason(row: dict[str, Any]) -> str | None:
    return (row["reason"] or "")[:MAX_REASON] or None if row["status"] == "Failed" else None


def list_pipeline_executions(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListPipelineExecutions, newest first."""
    name = name_of(given["PipelineName"])
    try:
        pipelines.show(call.ctx, call.actor, pipeline=name)
    except NotFound:
        raise absent(call, name) from None
    found = executions.list_(
        call.ctx,
        call.actor,
        project=pipelines.NO_PROJECT,
        pipeline=name,
        created_from=seconds(given.get("CreatedAfter")),
        created_to=seconds(given.get("CreatedBefore")),
        ascending=given.get("SortOrder") == "Ascending",
        limit=given.get("MaxResults") or DEFAULT_RESULTS,
        cursor=given.get("NextToken"),
    )
    return {
        "PipelineExecutionSummaries": [_summary(call, row) for row in found["items"]],
        "NextToken": found["next"],
    }


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    words = row["trigger"] or {}
    return {
        "PipelineExecutionArn": execution_arn(call, row),
        "StartTime": row["created_at"],
        "PipelineExecutionStatus": _status(row["status"]),
        "PipelineExecutionDescription": words.get("description"),
        "PipelineExecutionDisplayName": words.get("title") or row["id"],
        "PipelineExecutionFailureReason": _reason(row),
    }


def stop_pipeline_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """StopPipelineExecution; one that is stopping already goes on stopping."""
    row = _row(call, given["PipelineExecutionArn"])
    if row["status"] != "Stopping":
        try:
            executions.stop(call.ctx, call.actor, execution=row["id"])
        except Conflict as error:
            raise AwsError(
                "ValidationException", f"The pipeline execution cannot be stopped: {error.message}"
            ) from None
    return {"PipelineExecutionArn": given["PipelineExecutionArn"]}


def update_pipeline_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """UpdatePipelineExecution."""
    row = _row(call, given["PipelineExecutionArn"])
    executions.update(
        call.ctx,
        call.actor,
        execution=row["id"],
        title=given.get("PipelineExecutionDisplayName"),
        description=given.get("PipelineExecutionDescription"),
        max_parallel=parallel(given),
    )
    return {"PipelineExecutionArn": given["PipelineExecutionArn"]}


def retry_pipeline_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """RetryPipelineExecution: what succeeded keeps its results."""
    row = _row(call, given["PipelineExecutionArn"])
    try:
        executions.retry(
            call.ctx,
            call.actor,
            execution=row["id"],
            max_parallel=parallel(given),
            delivery=given["ClientRequestToken"],
        )
    except Conflict as error:
        raise AwsError("ValidationException", f"The pipeline execution cannot be retried: {error.message}") from None
    return {"PipelineExecutionArn": given["PipelineExecutionArn"]}


def list_pipeline_parameters_for_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListPipelineParametersForExecution: those that were given, and the defaults of the others."""
    row = _row(call, given["PipelineExecutionArn"])
    items = [{"Name": name, "Value": calls.as_text(value)} for name, value in sorted(row["parameters"].items())]
    page, following = _page(items, given)
    return {"PipelineParameters": page, "NextToken": following}


def _page(items: list[dict[str, Any]], given: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    text = given.get("NextToken") or "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise AwsError("ValidationException", f"{text!r} is no NextToken that a list gave")
    offset, limit = int(text), given.get("MaxResults") or _MAX_STEPS
    following = offset + limit
    return items[offset:following], str(following) if following < len(items) else None


def describe_pipeline_definition_for_execution(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribePipelineDefinitionForExecution: as it was when the execution began."""
    row = _row(call, given["PipelineExecutionArn"])
    found = pipelines.of_execution(call.ctx, call.actor, execution=row["id"])
    text = found["definition"] or definitions.dump(found["spec"])
    return {"PipelineDefinition": text, "CreationTime": found["created_at"]}


# -- steps ------------------------------------------------------------------------------------------------------------


def list_pipeline_execution_steps(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListPipelineExecutionSteps: those that have begun, the last first unless said."""
    if not given.get("PipelineExecutionArn"):
        raise AwsError("ValidationException", "PipelineExecutionArn is needed")
    row = _row(call, given["PipelineExecutionArn"])
    found = pipelines.of_execution(call.ctx, call.actor, execution=row["id"])
    actions = {step["name"]: step.get("action") for step in found["spec"]["steps"]}
    words = _words(found["definition"])
    begun = [step for step in row["steps"] if step["started_at"] is not None and step["status"] != "Skipped"]
    begun.sort(key=lambda step: (step["started_at"], step["position"]), reverse=given.get("SortOrder") != "Ascending")
    page, following = _page(begun, given)
    items = [_told(call, row, step, actions[step["name"]], words.get(step["name"]) or {}) for step in page]
    return {"PipelineExecutionSteps": items, "NextToken": following}


def _words(definition: str | None) -> dict[str, dict[str, Any]]:
    """What the steps are called, and said to be, where somebody wrote it."""
    if definition is None:
        return {}
    try:
        return {step["Name"]: step for step in definitions.steps_of(definitions.parse(definition))}
    except LooplineError:
        return {}


def _told(
    call: Call, execution: dict[str, Any], step: dict[str, Any], action: str | None, words: dict[str, Any]
) -> dict[str, Any]:
    stopping = execution["status"] == "Stopping" and step["status"] == "Running"
    found: dict[str, Any] = {
        "StepName": step["name"],
        "StepDisplayName": words.get("DisplayName") or step["name"],
        "StepDescription": words.get("Description"),
        "StartTime": step["started_at"],
        "EndTime": step["ended_at"],
        "StepStatus": "Stopping" if stopping else _STEP_STATUS.get(step["status"], step["status"]),
        "FailureReason": (step["reason"] or "")[:MAX_REASON] if step["status"] == "Failed" else None,
        "Metadata": _metadata(call, step, action),
        "AttemptCount": max(1, step["tries"]),
    }
    if step["cached_from"]:
        chosen = execution["selection"]
        member = "CacheHitResult" if chosen is None or step["name"] in chosen["steps"] else "SelectiveExecutionResult"
        origin = execution_arn(call, executions.show(call.ctx, call.actor, execution=step["cached_from"]))
        found[member] = {"SourcePipelineExecutionArn": origin}
    return found


def _metadata(call: Call, step: dict[str, Any], action: str | None) -> dict[str, Any] | None:
    kind, over = step["kind"], states.is_terminal("step", step["status"])
    result = ((step["outputs"] or {}).get("result") or {}).get("value") if over else None
    if kind == "condition":
        return {"Condition": {"Outcome": "True" if result else "False"}} if result is not None else None
    if kind == "fail":
        return {"Fail": {"ErrorMessage": step["reason"] or ""}}
    if kind == "script":
        job = step["script"] or result
        if not job:
            return None
        member, resource = _JOBS[job["contract"]]
        return {member: {"Arn": call.arn("sagemaker", f"{resource}/{job['name']}")}}
    if kind != "action" or not result:
        return None
    resources = {
        "servable.create": ("Model", f"model/{result['name']}"),
        "version.register": ("RegisterModel", f"model-package/{result['name']}/{result.get('version')}"),
        "blueprint.create": ("EndpointConfig", f"endpoint-config/{result['name']}"),
        "endpoint.bring": ("Endpoint", f"endpoint/{result['name']}"),
    }
    member, resource = resources[str(action)]
    return {member: {"Arn": call.arn("sagemaker", resource)}}


OPERATIONS = {
    "DescribePipelineExecution": Operation(describe_pipeline_execution, Permission.READ),
    "ListPipelineExecutions": Operation(list_pipeline_executions, Permission.READ),
    "StopPipelineExecution": Operation(stop_pipeline_execution, Permission.WRITE),
    "UpdatePipelineExecution": Operation(update_pipeline_execution, Permission.WRITE),
    "RetryPipelineExecution": Operation(retry_pipeline_execution, Permission.WRITE),
    "ListPipelineParametersForExecution": Operation(list_pipeline_parameters_for_execution, Permission.READ),
    "DescribePipelineDefinitionForExecution": Operation(describe_pipeline_definition_for_execution, Permission.READ),
    "ListPipelineExecutionSteps": Operation(list_pipeline_execution_steps, Permission.READ),
}
