"""SageMaker's endpoint configurations: an EndpointConfig is a blueprint."""

from typing import Any

from loopline.control import blueprints, tags
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws import hosted, servables
from loopline.fronts.aws.call import Call, Operation

_SIDES = {"Input": ("input",), "Output": ("output",), "InputAndOutput": ("input", "output")}
_WITHOUT_EFFECT = ("KmsKeyId", "VpcConfig", "EnableNetworkIsolation", "ExplainerConfig", "MetricsConfig")
_KINDS = ("ProductionVariants", "ShadowProductionVariants")


def create_endpoint_config(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateEndpointConfig."""
    name = given["EndpointConfigName"]
    arn = arn_of(call, name)
    wanted = wanted_of(call, given)
    try:
        blueprints.create(call.ctx, call.actor, name=name, **wanted)
    except Conflict as error:
        text = f'Cannot create already existing endpoint configuration "{arn}".'
        raise AwsError("ValidationException", text) from error
    except NotFound as error:
        raise _unfound_model(call, wanted["variants"], error) from error
    tags.put(call.ctx, call.actor, noun="blueprint", name=name, tags=servables.tags_of(given))
    return {"EndpointConfigArn": arn}


def wanted_of(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What ``blueprints.create`` is told of a request; a step of a pipeline says the same."""
    for key in _WITHOUT_EFFECT:
        if given.get(key):
            call.warn(f"{key} has no effect here")
    production, shadows = (given.get(kind) or [] for kind in _KINDS)
    if len(shadows) > 1 or (shadows and len(production) > 1):
        raise AwsError("ValidationException", "Shadow tests have one production variant and one shadow variant")
    variants = [_variant(call, each) for each in production]
    variants += [{**_variant(call, each), "copies": _copies(each, production[0])} for each in shadows]
    kept = {key: value for key, value in given.items() if key not in ("EndpointConfigName", "Tags")}
    return {
        "variants": variants,
        "capture": _capture(given.get("DataCaptureConfig")),
        "results": _results(call, given.get("AsyncInferenceConfig")),
        "given": kept,
    }


def arn_of(call: Call, name: str) -> str:
    """The ARN of an endpoint configuration."""
    return call.arn("sagemaker", f"endpoint-config/{name}")


def _variant(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    if "ModelName" not in given:
        raise AwsError("ValidationException", f"The variant {given['VariantName']} needs ModelName")
    if given.get("ServerlessConfig"):
        call.warn("ServerlessConfig: the variant gets one server that always runs")
    return {
        "name": given["VariantName"],
        "servable": given["ModelName"],
        "weight": float(given.get("InitialVariantWeight", 1.0)),
        "instances": int(given.get("InitialInstanceCount") or 1),
    }


def _copies(shadow: dict[str, Any], production: dict[str, Any]) -> float:
    """What share of the requests a shadow variant gets: its weight against that of the production variant."""
    weight = float(production.get("InitialVariantWeight", 1.0)) or 1.0
    return min(100.0, 100.0 * float(shadow.get("InitialVariantWeight", 1.0)) / weight)


def _capture(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if not given or not given.get("EnableCapture", True) or not given["InitialSamplingPercentage"]:
        return None
    types = given.get("CaptureContentTypeHeader") or {}
    modes = {side for option in given["CaptureOptions"] for side in _SIDES[option["CaptureMode"]]}
    return {
        "uri": given["DestinationS3Uri"],
        "percent": float(given["InitialSamplingPercentage"]),
        "sides": sorted(modes),
        "texts": list(types.get("CsvContentTypes") or ()),
        "jsons": list(types.get("JsonContentTypes") or ()),
    }


def _results(call: Call, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where answers of InvokeEndpointAsync go."""
    if not given:
        return None
    output = given["OutputConfig"]
    if output.get("NotificationConfig"):
        call.warn("NotificationConfig has no effect here: subscribe to the topic of invocations")
    if not output.get("S3OutputPath"):
        raise AwsError("ValidationException", "AsyncInferenceConfig needs OutputConfig.S3OutputPath here")
    return {"uri": output["S3OutputPath"], "failures_uri": output.get("S3FailurePath")}


def _unfound_model(call: Call, wanted: list[dict[str, Any]], error: NotFound) -> AwsError:
    for each in wanted:
        if repr(each["servable"]) in error.message:
            return servables.unfound(call, each["servable"])
    return AwsError("ValidationException", error.message)


def unfound(call: Call, name: str) -> AwsError:
    """What is said of a configuration that is not there."""
    return AwsError("ValidationException", f'Could not find endpoint configuration "{arn_of(call, name)}".')


def describe_endpoint_config(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeEndpointConfig."""
    name = given["EndpointConfigName"]
    try:
        row = blueprints.show(call.ctx, call.actor, blueprint=name)
    except NotFound as error:
        raise unfound(call, name) from error
    return {
        **(row["given"] or {"ProductionVariants": [_production(each) for each in row["variants"]]}),
        "EndpointConfigName": name,
        "EndpointConfigArn": arn_of(call, name),
        "CreationTime": row["created_at"],
    }


def _production(each: dict[str, Any]) -> dict[str, Any]:
    return {
        "VariantName": each["name"],
        "ModelName": each["servable"],
        "InitialInstanceCount": each["instances"],
        "InitialVariantWeight": each["weight"],
    }


def list_endpoint_configs(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListEndpointConfigs."""
    rows = blueprints.list_(call.ctx, call.actor, limit=hosted.EVERY)["items"]
    return hosted.page(rows, given, "EndpointConfigs", lambda row: _summary(call, row))


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "EndpointConfigName": row["name"],
        "EndpointConfigArn": arn_of(call, row["name"]),
        "CreationTime": row["created_at"],
    }


def delete_endpoint_config(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteEndpointConfig."""
    try:
        blueprints.delete(call.ctx, call.actor, blueprint=given["EndpointConfigName"])
    except NotFound as error:
        raise unfound(call, given["EndpointConfigName"]) from error
    return {}


OPERATIONS = {
    "CreateEndpointConfig": Operation(
        create_endpoint_config, Permission.WRITE, "instance types are not looked at; no serverless variants"
    ),
    "DescribeEndpointConfig": Operation(describe_endpoint_config, Permission.READ),
    "ListEndpointConfigs": Operation(list_endpoint_configs, Permission.READ),
    "DeleteEndpointConfig": Operation(delete_endpoint_config, Permission.WRITE),
}
