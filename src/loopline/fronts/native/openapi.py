"""The description of the REST surface, made from the table and the use cases' signatures."""

import inspect
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

import loopline
from loopline.domain.access import ROLES, Permission
from loopline.fronts.native.routes import Call, Parameter

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "stable, for programs"},
                "message": {"type": "string", "description": "for people"},
                "details": {"type": "object"},
                "request_id": {"type": "string"},
            },
        }
    },
}


def describe(calls: Iterable[Call]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    calls = list(calls)
    hints = {id(parameter): parameter.hint for call in calls for parameter in call.parameters}
    schemas, components = msgspec.json.schema_components(
        list(hints.values()), ref_template="#/components/schemas/{name}"
    )
    by_parameter = dict(zip(hints, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for call in calls:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", call.route.path)
        operation = _operation(call, by_parameter)
        names[call.name] += 1
        if names[call.name] > 1:  # a use case that is reached by two paths
            operation["operationId"] += f"_{names[call.name]}"
        paths.setdefault(path, {})[call.route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "loopline", "version": loopline.__version__},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key, lk_..."}},
        },
    }


def _operation(call: Call, schemas: dict[int, dict[str, Any]]) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(call.route.use_case) or call.name).partition("\n")
    public = call.permission is Permission.PUBLIC
    operation: dict[str, Any] = {
        "operationId": call.name,
        "tags": [call.name.partition(".")[0]],
        "summary": summary.strip(),
        "description": description.strip(),
        "x-permission": str(call.permission),
        "x-roles": [role for role, may in ROLES.items() if public or call.permission in may],
        "security": [] if public else [{"key": []}],
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.required or parameter.place == "path",
                "schema": _schema(parameter, schemas),
            }
            for parameter in call.parameters
            if parameter.place in ("path", "query")
        ],
        "responses": {
            str(call.route.status): {"description": "done", "content": _content(call)},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    body = _body(call, schemas)
    return {**operation, "requestBody": body} if body else operation


def _content(call: Call) -> dict[str, Any]:
    if call.route.download:
        return {"application/octet-stream": {}}
    return {"application/json": {"schema": {"type": "object"}}}


def _body(call: Call, schemas: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    if call.route.raw:
        any_type = any(parameter.place == "header" for parameter in call.parameters)
        return {"required": True, "content": {"*/*" if any_type else "application/octet-stream": {}}}
    if not call.has_body:
        return None
    fields = [parameter for parameter in call.parameters if parameter.place == "body"]
    schema = {
        "type": "object",
        "properties": {parameter.name: _schema(parameter, schemas) for parameter in fields},
        "required": [parameter.name for parameter in fields if parameter.required],
        "additionalProperties": False,
    }
    return {"required": bool(schema["required"]), "content": {"application/json": {"schema": schema}}}


def _schema(parameter: Parameter, schemas: dict[int, dict[str, Any]]) -> dict[str, Any]:
    schema = dict(schemas[id(parameter)])
    if parameter.is_time:
        schema = {"anyOf": [schema, {"type": "string", "format": "date-time"}]}
    if parameter.default is not None:
        schema["default"] = msgspec.to_builtins(parameter.default)
    return schema
