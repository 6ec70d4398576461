"""CloudWatch's dashboards, stored and given back; what is wrong with one is said when it is put."""

from typing import Any

from loopline.control import dashboards
from loopline.domain import dashboards as rules
from loopline.domain.access import Permission
from loopline.errors import AwsError, InvalidInput
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call, Operation


def _arn(call: Call, name: str) -> str:
    """A dashboard is of no region."""
    return arns.make("cloudwatch", "", call.account, f"dashboard/{name}")


def put_dashboard(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Store one."""
    try:
        messages = rules.check(given["DashboardBody"])
    except InvalidInput as error:
        raise AwsError("InvalidParameterInput", error.message) from None
    dashboards.put(call.ctx, call.actor, name=given["DashboardName"], body=given["DashboardBody"])
    for message in messages:
        call.warn(f"{given['DashboardName']}{message.path}: {message.text}")
    return {"DashboardValidationMessages": [{"DataPath": each.path, "Message": each.text} for each in messages]}


def get_dashboard(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """One with its body."""
    row = dashboards.show(call.ctx, call.actor, name=given["DashboardName"])
    return {"DashboardArn": _arn(call, row["name"]), "DashboardBody": row["body"], "DashboardName": row["name"]}


def list_dashboards(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """By name."""
    found = dashboards.list_(
        call.ctx, call.actor, prefix=given.get("DashboardNamePrefix"), limit=1000, cursor=given.get("NextToken")
    )
    entries = [
        {
            "DashboardName": row["name"],
            "DashboardArn": _arn(call, row["name"]),
            "LastModified": row["changed_at"],
            "Size": row["size_bytes"],
        }
        for row in found["items"]
    ]
    return {"DashboardEntries": entries, "NextToken": found["next"]}


def delete_dashboards(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove all of those named, or none."""
    dashboards.delete(call.ctx, call.actor, dashboards=given["DashboardNames"])
    return {}


OPERATIONS = {
    "PutDashboard": Operation(put_dashboard, Permission.WRITE),
    "GetDashboard": Operation(get_dashboard, Permission.READ),
    "ListDashboards": Operation(list_dashboards, Permission.READ),
    "DeleteDashboards": Operation(delete_dashboards, Permission.WRITE),
}
