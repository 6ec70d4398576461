"""What training, processing and transform jobs have in common: how a job stands, the list of them, what is warned of.

A job is a script of loopline.
"""

from collections.abc import Callable, Mapping
from typing import Any

from loopline.control import scripts, tags
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws.call import Call

USUAL_RESULTS = 10  # as AWS does
DEFAULT_SECONDS = 86400
MAX_REASON = 1024
ENDED = {"Succeeded": "Completed", "Failed": "Failed", "Stopped": "Stopped", "Skipped": "Stopped"}
NATIVE = {
    "InProgress": ["Pending", "Running"],
    "Stopping": ["Pending", "Running"],
    "Completed": ["Succeeded"],
    "Failed": ["Failed"],
    "Stopped": ["Stopped", "Failed"],
}
SORTS = {"Name": "name", "Status": "status"}


def refuse(given: Mapping[str, Any], *members: str) -> None:
    """Raise for members that say what happens, and would not."""
    for member in members:
        if given.get(member):
            raise AwsError("ValidationException", f"Not supported by loopline: {member}")


def warn(call: Call, given: Mapping[str, Any], *members: str) -> None:
    """Say of members that they change nothing here."""
    for member in members:
        if given.get(member):
            call.warn(f"{member} has no effect here")


def submit(call: Call, name: str, settings: dict[str, Any], given: dict[str, Any], taken: str) -> None:
    """Start a job; ``taken``: what AWS says when there is one of that name."""
    kept = {key: value for key, value in given.items() if key != "Tags"}
    wanted = {tag["Key"]: tag["Value"] for tag in given.get("Tags") or ()}
    tags.check(wanted)
    try:
        row = scripts.submit(call.ctx, call.actor, name=name, settings=settings, given=kept)
    except Conflict:
        raise AwsError("ResourceInUse", taken) from None
    tags.put(call.ctx, call.actor, noun="script", name=row["id"], tags=wanted)
    for text in row["warnings"]:
        call.warn(text)


def show(call: Call, contract: str, name: str, absent: str) -> dict[str, Any]:
    """A job; ``absent``: what AWS says when there is none."""
    try:
        return scripts.show(call.ctx, call.actor, contract=contract, name=name)
    except NotFound:
        raise AwsError("ValidationException", absent) from None


def stop(call: Call, contract: str, name: str, absent: str) -> dict[str, Any]:
    """StopTrainingJob, StopProcessingJob and StopTransformJob."""
    row = show(call, contract, name, absent)
    if row["ended_at"] is not None:
        text = f"The request was rejected because the {contract} job is in status {status(row)}."
        raise AwsError("ValidationException", text)
    try:
        scripts.stop(call.ctx, call.actor, contract=contract, name=name)
    except Conflict as error:
        raise AwsError("ValidationException", error.message) from None
    return {}


def delete(call: Call, contract: str, name: str, absent: str) -> dict[str, Any]:
    """DeleteTrainingJob and DeleteProcessingJob."""
    row = show(call, contract, name, absent)
    try:
        scripts.delete(call.ctx, call.actor, contract=contract, name=name)
    except Conflict:
        text = f"The {contract} job {name} is in status {status(row)}: only a job that is over can be deleted"
        raise AwsError("ResourceInUse", text) from None
    return {}


def status(row: Mapping[str, Any]) -> str:
    """InProgress, Stopping, Completed, Failed or Stopped; a program that ran too long counts as Stopped."""
    if row["status"] in ENDED:
        return "Stopped" if row["ended_by"] == "timeout" else ENDED[row["status"]]
    return "Stopping" if "Stopping" in (row["phase"], row["execution_status"]) else "InProgress"


def failure(row: Mapping[str, Any]) -> str | None:
    """Why a job failed, as AWS words it: ClientError before the program began, AlgorithmError of the program."""
    if status(row) != "Failed" or not row["reason"]:
        return None
    kind = "ClientError" if row["job"] is None else "AlgorithmError"
    text = row["reason"]
    return (text if text.startswith(("AlgorithmError:", "ClientError:")) else f"{kind}: {text}")[:MAX_REASON]


def changed_at(row: Mapping[str, Any]) -> float:
    """When a job last changed."""
    return float(row["ended_at"] or row["job_ended_at"] or row["job_started_at"] or row["created_at"])


def page(
    call: Call,
    given: Mapping[str, Any],
    contract: str,
    member: str,
    summary: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """ListTrainingJobs, ListProcessingJobs and ListTransformJobs."""
    wanted = given.get("StatusEquals")

    def at(key: str) -> float | None:
        return given[key].timestamp() if given.get(key) else None

    found = scripts.list_(
        call.ctx,
        call.actor,
        contract=contract,
        status=None if wanted is None else NATIVE.get(wanted, []),
        contains=given.get("NameContains"),
        created_from=at("CreationTimeAfter"),
        created_to=at("CreationTimeBefore"),
        changed_from=at("LastModifiedTimeAfter"),
        changed_to=at("LastModifiedTimeBefore"),
        order=SORTS.get(given.get("SortBy") or "", "created"),
        descending=given.get("SortOrder", "Descending") != "Ascending",
        limit=int(given.get("MaxResults") or USUAL_RESULTS),
        cursor=given.get("NextToken"),
    )
    rows = [row for row in found["items"] if wanted in (None, status(row))]
    return {member: [summary(row) for row in rows], "NextToken": found["next"]}


def seconds(given: Mapping[str, Any]) -> Any:
    """How long a program may run."""
    return (given.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds") or DEFAULT_SECONDS


def chosen(*members: tuple[str, Any]) -> dict[str, Any]:
    """Settings without those that nothing was said about."""
    return {name: value for name, value in members if value not in (None, "", [], {})}
