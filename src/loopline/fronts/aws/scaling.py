"""Application Auto Scaling for endpoints: a scalable target and its policy are an endpoint's ``[scaling]``.

A variant's target counts for all variants of its endpoint: the number of servers is a policy of the endpoint here.
Source: botocore's model of ``application-autoscaling``; the developer guide, "Automatic scaling of Amazon SageMaker AI
models", for SageMakerVariantInvocationsPerInstance (requests a minute per instance).
"""

import re
from typing import Any

from loopline.control import endpoints, events, scaling
from loopline.domain.access import Permission
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws.call import Call, Operation

Row = dict[str, Any]

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
METRICS = {
    "SageMakerVariantInvocationsPerInstance": "target_per_minute",
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": "target_in_flight",
}
_RESOURCE = re.compile(r"endpoint/([^/]+)/variant/([^/]+)")
USUAL_COOLDOWN = 300.0
MAX_LOOKED_AT = 1000  # events of variants


def _place(given: Row) -> tuple[str, str]:
    """(endpoint, variant) of a ResourceId."""
    found = _RESOURCE.fullmatch(given["ResourceId"])
    if given["ServiceNamespace"] != NAMESPACE or given["ScalableDimension"] != DIMENSION or found is None:
        raise AwsError("ValidationException", f"Only {DIMENSION} of endpoint/NAME/variant/NAME can be scaled here")
    return found[1], found[2]


def _shown(call: Call, endpoint: str, variant: str) -> Row:
    """The endpoint, which has the variant."""
    try:
        row = endpoints.show(call.ctx, call.actor, endpoint=endpoint)
    except NotFound as error:
        raise AwsError("ValidationException", f"Could not find endpoint {endpoint!r}") from error
    if variant not in {each["called"] or each["name"] for each in row["variants"]}:
        raise AwsError("ValidationException", f"The endpoint {endpoint} has no variant {variant}")
    return row


def _given(row: Row) -> Row:
    """What was said so far: {"target", "policies"}."""
    kept = (row["settings"] or {}).get("scaling_given") or {}
    return {"target": kept.get("target"), "policies": dict(kept.get("policies") or {})}


def _apply(call: Call, endpoint: str, row: Row, said: Row) -> None:
    """Bring the endpoint to its target and policies. Without a policy the number stays, within its limits."""
    target = said["target"]
    scaling.scale(call.ctx, call.actor, endpoint=endpoint, off=True, given=said)
    if target is None:
        return
    least, most = int(target["MinCapacity"]), int(target["MaxCapacity"])
    changes: Row = {}
    for policy in said["policies"].values():
        changes.update(_tracked(policy))
    if not changes:
        now = max((int(each["instances"]) for each in row["variants"] if each["weight"] > 0), default=1)
        least = most = min(max(now, least, 1), most)
    scaling.scale(call.ctx, call.actor, endpoint=endpoint, min=least, max=most, given=said, **changes)


def _tracked(policy: Row) -> Row:
    wanted = policy["TargetTrackingScalingPolicyConfiguration"]
    metric = wanted["PredefinedMetricSpecification"]["PredefinedMetricType"]
    return {
        METRICS[metric]: float(wanted["TargetValue"]),
        "scale_out_cooldown_seconds": float(wanted.get("ScaleOutCooldown", USUAL_COOLDOWN)),
        "scale_in_cooldown_seconds": 3600.0
        if wanted.get("DisableScaleIn")
        else float(wanted.get("ScaleInCooldown", USUAL_COOLDOWN)),
    }


def _target_arn(call: Call, given: Row) -> str:
    return call.arn("application-autoscaling", f"scalable-target/{given['ResourceId']}")


def register_scalable_target(call: Call, given: Row) -> Row:
    """RegisterScalableTarget."""
    endpoint, variant = _place(given)
    row = _shown(call, endpoint, variant)
    said = _given(row)
    before = said["target"] or {}
    target = {key: given.get(key, before.get(key)) for key in ("ResourceId", "MinCapacity", "MaxCapacity")}
    if target["MinCapacity"] is None or target["MaxCapacity"] is None:
        raise AwsError("ValidationException", "A new scalable target needs MinCapacity and MaxCapacity")
    if target["MinCapacity"] > target["MaxCapacity"]:
        raise AwsError("ValidationException", "Maximum capacity cannot be less than minimum capacity")
    if len(row["variants"]) > 1:
        call.warn("the number of servers is scaled for all variants of an endpoint alike")
    created = before.get("CreatedAt") or call.ctx.clock.now()
    _apply(call, endpoint, row, {**said, "target": {**target, "CreatedAt": created}})
    return {"ScalableTargetARN": _target_arn(call, given)}


def deregister_scalable_target(call: Call, given: Row) -> Row:
    """DeregisterScalableTarget."""
    endpoint, variant = _place(given)
    row = _shown(call, endpoint, variant)
    if _given(row)["target"] is None:
        raise AwsError("ObjectNotFoundException", f"No scalable target found for resource {given['ResourceId']}")
    _apply(call, endpoint, row, {"target": None, "policies": {}})
    return {}


def put_scaling_policy(call: Call, given: Row) -> Row:
    """PutScalingPolicy."""
    endpoint, variant = _place(given)
    row = _shown(call, endpoint, variant)
    said = _given(row)
    if said["target"] is None:
        raise AwsError("ObjectNotFoundException", f"No scalable target registered for {given['ResourceId']}")
    wanted = given.get("TargetTrackingScalingPolicyConfiguration") or {}
    metric = (wanted.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
    if given.get("PolicyType") != "TargetTrackingScaling" or metric not in METRICS:
        text = f"Only target tracking of {' or '.join(METRICS)} is supported by loopline"
        raise AwsError("ValidationException", text)
    created = (said["policies"].get(given["PolicyName"]) or {}).get("CreatedAt") or call.ctx.clock.now()
    said["policies"][given["PolicyName"]] = {**given, "CreatedAt": created}
    _apply(call, endpoint, row, said)
    return {"PolicyARN": _policy_arn(call, given), "Alarms": []}


def _policy_arn(call: Call, given: Row) -> str:
    return call.arn("autoscaling", f"scalingPolicy:{given['ResourceId']}:policyName/{given['PolicyName']}")


def delete_scaling_policy(call: Call, given: Row) -> Row:
    """DeleteScalingPolicy."""
    endpoint, variant = _place(given)
    row = _shown(call, endpoint, variant)
    said = _given(row)
    if said["policies"].pop(given["PolicyName"], None) is None:
        raise AwsError("ObjectNotFoundException", f"No scaling policy found named {given['PolicyName']}")
    _apply(call, endpoint, row, said)
    return {}


# -- looking ----------------------------------------------------------------------------------------------------------


def _all(call: Call, wanted: list[str] | None) -> list[Row]:
    rows = [_given(row) for row in endpoints.list_(call.ctx, call.actor)["items"]]
    return [said for said in rows if said["target"] and (not wanted or said["target"]["ResourceId"] in wanted)]


def describe_scalable_targets(call: Call, given: Row) -> Row:
    """DescribeScalableTargets."""
    found = [said["target"] for said in _all(call, given.get("ResourceIds"))] if _is_ours(given) else []
    return {
        "ScalableTargets": [
            {
                "ServiceNamespace": NAMESPACE,
                "ResourceId": target["ResourceId"],
                "ScalableDimension": DIMENSION,
                "MinCapacity": target["MinCapacity"],
                "MaxCapacity": target["MaxCapacity"],
                "RoleARN": call.arn("iam", "role/loopline"),
                "CreationTime": target["CreatedAt"],
                "ScalableTargetARN": _target_arn(call, target),
            }
            for target in found
        ]
    }


def _is_ours(given: Row) -> bool:
    return bool(given["ServiceNamespace"] == NAMESPACE)


def describe_scaling_policies(call: Call, given: Row) -> Row:
    """DescribeScalingPolicies."""
    resource, names = given.get("ResourceId"), given.get("PolicyNames")
    found = _all(call, [resource] if resource else None) if _is_ours(given) else []
    return {
        "ScalingPolicies": [
            {
                **{key: value for key, value in policy.items() if key != "CreatedAt"},
                "PolicyARN": _policy_arn(call, policy),
                "CreationTime": policy["CreatedAt"],
            }
            for said in found
            for name, policy in said["policies"].items()
            if not names or name in names
        ]
    }


def describe_scaling_activities(call: Call, given: Row) -> Row:
    """DescribeScalingActivities: the changes that were made, newest first."""
    found = events.list_(call.ctx, call.actor, noun="variant", limit=MAX_LOOKED_AT)["items"]
    activities = []
    for event in [each for each in found if each["kind"] == "scaled"] if _is_ours(given) else ():
        data = event["data"]
        resource = f"endpoint/{data['endpoint']}/variant/{data['name']}"
        if given.get("ResourceId") in (None, resource):
            activities.append(
                {
                    "ActivityId": str(event["number"]),
                    "ServiceNamespace": NAMESPACE,
                    "ResourceId": resource,
                    "ScalableDimension": DIMENSION,
                    "Description": f"Setting desired instance count to {data['to']}.",
                    "Cause": event["reason"] or "",
                    "StartTime": event["at"],
                    "EndTime": event["at"],
                    "StatusCode": "Successful",
                }
            )
    return {"ScalingActivities": activities}


OPERATIONS = {
    "RegisterScalableTarget": Operation(register_scalable_target, Permission.WRITE, "variants of endpoints"),
    "DeregisterScalableTarget": Operation(deregister_scalable_target, Permission.WRITE),
    "PutScalingPolicy": Operation(put_scaling_policy, Permission.WRITE, "target tracking of requests"),
    "DeleteScalingPolicy": Operation(delete_scaling_policy, Permission.WRITE),
    "DescribeScalableTargets": Operation(describe_scalable_targets, Permission.READ),
    "DescribeScalingPolicies": Operation(describe_scaling_policies, Permission.READ),
    "DescribeScalingActivities": Operation(describe_scaling_activities, Permission.READ),
}
