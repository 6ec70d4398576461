"""Tags of SageMaker's resources: those of the record that an ARN stands for."""

from typing import Any

from loopline.control import tags
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, InvalidInput, NotFound
from loopline.fronts.aws import arns, processing, programs, training, transform
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.groups import tag_values

# kind of an ARN -> noun; what stands here can be tagged once something of that kind can be made
NOUNS = {
    "model-package-group": "model",
    "model-package": "version",
    "model": "servable",
    "endpoint": "endpoint",
    "endpoint-config": "blueprint",
    "pipeline": "stored_pipeline",
}
JOBS = {"training-job": training.CONTRACT, "processing-job": processing.CONTRACT, "transform-job": transform.CONTRACT}


def _record(call: Call, text: str) -> tuple[str, str]:
    """(noun, name) of what an ARN stands for."""
    arn = arns.parse(text, "sagemaker")
    if arn.kind in JOBS:
        row = programs.show(call, JOBS[arn.kind], arn.name, _absent(text).message)
        return "script", row["id"]
    if arn.kind not in NOUNS:
        raise AwsError("ValidationException", f"loopline keeps no tags of a {arn.kind}: {text}")
    if arn.kind == "model-package":
        group, number = arns.package(text)
        return NOUNS[arn.kind], f"{group}:{number}"
    return NOUNS[arn.kind], arn.name


def _absent(text: str) -> AwsError:
    return AwsError("ValidationException", f"Could not find resource {text}. It does not exist.")


def _told(found: dict[str, Any]) -> list[dict[str, str]]:
    return [{"Key": each["key"], "Value": each["value"]} for each in found["items"]]


def add_tags(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """AddTags."""
    noun, name = _record(call, given["ResourceArn"])
    wanted = tag_values(given["Tags"])
    try:
        found = tags.put(call.ctx, call.actor, noun=noun, name=name, tags=wanted)
    except NotFound:
        raise _absent(given["ResourceArn"]) from None
    except Conflict as error:
        raise InvalidInput(error.message) from None
    return {"Tags": _told(found)}


def list_tags(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListTags: a page holds at least 50, and no record has more."""
    noun, name = _record(call, given["ResourceArn"])
    try:
        return {"Tags": _told(tags.list_(call.ctx, call.actor, noun=noun, name=name))}
    except NotFound:
        raise _absent(given["ResourceArn"]) from None


def delete_tags(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteTags."""
    noun, name = _record(call, given["ResourceArn"])
    try:
        tags.delete(call.ctx, call.actor, noun=noun, name=name, keys=given["TagKeys"])
    except NotFound:
        raise _absent(given["ResourceArn"]) from None
    return {}


OPERATIONS = {
    "AddTags": Operation(add_tags, Permission.WRITE),
    "ListTags": Operation(list_tags, Permission.READ),
    "DeleteTags": Operation(delete_tags, Permission.WRITE),
}
