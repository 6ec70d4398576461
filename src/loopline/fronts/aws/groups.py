"""Model package groups: registered models. One that a client makes has an advisory gate, because a script that
approves and deploys is to go on as it does on AWS; a doubt about a version is said wherever it is shown."""

from typing import Any

from loopline.control import registry, tags, versions
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws import arns, models
from loopline.fronts.aws.call import Call, Operation

GATE_MODE = "advisory"
DEFAULT_RESULTS = 100
ORDERS = {"Name": "name", "CreationTime": "created"}


def group_arn(call: Call, name: str) -> str:
    """The ARN of a group."""
    return call.arn("sagemaker", f"model-package-group/{name}")


def group_name(text: str) -> str:
    """The name that a member means which takes a name or an ARN."""
    return arns.name_of(text, "sagemaker", "model-package-group")


def absent(call: Call, name: str) -> AwsError:
    """What AWS says of a group that is not there."""
    return AwsError("ValidationException", f"ModelPackageGroup {group_arn(call, name)} does not exist.")


def tag_values(given: list[dict[str, str]] | None) -> dict[str, str]:
    """Tags as AWS lists them, by key. Raises ``AwsError`` for keys that are AWS's own."""
    found = {each["Key"]: each["Value"] for each in given or ()}
    for key in found:
        if key.lower().startswith("aws:"):
            raise AwsError("ValidationException", f"Tag keys that begin with aws: are reserved for AWS: {key!r}")
    tags.check(found)
    return found


def listed(order: str | None, direction: str | None) -> str:
    """The native order for SortBy and SortOrder."""
    found = ORDERS[order or "CreationTime"]
    return found if direction == "Ascending" else f"-{found}"


def seconds(moment: Any) -> float | None:
    """A timestamp as seconds since the epoch."""
    return None if moment is None else float(moment.timestamp())


def fitting(shape: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a shape of SageMaker's has of what is known."""
    members = models.service("sagemaker").model.shape_for(shape).members
    return {key: value for key, value in found.items() if key in members}


def told(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A group as its description has it."""
    return {
        "ModelPackageGroupName": row["name"],
        "ModelPackageGroupArn": group_arn(call, row["name"]),
        "ModelPackageGroupDescription": row["description"] or None,
        "CreationTime": row["created_at"],
        "ModelPackageGroupStatus": "Completed",
        "CreatedBy": {"UserProfileName": row["created_by"]},
    }


def create_model_package_group(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateModelPackageGroup."""
    name = given["ModelPackageGroupName"]
    wanted = tag_values(given.get("Tags"))
    try:
        registry.create_model(
            call.ctx,
            call.actor,
            name=name,
            gate_mode=GATE_MODE,
            description=given.get("ModelPackageGroupDescription") or "",
        )
    except Conflict:
        text = f"Model Package Group already exists: {group_arn(call, name)}"
        raise AwsError("ValidationException", text) from None
    if wanted:
        tags.put(call.ctx, call.actor, noun="model", name=name, tags=wanted)
    return {"ModelPackageGroupArn": group_arn(call, name)}


def describe_model_package_group(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeModelPackageGroup."""
    name = group_name(given["ModelPackageGroupName"])
    try:
        return told(call, registry.show_model(call.ctx, call.actor, model=name))
    except NotFound:
        raise absent(call, name) from None


def list_model_package_groups(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListModelPackageGroups."""
    found = registry.list_models(
        call.ctx,
        call.actor,
        contains=given.get("NameContains"),
        start=seconds(given.get("CreationTimeAfter")),
        end=seconds(given.get("CreationTimeBefore")),
        order=listed(given.get("SortBy"), given.get("SortOrder")),
        limit=given.get("MaxResults") or DEFAULT_RESULTS,
        cursor=given.get("NextToken"),
    )
    shown = [fitting("ModelPackageGroupSummary", told(call, row)) for row in found["items"]]
    return {"ModelPackageGroupSummaryList": shown, "NextToken": found["next"]}


def delete_model_package_group(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteModelPackageGroup."""
    name = group_name(given["ModelPackageGroupName"])
    try:
        versions.delete_model(call.ctx, call.actor, model=name)
    except NotFound:
        raise absent(call, name) from None
    except Conflict as error:
        raise AwsError("ConflictException", error.message) from None
    return {}


OPERATIONS = {
    "CreateModelPackageGroup": Operation(create_model_package_group, Permission.WRITE),
    "DescribeModelPackageGroup": Operation(describe_model_package_group, Permission.READ),
    "ListModelPackageGroups": Operation(list_model_package_groups, Permission.READ),
    "DeleteModelPackageGroup": Operation(delete_model_package_group, Permission.APPROVE),
}
