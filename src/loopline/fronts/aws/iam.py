"""Roles by their IAM names. A name stands for a role of loopline; policies are kept and shown, and decide nothing."""

import json
from typing import Any
from urllib.parse import quote

from loopline.control import role_aliases
from loopline.domain import access
from loopline.domain.access import Permission
from loopline.errors import AwsError, InvalidInput, NotFound
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call, Operation

ROLE_TAG = "loopline:role"  # of CreateRole: which of loopline's roles the name stands for
PAGE = 100
# Of a role that came without a document: jobs may be started under every name. The SageMaker SDK 3 looks for this.
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def _role(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "Path": row["path"],
        "RoleName": row["name"],
        "RoleId": row["id"].replace("_", "").upper().ljust(16, "0"),
        "Arn": arns.make("iam", "", call.account, f"role{row['path']}{row['name']}"),
        "CreateDate": row["created_at"],
        "AssumeRolePolicyDocument": quote(json.dumps(row["trust"] or TRUST)),
        "Description": row["description"],
        "MaxSessionDuration": 12 * 3600,
        "Tags": [{"Key": ROLE_TAG, "Value": row["role"]}],
    }


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AwsError("MalformedPolicyDocument", "the policy document is not a JSON object")
    return found


def get_role(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A role by its name."""
    return {"Role": _role(call, role_aliases.show(call.ctx, call.actor, name=given["RoleName"]))}


def create_role(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Another name for a role of loopline: the one that the tag ``loopline:role`` says, else the caller's own, at most
    editor."""
    said = {tag["Key"]: tag["Value"] for tag in given.get("Tags", ())}.get(ROLE_TAG)
    own = call.actor.role
    row = role_aliases.create(
        call.ctx,
        call.actor,
        name=given["RoleName"],
        role=said or ("editor" if access.ROLES["editor"] <= access.ROLES[own] else own),
        path=given.get("Path", "/"),
        description=given.get("Description"),
        trust=_document(given["AssumeRolePolicyDocument"]),
    )
    return {"Role": _role(call, row)}


def delete_role(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove a name."""
    role_aliases.delete(call.ctx, call.actor, name=given["RoleName"])
    return {}


def list_roles(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """All names, by pages."""
    prefix = given.get("PathPrefix", "/")
    rows = [row for row in role_aliases.list_(call.ctx, call.actor)["items"] if row["path"].startswith(prefix)]
    return page("Roles", [_role(call, row) for row in rows], given)


def page(name: str, items: list[Any], given: dict[str, Any]) -> dict[str, Any]:
    """The part of a list that ``Marker`` and ``MaxItems`` ask for."""
    try:
        start = int(given.get("Marker", "0"))
    except ValueError:
        raise InvalidInput("Marker is not one that a list gave") from None
    end = start + min(given.get("MaxItems", PAGE), 1000)
    more = end < len(items)
    return {name: items[start:end], "IsTruncated": more, "Marker": str(end) if more else None}


def put_role_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Keep a policy."""
    document = _document(given["PolicyDocument"])
    role_aliases.set_policy(call.ctx, call.actor, name=given["RoleName"], policy=given["PolicyName"], document=document)
    return {}


def get_role_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A policy that was kept."""
    row = role_aliases.show(call.ctx, call.actor, name=given["RoleName"])
    found = (row["policies"] or {}).get(given["PolicyName"])
    if found is None:
        raise NotFound(f"The role policy with name {given['PolicyName']} cannot be found.")
    return {
        "RoleName": row["name"],
        "PolicyName": given["PolicyName"],
        "PolicyDocument": quote(json.dumps(found)),
    }


def delete_role_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove a policy."""
    role_aliases.set_policy(call.ctx, call.actor, name=given["RoleName"], policy=given["PolicyName"], document=None)
    return {}


def list_role_policies(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The names of the policies that were kept."""
    row = role_aliases.show(call.ctx, call.actor, name=given["RoleName"])
    return page("PolicyNames", sorted(row["policies"] or {}), given)


def attach_role_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Note a managed policy."""
    role_aliases.attach(call.ctx, call.actor, name=given["RoleName"], policy=given["PolicyArn"], attached=True)
    return {}


def detach_role_policy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Note it no longer."""
    role_aliases.attach(call.ctx, call.actor, name=given["RoleName"], policy=given["PolicyArn"], attached=False)
    return {}


def list_attached_role_policies(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The managed policies that were noted."""
    row = role_aliases.show(call.ctx, call.actor, name=given["RoleName"])
    found = [{"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in row["attached"] or ()]
    return page("AttachedPolicies", found, given)


_SHOWN = "kept and shown; loopline's roles decide"

OPERATIONS = {
    "AttachRolePolicy": Operation(attach_role_policy, Permission.WRITE, _SHOWN),
    "CreateRole": Operation(create_role, Permission.WRITE, f"the tag {ROLE_TAG} says which of loopline's roles it is"),
    "DeleteRole": Operation(delete_role, Permission.WRITE),
    "DeleteRolePolicy": Operation(delete_role_policy, Permission.WRITE),
    "DetachRolePolicy": Operation(detach_role_policy, Permission.WRITE),
    "GetRole": Operation(get_role, Permission.READ),
    "GetRolePolicy": Operation(get_role_policy, Permission.READ),
    "ListAttachedRolePolicies": Operation(list_attached_role_policies, Permission.READ),
    "ListRolePolicies": Operation(list_role_policies, Permission.READ),
    "ListRoles": Operation(list_roles, Permission.READ),
    "PutRolePolicy": Operation(put_role_policy, Permission.WRITE, _SHOWN),
}
