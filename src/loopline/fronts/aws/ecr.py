"""Repositories of images, as names: an image is never fetched or kept, its name alone chooses packages."""

from typing import Any

from loopline.control import images
from loopline.domain.access import Permission
from loopline.errors import AwsError
from loopline.fronts.aws.call import Call, Operation

_NAMES_ONLY = "a name for packages; no image is pushed or pulled"


def _repository(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "repositoryArn": call.arn("ecr", f"repository/{row['name']}"),
        "registryId": call.account,
        "repositoryName": row["name"],
        "repositoryUri": f"{call.account}.dkr.ecr.{call.region}.amazonaws.com/{row['name']}",
        "createdAt": row["created_at"],
        "imageTagMutability": "MUTABLE",
    }


def create_repository(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Let an image have a name, with the packages that stand for it; ``loopline images set`` gives it others."""
    return {"repository": _repository(call, images.name(call.ctx, call.actor, image=given["repositoryName"]))}


def describe_repositories(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The names that were given here."""
    own = {row["name"]: row for row in images.list_(call.ctx, call.actor)["items"] if row["own"]}
    names = given.get("repositoryNames") or sorted(own)
    missing = [name for name in names if name not in own]
    if missing:
        raise AwsError("RepositoryNotFoundException", f"The repository with name '{missing[0]}' does not exist here")
    return {"repositories": [_repository(call, own[name]) for name in names]}


def delete_repository(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Forget a name and its packages."""
    return {"repository": _repository(call, images.delete(call.ctx, call.actor, image=given["repositoryName"]))}


OPERATIONS = {
    "CreateRepository": Operation(create_repository, Permission.WRITE, _NAMES_ONLY),
    "DeleteRepository": Operation(delete_repository, Permission.WRITE, _NAMES_ONLY),
    "DescribeRepositories": Operation(describe_repositories, Permission.READ, "all on one page"),
}
