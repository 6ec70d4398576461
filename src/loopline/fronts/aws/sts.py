"""Who the caller is, and roles taken for a while."""

from typing import Any

from loopline.control import access_keys, role_aliases
from loopline.domain.access import Permission
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call, Operation


def _user(call: Call, key: str | None, role: str, session: str) -> dict[str, Any]:
    return {
        "AssumedRoleId": f"{key or 'unsigned'}:{session}",
        "Arn": arns.make("sts", "", call.account, f"assumed-role/{role}/{session}"),
    }


def get_caller_identity(call: Call, _given: dict[str, Any]) -> dict[str, Any]:
    """An assumed role: what the SDK's ``get_execution_role`` takes for one that jobs may have."""
    user = _user(call, call.actor.key, call.role, call.session)
    return {"UserId": user["AssumedRoleId"], "Account": call.account, "Arn": user["Arn"]}


def assume_role(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A temporary key; a role that may more than the caller is refused."""
    name = arns.parse(given["RoleArn"], "iam", "role").resource.rpartition("/")[2]
    lent = role_aliases.assume(
        call.ctx, call.actor, name=name, session=given["RoleSessionName"], seconds=given.get("DurationSeconds", 3600)
    )
    return {
        "Credentials": {
            "AccessKeyId": lent["id"],
            "SecretAccessKey": lent["secret_key"],
            "SessionToken": lent["token"],
            "Expiration": lent["expires_at"],
        },
        "AssumedRoleUser": _user(call, lent["id"], name, given["RoleSessionName"]),
    }


def get_session_token(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A temporary key with the caller's own role."""
    lent = access_keys.lend(
        call.ctx,
        call.actor,
        alias=call.role,
        role=call.actor.role,
        session=call.session,
        seconds=given.get("DurationSeconds", 12 * 3600),
    )
    return {
        "Credentials": {
            "AccessKeyId": lent["id"],
            "SecretAccessKey": lent["secret_key"],
            "SessionToken": lent["token"],
            "Expiration": lent["expires_at"],
        }
    }


OPERATIONS = {
    "GetCallerIdentity": Operation(get_caller_identity, Permission.PUBLIC),
    "AssumeRole": Operation(assume_role, Permission.PUBLIC, "session policies and tags are not read"),
    "GetSessionToken": Operation(get_session_token, Permission.PUBLIC),
}
