"""What a role may do, asked without doing it: SimulatePrincipalPolicy.

Loopline's roles decide, as they do when the call itself comes; policies that were kept with a name decide nothing. The
SageMaker SDK 3 asks this of a role before it starts anything under it.
"""

from collections.abc import Mapping
from typing import Any

from loopline.control import role_aliases
from loopline.domain import access
from loopline.domain.access import Permission
from loopline.fronts.aws import arns, iam
from loopline.fronts.aws.call import Call, Operation

# An action is called SERVICE:NAME; these services share a prefix with another, and these actions are not called like
# the operations that they allow (Service Authorization Reference, "Actions defined by Amazon S3").
SERVICES = {"sagemaker": ("sagemaker", "sagemaker-runtime")}
OPERATIONS_OF = {
    "s3:ListBucket": "ListObjectsV2",
    "s3:ListAllMyBuckets": "ListBuckets",
    "s3:ListBucketVersions": "ListObjectVersions",
    "s3:ListBucketMultipartUploads": "ListMultipartUploads",
    "s3:ListMultipartUploadParts": "ListParts",
    "s3:GetObjectVersion": "GetObject",
    "s3:DeleteObjectVersion": "DeleteObject",
}
INVOKE = "sagemaker:InvokeEndpoint"  # which gateways answer
_IGNORED = ("PolicyInputList", "PermissionsBoundaryPolicyInputList", "ResourcePolicy")

Table = Mapping[str, Mapping[str, Operation]]


def _needed(table: Table, action: str) -> Permission:
    """What a role needs for an action. Nothing here stands behind one that no operation answers, such as pulling an
    image or a network interface: it is part of running a program."""
    service, _, name = action.partition(":")
    if action == INVOKE:
        return Permission.INVOKE
    for called in SERVICES.get(service, (service,)):
        operation = table.get(called, {}).get(OPERATIONS_OF.get(action, name))
        if operation is not None:
            return operation.permission
    return Permission.WRITE


def _simulate(table: Table, call: Call, given: dict[str, Any]) -> dict[str, Any]:
    source = arns.parse(given["PolicySourceArn"], "iam")
    name = source.name.rpartition("/")[2]
    row = role_aliases.show(call.ctx, call.actor, name=name)
    for member in _IGNORED:
        if given.get(member):
            call.warn(f"{member} has no effect here: loopline's roles decide")
    may = access.ROLES[row["role"]]
    results = [
        {
            "EvalActionName": action,
            "EvalResourceName": resource,
            "EvalDecision": "allowed" if _needed(table, action) in may | {Permission.PUBLIC} else "implicitDeny",
            "MatchedStatements": [],
            "MissingContextValues": [],
        }
        for action in given["ActionNames"]
        for resource in given.get("ResourceArns") or ["*"]
    ]
    return iam.page("EvaluationResults", results, given)


def operations(table: Table) -> dict[str, Operation]:
    """The operation's line; ``table``: what is served, which the answer rests on."""

    def simulate_principal_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
        return _simulate(table, call, given)

    partly = "of roles; loopline's roles decide, kept policies do not, and resources make no difference"
    return {"SimulatePrincipalPolicy": Operation(simulate_principal_policy, Permission.READ, partly)}
