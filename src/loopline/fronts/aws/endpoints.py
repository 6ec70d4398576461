"""SageMaker's endpoints: an Endpoint is an endpoint that is brought from one blueprint to the next by rollouts.

Texts that the SageMaker SDK reads: "Could not find" and "Cannot create already existing endpoint".
"""

import math
from typing import Any

from loopline.control import blueprints, endpoints, rollouts, servables, tags, weights
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws import blueprints as configurations
from loopline.fronts.aws import hosted
from loopline.fronts.aws import servables as models
from loopline.fronts.aws.call import Call, Operation

Row = dict[str, Any]

SETTINGS = {"auth": True, "deploy_on_approval": False, "timeout_seconds": 60}  # as of AWS's real-time endpoints
_TURNED = ("RolledBack", "RollingBack", "Failed")


def arn_of(call: Call, name: str) -> str:
    """The ARN of an endpoint."""
    return call.arn("sagemaker", f"endpoint/{name}")


def unfound(call: Call, name: str) -> AwsError:
    """What is said of an endpoint that is not there."""
    return AwsError("ValidationException", f'Could not find endpoint "{arn_of(call, name)}".')


# -- making and moving ------------------------------------------------------------------------------------------------


def create_endpoint(call: Call, given: Row) -> Row:
    """CreateEndpoint."""
    name, wanted = given["EndpointName"], given["EndpointConfigName"]
    if given.get("DeploymentConfig"):
        call.warn("DeploymentConfig: a new endpoint has no traffic to move; it counts for updates that say one")
    try:
        blueprints.start(call.ctx, call.actor, endpoint=name, blueprint=wanted, settings=SETTINGS)
    except NotFound as error:
        raise _unfound_part(call, wanted, error) from error
    except Conflict as error:
        if not _is_there(call, name):
            raise AwsError("ValidationException", error.message) from error
        text = f'Cannot create already existing endpoint "{arn_of(call, name)}".'
        raise AwsError("ValidationException", text) from error
    tags.put(call.ctx, call.actor, noun="endpoint", name=name, tags=models.tags_of(given))
    return {"EndpointArn": arn_of(call, name)}


def _is_there(call: Call, name: str) -> bool:
    try:
        endpoints.show(call.ctx, call.actor, endpoint=name)
    except NotFound:
        return False
    return True


def _unfound_part(call: Call, blueprint: str, error: NotFound) -> AwsError:
    if repr(blueprint) in error.message:
        return configurations.unfound(call, blueprint)
    return AwsError("ValidationException", f"Could not find what the configuration names: {error.message}")


def update_endpoint(call: Call, given: Row) -> Row:
    """UpdateEndpoint."""
    name, wanted = given["EndpointName"], given["EndpointConfigName"]
    row = _shown(call, name)
    _refuse_busy(call, row)
    policy = given.get("DeploymentConfig")
    if policy is None and given.get("RetainDeploymentConfig"):
        policy = _last_policy(call, name)
    if ((policy or {}).get("RollingUpdatePolicy") or {}).get("RollbackMaximumBatchSize"):
        call.warn("RollbackMaximumBatchSize has no effect: an update that goes back does so at once, with all traffic")
    excluded = {each["VariantPropertyType"] for each in given.get("ExcludeRetainedVariantProperties") or ()}
    retained = {"DesiredWeight": "weight", "DesiredInstanceCount": "instances"}
    try:
        blueprints.apply(
            call.ctx,
            call.actor,
            endpoint=name,
            blueprint=wanted,
            retain=[mine for theirs, mine in retained.items() if theirs not in excluded]
            if given.get("RetainAllVariantProperties")
            else None,
            given=policy,
            **_moving(policy or {}, _instances(row)),
        )
    except NotFound as error:
        if "alarm" in error.message:
            raise AwsError("ValidationException", f"Could not find alarm: {error.message}") from error
        raise _unfound_part(call, wanted, error) from error
    except Conflict as error:
        raise AwsError("ValidationException", error.message) from error
    return {"EndpointArn": arn_of(call, name)}


def _refuse_busy(call: Call, row: Row) -> None:
    if row["rollout"] is not None:
        text = f'Cannot update in-progress endpoint "{arn_of(call, row["name"])}".'
        raise AwsError("ValidationException", text)


def _instances(row: Row) -> int:
    return max(1, sum(int(each["instances"]) for each in row["variants"] if each["weight"] > 0))


def _moving(policy: Row, instances: int) -> Row:
    """How a DeploymentConfig moves traffic, in native words. Source: the shapes BlueGreenUpdatePolicy and
    RollingUpdatePolicy. After each share it waits ``WaitIntervalInSeconds``; after the last one
    ``TerminationWaitInSeconds`` more, before the old servers may end."""
    alarms = [each["AlarmName"] for each in (policy.get("AutoRollbackConfiguration") or {}).get("Alarms") or ()]
    rolling = policy.get("RollingUpdatePolicy")
    if rolling:
        wait = float(rolling["WaitIntervalInSeconds"])
        batch = math.ceil(_percent(rolling["MaximumBatchSize"], instances) * instances / 100 - 1e-9)
        settings = {"batch": max(1, batch), "bake_seconds": wait, **_longest(rolling)}
        return {"strategy": "rolling", "settings": settings, "alarms": alarms, "last_bake_seconds": wait}
    blue_green = policy.get("BlueGreenUpdatePolicy") or {}
    routing = blue_green.get("TrafficRoutingConfiguration") or {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    wait = float(routing["WaitIntervalInSeconds"])
    found: Row = {
        "alarms": alarms,
        "last_bake_seconds": wait + float(blue_green.get("TerminationWaitInSeconds") or 0),
        "strategy": "all-at-once",
        "settings": {"bake_seconds": wait},
    }
    if routing["Type"] == "CANARY":
        size = _percent(routing.get("CanarySize") or {"Type": "CAPACITY_PERCENT", "Value": 10}, instances)
        if size < 100:
            found.update(strategy="canary", settings={"steps": [size], "bake_seconds": wait})
    elif routing["Type"] == "LINEAR":
        size = _percent(routing.get("LinearStepSize") or {"Type": "CAPACITY_PERCENT", "Value": 10}, instances)
        found.update(strategy="linear", settings={"step_percent": size, "bake_seconds": wait})
    found["settings"].update(_longest(blue_green))
    return found


def _longest(policy: Row) -> Row:
    limit = policy.get("MaximumExecutionTimeoutInSeconds")
    return {} if limit is None else {"max_seconds": float(limit)}


def _percent(size: Row, instances: int) -> float:
    value = float(size["Value"])
    return min(100.0, value if size["Type"] == "CAPACITY_PERCENT" else 100.0 * value / instances)


def update_weights(call: Call, given: Row) -> Row:
    """UpdateEndpointWeightsAndCapacities."""
    name = given["EndpointName"]
    row = {**_shown(call, name), "weights": _said(_moves(call, name))}
    _refuse_busy(call, row)
    if _one_of_many(row):
        raise AwsError(
            "ValidationException", f"{name} serves many models behind one variant: there is nothing to share"
        )
    current = {_called(each): each for each in row["variants"] if _is_current(row, each)}
    wanted = {each["name"]: _weight(row, each) for each in current.values()}
    for change in given["DesiredWeightsAndCapacities"]:
        variant = current.get(change["VariantName"])
        if variant is None:
            text = f'The variant name(s) "{change["VariantName"]}" is/are not present within endpoint configuration'
            raise AwsError("ValidationException", f"{text} of {name}.")
        if "DesiredWeight" in change:
            wanted[variant["name"]] = float(change["DesiredWeight"])
        if change.get("DesiredInstanceCount", variant["instances"]) != variant["instances"]:
            call.warn("DesiredInstanceCount has no effect: register a scalable target instead")
    weights.set_weights(
        call.ctx, call.actor, endpoint=name, weights=wanted, reason="UpdateEndpointWeightsAndCapacities"
    )
    return {"EndpointArn": arn_of(call, name)}


def delete_endpoint(call: Call, given: Row) -> Row:
    """DeleteEndpoint."""
    name = given["EndpointName"]
    _refuse_busy(call, _shown(call, name))
    endpoints.delete(call.ctx, call.actor, endpoint=name)
    return {}


# -- looking ----------------------------------------------------------------------------------------------------------


def _shown(call: Call, name: str) -> Row:
    try:
        return endpoints.show(call.ctx, call.actor, endpoint=name)
    except NotFound as error:
        raise unfound(call, name) from error


def _moves(call: Call, name: str) -> list[Row]:
    """The endpoint's latest rollouts, newest first."""
    found: list[Row] = rollouts.list_(call.ctx, call.actor, endpoint=name, limit=20)["items"]
    return found


def _called(variant: Row) -> str:
    return str(variant["called"] or variant["name"])


def _is_current(row: Row, variant: Row) -> bool:
    """Whether a variant is of what the endpoint runs now, and neither on its way nor kept warm."""
    arriving = row["rollout"] is not None and variant["id"] in _group(row["rollout"])
    return variant["status"] == "Ready" and not arriving


def _group(rollout: Row) -> dict[str, float]:
    """The weights that a rollout's author gave its variants, by id."""
    plan = rollout["plan"]
    return {rollout["variant"]: 1.0, **(plan.get("group") or {})}


def _weight(row: Row, variant: Row) -> float:
    """A variant's weight as it was given: what is kept is a share of all traffic."""
    said = row["weights"].get(variant["id"], row["weights"].get(variant["name"]))
    return float(variant["weight"] if said is None else said)


def describe_endpoint(call: Call, given: Row) -> Row:
    """DescribeEndpoint."""
    name = given["EndpointName"]
    row = _shown(call, name)
    moves = _moves(call, name)
    row["weights"] = _said(moves)
    last = moves[0] if moves else None
    active = row["rollout"]
    shown = _one_of_many(row) or [each for each in row["variants"] if _is_current(row, each)]
    if not shown and active is not None:
        shown = [each for each in row["variants"] if each["id"] in _group(active)]
    settings = row["settings"] or {}
    ended = (last["ended_at"] or last["created_at"]) if last else row["created_at"]
    found = {
        "EndpointName": name,
        "EndpointArn": arn_of(call, name),
        "EndpointConfigName": settings.get("blueprint"),
        "EndpointStatus": _status(row),
        "FailureReason": _failure(row, last),
        "CreationTime": row["created_at"],
        "LastModifiedTime": max(ended, row["created_at"]),
        "ProductionVariants": [_variant(call, row, each) for each in shown if not each["shadow"]] or None,
        "ShadowProductionVariants": [_variant(call, row, each) for each in shown if each["shadow"]] or None,
        "LastDeploymentConfig": _policy(moves),
        "DataCaptureConfig": _capture(settings.get("capture_to")),
    }
    if active is not None and active["predecessor"] is not None and active["plan"].get("blueprint"):
        found["PendingDeploymentSummary"] = _pending(call, row, active)
    return found


def _failure(row: Row, last: Row | None) -> str | None:
    if last is None:
        return str(row["reason"]) if row["status"] == "Failed" else None
    return str(last["reason"]) if last["status"] in _TURNED and last["kind"] == "release" else None


def _one_of_many(row: Row) -> list[Row]:
    """The variant that the models of a store are together; none where the endpoint has no store."""
    called = ((row["settings"] or {}).get("multi_model") or {}).get("called")
    if not called:
        return []
    one = {"id": "", "name": called, "called": called, "weight": 1.0, "instances": 1, "shadow": None, "servable": None}
    return [{**one, "servers": [{"state": "asleep"}]}]


def _said(moves: list[Row]) -> dict[str, float]:
    """The weights that the last change of traffic was asked for with, by variant."""
    done = next(
        (each for each in moves if each["status"] == "Succeeded" and each["kind"] in ("release", "weights")), None
    )
    if done is None:
        return {}
    return dict(done["plan"].get("weights") or done["plan"].get("group") or {})


def _policy(moves: list[Row]) -> Row | None:
    found = next((each["plan"]["given"] for each in moves if each["plan"].get("given")), None)
    return dict(found) if found else None


def _last_policy(call: Call, name: str) -> Row | None:
    return _policy(_moves(call, name))


def _status(row: Row) -> str:
    rollout = row["rollout"]
    if rollout is None or row["status"] == "Failed":
        return str(row["status"])
    if rollout["status"] == "RollingBack":
        return "RollingBack"
    return "Updating" if any(each["weight"] > 0 for each in row["variants"]) and rollout["predecessor"] else "Creating"


def _variant(call: Call, row: Row, variant: Row) -> Row:
    ready = sum(1 for each in variant["servers"] if each["state"] in ("ready", "asleep"))
    weight = 0.0 if variant["shadow"] else _weight(row, variant)
    image = _image(call, variant)
    return {
        "VariantName": _called(variant),
        "CurrentWeight": weight,
        "DesiredWeight": weight,
        "CurrentInstanceCount": ready,
        "DesiredInstanceCount": variant["instances"],
        "DeployedImages": [{"SpecifiedImage": image, "ResolvedImage": image}] if image else None,
    }


def _image(call: Call, variant: Row) -> str | None:
    if not variant["servable"]:
        return None
    return servables.image_of(call.ctx, call.actor, variant=variant["id"])


def _pending(call: Call, row: Row, active: Row) -> Row:
    coming = {**_group(active), **(active["plan"].get("copies") or {})}
    arriving = [each for each in row["variants"] if each["id"] in coming]
    stage = {"Baking": "Baking", "Shifting": "ActivatingTraffic"}.get(active["status"], "Creating")
    return {
        "EndpointConfigName": active["plan"]["blueprint"],
        "StartTime": active["created_at"],
        "ProductionVariants": [
            {
                **_variant(call, {**row, "weights": coming}, each),
                "VariantStatus": [{"Status": stage, "StartTime": active["step_at"]}],
            }
            for each in arriving
        ],
    }


def _capture(kept: Row | None) -> Row | None:
    if not kept:
        return None
    return {
        "EnableCapture": True,
        "CaptureStatus": "Started",
        "CurrentSamplingPercentage": round(kept["percent"]),
        "DestinationS3Uri": kept["uri"],
        "KmsKeyId": "",
    }


def list_endpoints(call: Call, given: Row) -> Row:
    """ListEndpoints."""
    rows = endpoints.list_(call.ctx, call.actor)["items"]
    wanted = given.get("StatusEquals")
    kept = [row for row in rows if wanted is None or row["status"] == wanted]
    return hosted.page(kept, given, "Endpoints", lambda row: _summary(call, row))


def _summary(call: Call, row: Row) -> Row:
    return {
        "EndpointName": row["name"],
        "EndpointArn": arn_of(call, row["name"]),
        "CreationTime": row["created_at"],
        "LastModifiedTime": row["created_at"],
        "EndpointStatus": row["status"],
    }


OPERATIONS = {
    "CreateEndpoint": Operation(create_endpoint, Permission.WRITE),
    "DescribeEndpoint": Operation(describe_endpoint, Permission.READ),
    "UpdateEndpoint": Operation(update_endpoint, Permission.WRITE, "RollbackMaximumBatchSize: all goes back at once"),
    "UpdateEndpointWeightsAndCapacities": Operation(update_weights, Permission.WRITE, "weights alone"),
    "DeleteEndpoint": Operation(delete_endpoint, Permission.APPROVE),
    "ListEndpoints": Operation(list_endpoints, Permission.READ),
}
