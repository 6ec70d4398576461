"""The types of a pipeline's steps that do work, each translated as the operation is that it stands for."""

from collections.abc import Mapping
from typing import Any

import msgspec

from loopline.control import claims
from loopline.errors import AwsError
from loopline.fronts.aws import blueprints, endpoints, groups, packages, processing, servables, training, transform
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.definitions import Kind
from loopline.fronts.aws.late import is_marker


def _training(_call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    return training.settings(given)


def _processing(_call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    return processing.settings(given)


def _transform(_call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    return transform.settings(given)


def _register(call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    group = given.get("ModelPackageGroupName")
    if not group:
        raise AwsError("ValidationException", "loopline keeps versions of groups: give ModelPackageGroupName")
    wanted = packages.new_of(call, {key: value for key, value in given.items() if key != "ModelPackageName"})
    reports = {name: msgspec.to_builtins(claims.Source(*each)._asdict()) for name, each in wanted.reports.items()}
    return {
        "model": groups.group_name(group),
        "gate_mode": groups.GATE_MODE,
        "source": wanted.source,
        "description": wanted.description,
        "properties": dict(wanted.properties),
        "reports": reports,
        "status": wanted.status,
        "unverified": wanted.unverified,
        "declared": wanted.declared,
    }


def _model(_call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    containers = [given.get("PrimaryContainer") or {}, *(given.get("Containers") or ())]
    if any(is_marker(each.get("ModelPackageName")) for each in containers):
        raise AwsError(
            "ValidationException", "ModelPackageName has to be written out: a model of a version is made of it"
        )
    return {"name": given.get("ModelName") or None, **servables.wanted_of(dict(given))}


def _configuration(call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": given.get("EndpointConfigName") or None, **blueprints.wanted_of(call, dict(given))}


def _endpoint(_call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {"name": given.get("EndpointName"), "blueprint": given.get("EndpointConfigName")}
    if not all(names.values()):
        raise AwsError("ValidationException", "an endpoint needs EndpointName and EndpointConfigName")
    return {**names, "settings": endpoints.SETTINGS}


KINDS: Mapping[str, Kind] = {
    "Training": Kind("CreateTrainingJob", _training, "TrainingJobName"),
    "Processing": Kind("CreateProcessingJob", _processing, "ProcessingJobName"),
    "Transform": Kind("CreateTransformJob", _transform, "TransformJobName"),
    "Model": Kind("CreateModel", _model, "ModelName", "servable.create"),
    "RegisterModel": Kind("CreateModelPackage", _register, "ModelPackageName", "version.register"),
    "EndpointConfig": Kind("CreateEndpointConfig", _configuration, "EndpointConfigName", "blueprint.create"),
    "Endpoint": Kind("CreateEndpoint", _endpoint, "EndpointName", "endpoint.bring"),
}
