"""Which operation of which service a request asks for.

A request names its operation by ``X-Amz-Target``, by a Smithy path, by ``Action`` in a form, or by method, path, query
and headers.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from loopline.domain.sigv4 import Claim, Request
from loopline.errors import AwsError
from loopline.fronts.aws import models
from loopline.fronts.aws.models import CBOR, JSON, QUERY, REST_JSON, REST_XML

FORM = "application/x-www-form-urlencoded"

# What the models' metadata call targetPrefix and apiVersion; a test holds them together.
TARGETS = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "GraniteServiceVersion20100801": "cloudwatch",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "AnyScaleFrontendService": "application-autoscaling",
}
VERSIONS = {
    "2011-06-15": "sts",
    "2010-05-08": "iam",
    "2010-03-31": "sns",
    "2010-08-01": "cloudwatch",
}
_SMITHY = re.compile(r"/service/([A-Za-z0-9_]+)/operation/([A-Za-z0-9_]+)")
_METRICS = frozenset(("/BatchPutMetrics", "/BatchGetMetrics"))


class Target(NamedTuple):
    """What a request asks for; ``fields``: of the query protocol, ``labels``: of the path."""

    wire: models.Wire
    protocol: str
    fields: dict[str, str] = {}  # noqa: RUF012 - never changed
    labels: dict[str, str] = {}  # noqa: RUF012


def protocol_of(head: Request, claim: Claim | None) -> str:
    """The protocol of a request by its shape alone: what an error is written in, before anything else is known."""
    if _SMITHY.fullmatch(head.path):
        return CBOR
    if head.header("x-amz-target"):
        return JSON
    arguments = dict(head.arguments())
    if "Action" in arguments or (head.path == "/" and (head.header("content-type") or "").startswith(FORM)):
        return QUERY
    return REST_JSON if rest_service(head, claim) != "s3" else REST_XML


def rest_service(head: Request, claim: Claim | None) -> str:
    """The service of a request that names no operation."""
    signed_for = claim.service if claim is not None else None
    if signed_for == "sagemaker" or signed_for is None:
        if head.path.startswith("/endpoints/"):
            return "sagemaker-runtime"
        if head.path in _METRICS:
            return "sagemaker-metrics"
    return signed_for or "s3"


def choose(head: Request, claim: Claim | None, protocol: str, fields: dict[str, str], served: "Served") -> Target:
    """The operation; raises ``AwsError`` for one that is not AWS's, or of a service that is not here."""
    if protocol == CBOR:
        found = _SMITHY.fullmatch(head.path)
        prefix, name = found.groups() if found else ("", "")
    elif protocol == JSON:
        prefix, _, name = (head.header("x-amz-target") or "").rpartition(".")
    elif protocol == QUERY:
        name, version = fields.get("Action", ""), fields.get("Version", "")
        return Target(_wire(VERSIONS.get(version), name, claim, version), QUERY, fields)
    else:
        return _rest(head, claim, served)
    return Target(_wire(TARGETS.get(prefix), name, claim, prefix), protocol)


def _wire(service: str | None, name: str, claim: Claim | None, said: str) -> models.Wire:
    if service is None:
        called = claim.service if claim is not None else said
        raise AwsError("NotImplemented", f"{called}: {name} is not supported by loopline: it has no such service", 501)
    wire = models.service(service).wire(name)
    if wire is None:
        raise AwsError("UnknownOperationException", f"{service} has no operation {name!r}", 404)
    return wire


# -- by method and path -----------------------------------------------------------------------------------------------

Served = Mapping[str, Collection[str]]  # the operations of each service that have a handler


class _Route(NamedTuple):
    """What a request has to have to be for an operation."""

    name: str
    method: str
    path: re.Pattern[str]
    fixed: dict[str, str]  # of the query
    arguments: frozenset[str]
    headers: frozenset[str]

    def fits(self, method: str, arguments: Mapping[str, str], headers: frozenset[str]) -> bool:
        return (
            method == self.method
            and all(arguments.get(name) == value for name, value in self.fixed.items())
            and self.arguments <= arguments.keys()
            and self.headers <= headers
        )


def _rest(head: Request, claim: Claim | None, served: Served) -> Target:
    name = rest_service(head, claim)
    if name not in ("s3", "sagemaker-runtime", "sagemaker-metrics"):
        raise AwsError("NotImplemented", f"{name} is not supported by loopline: {head.method} {head.path}", 501)
    arguments, headers = dict(head.arguments()), frozenset(key for key, _ in head.headers)
    service = models.service(name)
    for route in _routes(name, frozenset(served.get(name, ()))):
        if route.fits(head.method, arguments, headers) and (found := route.path.fullmatch(head.path)):
            labels = {label: unquote(value) for label, value in found.groupdict().items()}
            wire = service.wire(route.name)
            assert wire is not None
            return Target(wire, REST_XML if name == "s3" else REST_JSON, {}, labels)
    raise AwsError("MethodNotAllowed", f"{name} has no operation at {head.method} {head.path}", 405)


@functools.cache
def _routes(name: str, served: frozenset[str]) -> list[_Route]:
    """An operation with more to match comes first; of two alike the one that is served, then the one in favour."""
    found: list[tuple[tuple[int, int, bool, bool], _Route]] = []
    for operation, described in models.service(name).description["operations"].items():
        shapes = models.service(name).description["shapes"]
        shape: dict[str, Any] = shapes.get(described.get("input", {}).get("shape"), {})
        members = shape.get("members", {})
        needed = [members[member] for member in shape.get("required", ())]
        path, _, query = described["http"]["requestUri"].partition("?")
        route = _Route(
            operation,
            described["http"]["method"],
            _pattern(path),
            dict(pair.partition("=")[::2] for pair in query.split("&") if pair),
            frozenset(m["locationName"] for m in needed if m.get("location") == "querystring"),
            frozenset(m["locationName"].lower() for m in needed if m.get("location") == "header"),
        )
        constraints = len(route.fixed) + len(route.arguments) + len(route.headers)
        order = (-constraints, path.count("{"), operation not in served, bool(described.get("deprecated")))
        found.append((order, route))
    return [route for _, route in sorted(found, key=lambda pair: pair[0])]


def _pattern(path: str) -> re.Pattern[str]:
    """``/{Bucket}/{Key+}`` as an expression; a label that ends with + takes slashes, too."""
    parts = re.split(r"{(\w+)(\+?)}", path)
    text = re.escape(parts[0])
    for label, greedy, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += f"(?P<{label}>{'.+' if greedy else '[^/]+'}){re.escape(literal)}"
    return re.compile(text if text.endswith("/") else text + "/?" if ".+" not in text else text, re.S)
