"""SageMaker's models: a Model is a servable.

Texts that the SageMaker SDK reads: "Could not find" (``Session._deployment_entity_exists``) and "Cannot create already
existing" (``Session.create_model``).
"""

import re
from typing import Any
from urllib.parse import unquote

from loopline.control import servables, tags
from loopline.domain.access import Permission
from loopline.domain.objects import split_uri
from loopline.errors import AwsError, Conflict, InvalidInput, NotFound
from loopline.fronts.aws import arns, hosted
from loopline.fronts.aws.call import Call, Operation

HANDLER = "sagemaker"
PROGRAM, DIRECTORY = "SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY"
# Source: the Amazon S3 user guide, "Virtual hosting of buckets".
_IN_PATH = re.compile(r"https://s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com/(?P<bucket>[^/?#]+)/(?P<key>[^?#]+)")
_IN_HOST = re.compile(r"https://(?P<bucket>[a-z0-9.-]+?)\.s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com/(?P<key>[^?#]+)")
_UNSERVED = ("AdditionalModelDataSources", "InferenceSpecificationName")


def create_model(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateModel."""
    name, container = given["ModelName"], _container(given)
    arn = call.arn("sagemaker", f"model/{name}")
    if container.get("MultiModelConfig"):
        call.warn("MultiModelConfig has no effect here: models stay in memory while there is room")
    try:
        servables.create(call.ctx, call.actor, name=name, **wanted_of(given))
    except Conflict as error:
        raise AwsError("ValidationException", f'Cannot create already existing model "{arn}".') from error
    except NotFound as error:
        raise _unfound(container, error) from error
    tags.put(call.ctx, call.actor, noun="servable", name=name, tags=tags_of(given))
    return {"ModelArn": arn}


def wanted_of(given: dict[str, Any]) -> dict[str, Any]:
    """What ``servables.create`` is told of a request; a step of a pipeline says the same."""
    kept = {key: value for key, value in given.items() if key not in ("ModelName", "Tags")}
    return {**read_container(_container(given)), "given": kept}


def tags_of(given: dict[str, Any]) -> dict[str, str]:
    """The tags of a request."""
    return {tag["Key"]: tag["Value"] for tag in given.get("Tags") or ()}


def _container(given: dict[str, Any]) -> dict[str, Any]:
    containers = [given["PrimaryContainer"]] if "PrimaryContainer" in given else given.get("Containers") or []
    if len(containers) != 1:
        raise AwsError("ValidationException", "A model has one container here: say PrimaryContainer")
    found: dict[str, Any] = containers[0]
    unserved = [key for key in _UNSERVED if found.get(key)]
    if unserved:
        raise AwsError("ValidationException", f"Not supported by loopline: {', '.join(unserved)}")
    return found


def read_container(container: dict[str, Any]) -> dict[str, Any]:
    """What ``servables.create`` is told of a ContainerDefinition."""
    variables = dict(container.get("Environment") or {})
    directory = variables.get(DIRECTORY, "")
    program = variables.get(PROGRAM)
    found: dict[str, Any] = {"program": program, "variables": variables}
    package = container.get("ModelPackageName")
    if package:
        group, number = arns.package(package)
        return {**found, "version": f"{group}:{number}"}
    if directory.startswith("s3://"):
        found["code"] = directory
    data = _data(container)
    if container.get("Mode") == "MultiModel":
        if data is None:
            raise AwsError("ValidationException", "A container in the mode MultiModel needs ModelDataUrl: a prefix")
        return {**found, "handler": HANDLER, "image": container.get("Image") or "", "store": data}
    if data is None and "code" not in found:
        raise AwsError("ValidationException", "The container has neither ModelDataUrl nor a program: nothing to serve")
    return {**found, "handler": HANDLER, "image": container.get("Image") or "", "data": data}


def _data(container: dict[str, Any]) -> str | None:
    source = (container.get("ModelDataSource") or {}).get("S3DataSource")
    if source is None:
        uri: str | None = container.get("ModelDataUrl")
        return uri if uri is None or not uri.startswith("https://") else _object_of(uri)
    folder = source.get("S3DataType") == "S3Prefix" and source.get("CompressionType") == "None"
    found = str(source["S3Uri"])
    return found if not folder or found.endswith("/") else f"{found}/"


def _object_of(address: str) -> str:
    """``s3://BUCKET/KEY`` of an object's address in S3, in path style or with the bucket's name in front. It is only
    read: nothing is fetched from there."""
    found = _IN_PATH.fullmatch(address) or _IN_HOST.fullmatch(address)
    if found is None:
        text = f"ModelDataUrl has to be s3://BUCKET/KEY, or the https address of an object in S3, unlike {address}"
        raise AwsError("ValidationException", text)
    return f"s3://{found['bucket']}/{unquote(found['key'])}"


def _unfound(container: dict[str, Any], error: NotFound) -> AwsError:
    package = container.get("ModelPackageName")
    if package:
        return AwsError("ValidationException", f'Could not find model package "{package}".')
    try:
        split_uri(_data(container))
    except InvalidInput:
        return AwsError("ValidationException", error.message)
    return AwsError("ValidationException", f"Could not find model data at {_data(container)}.")


def unfound(call: Call, name: str) -> AwsError:
    """What is said of a model that is not there."""
    return AwsError("ValidationException", f'Could not find model "{call.arn("sagemaker", f"model/{name}")}".')


def describe_model(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeModel."""
    name = given["ModelName"]
    try:
        row = servables.describe(call.ctx, call.actor, servable=name)
    except NotFound as error:
        raise unfound(call, name) from error
    return {
        "EnableNetworkIsolation": False,
        **(row["given"] or {"PrimaryContainer": _own_container(call, row)}),
        "ModelName": name,
        "ModelArn": call.arn("sagemaker", f"model/{name}"),
        "CreationTime": row["created_at"],
    }


def _own_container(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A servable that nobody described in SageMaker's words."""
    if row["version"]:
        arn = call.arn("sagemaker", f"model-package/{row['model']}/{row['number']}")
        return {"ModelPackageName": arn, "Environment": row["variables"] or {}}
    data = (row["source"] or {}).get("data", {}).get("uri")
    return {"Image": row["image"] or None, "ModelDataUrl": data, "Environment": row["variables"] or {}}


def list_models(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListModels."""
    rows = servables.list_(call.ctx, call.actor, limit=hosted.EVERY)["items"]
    return hosted.page(rows, given, "Models", lambda row: _summary(call, row))


def _summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    arn = call.arn("sagemaker", f"model/{row['name']}")
    return {"ModelName": row["name"], "ModelArn": arn, "CreationTime": row["created_at"]}


def delete_model(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteModel."""
    try:
        servables.delete(call.ctx, call.actor, servable=given["ModelName"])
    except NotFound as error:
        raise unfound(call, given["ModelName"]) from error
    return {}


OPERATIONS = {
    "CreateModel": Operation(create_model, Permission.WRITE, "one container"),
    "DescribeModel": Operation(describe_model, Permission.READ),
    "ListModels": Operation(list_models, Permission.READ),
    "DeleteModel": Operation(delete_model, Permission.WRITE),
}
