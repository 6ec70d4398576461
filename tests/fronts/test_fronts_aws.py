"""The AWS front: whose a request is, who may, what is checked, and how errors are told in each protocol."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.model import ServiceModel
from botocore.parsers import create_parser
from botocore.serialize import create_serializer

from loopline.control import access, access_keys, warnings
from loopline.domain.access import Permission
from loopline.errors import Conflict, NotFound
from loopline.fronts.aws import models, services
from loopline.fronts.aws.app import Front
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.entry import Entry
from loopline.server import build
from loopline.testing.asgi import Answer, ask
from loopline.testing.world import ADMIN, World

HOST = "127.0.0.1:8600"
LOCAL = {"x-loopline-client": "127.0.0.1:55555"}


class Desk:
    """A front whose handlers keep what they were given."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.world = World(folder, **settings)
        access.bootstrap(self.world.ctx, f"http://{HOST}")
        self.key = access_keys.create(self.world.ctx, ADMIN, user="admin", name="test")
        self.given: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {}
        self.error: Exception | None = None
        read, write = Operation(self._handle, Permission.READ), Operation(self._handle, Permission.WRITE)
        self.front = Front(
            self.world.ctx,
            {
                "sagemaker": {"ListTags": read, "AddTags": write, "DescribeModelPackageGroup": read},
                "cloudwatch": {"PutMetricData": write, "PutMetricAlarm": write, "DescribeAlarms": read},
                "sts": {"GetCallerIdentity": read},
                "s3": {"PutObject": write, "GetObject": read, "CopyObject": write, "ListObjectsV2": read},
            },
        )

    def _handle(self, call: Call, given: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.given.append({name: b"".join(v) if isinstance(v, Iterator) else v for name, v in given.items()})
        call.headers["x-actor"] = call.actor.name
        return self.result

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        service: str | None = "sagemaker",
        key: dict[str, Any] | None = None,
        sent: bytes | None = None,
    ) -> Answer:
        """The answer to a request that botocore signed, or to one that nobody did; ``sent``: another body."""
        request = AWSRequest(method, f"http://{HOST}{path}", data=body, headers={"host": HOST, **(headers or {})})
        if service is not None:
            used = key or self.key
            auth: Any = S3SigV4Auth if service == "s3" else SigV4Auth
            auth(Credentials(used["id"], used["secret_key"], used.get("token")), service, "us-east-1").add_auth(request)
        given = {name.lower(): value for name, value in request.headers.items()}
        return ask(self.front, method, path, body if sent is None else sent, headers=given, chunks=2)

    def target(self, operation: str, body: Any, **options: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        prefix = options.pop("prefix", "SageMaker")
        headers = {"x-amz-target": f"{prefix}.{operation}", **options.pop("headers", {})}
        return self.ask("POST", "/", data, headers, **options)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "data")
    yield made
    made.world.close()


ARN = "arn:aws:sagemaker:us-east-1:123456789012:model-package-group/churn"


# -- whose a request is -----------------------------------------------------------------------------------------------


def test_what_is_not_aws_goes_on_untouched(desk: Desk) -> None:
    app = build(desk.world.ctx)

    assert isinstance(app, Entry)
    assert ask(app, "GET", "/api/health").json["status"] == "ok"
    assert ask(app, "GET", "/api/nothing").json["error"]["code"] == "not_found"
    assert ask(app, "GET", "/git/x.git/info/refs?service=git-upload-pack").status == 401
    told = ask(app, "POST", "/", b"{}", headers={"x-amz-target": "SageMaker.ListTags"})
    assert (told.status, told.json["__type"]) == (403, "MissingAuthenticationTokenException")


def test_prefixes_and_versions_are_those_of_the_models() -> None:
    for prefix, name in services.TARGETS.items():
        assert models.service(name).model.metadata["targetPrefix"] == prefix
    for version, name in services.VERSIONS.items():
        assert models.service(name).model.metadata["apiVersion"] == version


@pytest.mark.parametrize(
    ("method", "path", "headers", "operation"),
    [
        ("GET", "/bucket/a/key", {}, "GetObject"),
        ("GET", "/bucket?list-type=2", {}, "ListObjectsV2"),
        ("GET", "/bucket/?list-type=2&prefix=a", {}, "ListObjectsV2"),
        ("GET", "/bucket", {}, "ListObjects"),
        ("GET", "/", {}, "ListBuckets"),
        ("PUT", "/bucket/key", {}, "PutObject"),
        ("PUT", "/bucket/key", {"x-amz-copy-source": "b/k"}, "CopyObject"),
        ("PUT", "/bucket/key?partNumber=1&uploadId=u", {}, "UploadPart"),
        ("PUT", "/bucket/key?partNumber=1&uploadId=u", {"x-amz-copy-source": "b/k"}, "UploadPartCopy"),
        ("POST", "/bucket/key?uploads", {}, "CreateMultipartUpload"),
        ("POST", "/bucket?delete", {}, "DeleteObjects"),
        ("PUT", "/bucket?versioning", {}, "PutBucketVersioning"),
        ("GET", "/bucket?versions", {}, "ListObjectVersions"),
        ("HEAD", "/bucket", {}, "HeadBucket"),
    ],
)
def test_s3_is_told_by_method_path_query_and_headers(
    desk: Desk, method: str, path: str, headers: dict[str, str], operation: str
) -> None:
    answer = desk.ask(method, path, headers=headers, service="s3")

    served = operation in ("GetObject", "PutObject", "CopyObject", "ListObjectsV2")
    assert answer.status == (200 if served else 501), answer.body
    if not served:
        assert f"s3: {operation} is not supported" in answer.body.decode()


# -- who may ----------------------------------------------------------------------------------------------------------


def test_the_routes_of_a_service_are_made_once(desk: Desk) -> None:
    desk.ask("GET", "/bucket/key", service="s3")
    known = services._routes.cache_info()

    desk.ask("PUT", "/bucket/key", b"body", service="s3")

    assert services._routes.cache_info()._replace(hits=0) == known._replace(hits=0)


def test_the_role_of_a_key_decides(desk: Desk) -> None:
    viewer = access_keys.create(desk.world.ctx, ADMIN, user="admin", name="look", role="viewer")

    assert desk.target("ListTags", {"ResourceArn": ARN}, key=viewer).status == 200
    told = desk.target("AddTags", {"ResourceArn": ARN, "Tags": []}, key=viewer)
    assert (told.status, told.json["__type"]) == (400, "AccessDeniedException")
    assert len(desk.given) == 1


def test_a_signature_for_one_service_is_none_for_another(desk: Desk) -> None:
    told = desk.target("ListTags", {"ResourceArn": ARN}, service="logs")

    assert (told.status, told.json["__type"]) == (403, "InvalidSignatureException")


def test_the_body_is_signed(desk: Desk) -> None:
    answer = desk.ask("PUT", "/bucket/key", b"body", service="s3")
    assert answer.status == 200
    assert desk.given[-1]["Body"] == b"body"

    told = desk.ask("PUT", "/bucket/key", b"body", service="s3", sent=b"b0dy")
    assert told.status == 403
    assert b"SignatureDoesNotMatch" in told.body
    headers = {"x-amz-target": "SageMaker.ListTags"}
    assert desk.ask("POST", "/", b'{"a": 1}', headers, sent=b'{"a": 2}').status == 403
    assert len(desk.given) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({**LOCAL}, 200),
        ({"x-loopline-client": "10.0.0.7:4000"}, 403),
        ({}, 403),
        ({**LOCAL, "origin": "http://elsewhere.example"}, 403),
        ({**LOCAL, "sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_unsigned_requests_come_from_this_machine_and_from_no_page(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    desk = Desk(tmp_path / "data", aws_unsigned="viewer")
    try:
        asked = {"headers": headers, "service": None}
        assert desk.target("ListTags", {"ResourceArn": ARN}, **asked).status == status
        if status == 200:
            told = desk.target("AddTags", {"ResourceArn": ARN, "Tags": []}, **asked)
            assert told.json["__type"] == "AccessDeniedException"
    finally:
        desk.world.close()


# -- what is checked --------------------------------------------------------------------------------------------------

ALARM = {
    "AlarmName": "slow",
    "ComparisonOperator": "GreaterThanThreshold",
    "EvaluationPeriods": 1,
    "Statistic": "p99",
}


def test_an_enum_is_a_warning_that_is_kept(desk: Desk) -> None:
    for _ in range(2):
        answer = desk.target("PutMetricAlarm", ALARM, prefix="GraniteServiceVersion20100801", service="monitoring")
        assert answer.status == 200
        assert "Value 'p99' at 'statistic'" in answer.headers["x-loopline-warning"]

    assert desk.given[0]["Statistic"] == "p99"
    kept = warnings.list_(desk.world.ctx, ADMIN, source="cloudwatch.")["items"]
    assert [(row["source"], row["count"], row["by"]) for row in kept] == [("cloudwatch.PutMetricAlarm", 2, "admin")]


def test_strict_refuses_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data", aws_strict=1)
    try:
        told = desk.target("PutMetricAlarm", ALARM, prefix="GraniteServiceVersion20100801", service="monitoring")
        assert told.status == 400
        assert "enum value set" in told.json["message"]
    finally:
        desk.world.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Value null at 'resourceArn' failed to satisfy constraint: Member must not be null"),
        ({"ResourceArn": 7}, "Value '7' at 'resourceArn' failed to satisfy constraint: Member must be a string"),
        ({"ResourceArn": ARN, "MaxResults": 1}, "greater than or equal to 50"),
        ({"ResourceArn": ARN, "MaxResults": True}, "must be a integer"),
    ],
)
def test_required_types_and_minima_always_hold(desk: Desk, body: dict[str, Any], words: str) -> None:
    told = desk.target("ListTags", body)

    assert (told.status, told.json["__type"]) == (400, "ValidationException")
    assert words in told.json["message"]
    assert desk.given == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'{"ResourceArn": ' + b"[" * 3000, b'"x"'])
def test_what_is_no_document_is_refused(desk: Desk, body: bytes) -> None:
    told = desk.target("ListTags", body)

    assert (told.status, told.json["__type"]) == (400, "SerializationException")


def test_compressed_bodies_are_read_and_bombs_are_not(desk: Desk) -> None:
    plain = json.dumps({"Namespace": "x", "MetricData": [{"MetricName": "m", "Value": 1.5}]}).encode()
    options = {
        "prefix": "GraniteServiceVersion20100801",
        "service": "monitoring",
        "headers": {"content-encoding": "gzip"},
    }

    assert desk.target("PutMetricData", gzip.compress(plain), **options).status == 200
    assert desk.given[0]["MetricData"] == [{"MetricName": "m", "Value": 1.5}]
    assert desk.target("PutMetricData", gzip.compress(bytes(9 << 20)), **options).status == 413
    assert desk.target("PutMetricData", b"not gzip", **options).status == 400


# -- protocols and errors ---------------------------------------------------------------------------------------------


def _alarms(desk: Desk, protocol: str) -> tuple[Answer, Any]:
    """DescribeAlarms in a protocol of CloudWatch's, and the parser's word for the answer."""
    service: ServiceModel = models.service("cloudwatch").model
    operation = service.operation_model("DescribeAlarms")
    asked = create_serializer(protocol).serialize_to_request({"AlarmNames": ["a b", "ü"], "MaxRecords": 3}, operation)
    headers = dict(asked["headers"])
    body = asked["body"]
    if isinstance(body, dict):
        from urllib.parse import urlencode

        body = urlencode(body).encode()
    answer = desk.ask("POST", asked["url_path"], body, headers, service="monitoring")
    said = {"status_code": answer.status, "headers": answer.headers, "body": answer.body}
    return answer, create_parser(protocol).parse(said, operation.output_shape)


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
def test_cloudwatch_speaks_three_protocols(desk: Desk, protocol: str) -> None:
    desk.result = {"MetricAlarms": [{"AlarmName": "<a>", "Threshold": 1.5, "ActionsEnabled": True}], "NextToken": None}

    _, said = _alarms(desk, protocol)

    assert desk.given[-1] == {"AlarmNames": ["a b", "ü"], "MaxRecords": 3}
    assert said["MetricAlarms"] == [{"AlarmName": "<a>", "Threshold": 1.5, "ActionsEnabled": True}]
    assert "NextToken" not in said
    assert said["ResponseMetadata"]["RequestId"]


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (NotFound("there is no alarm <x>"), "ResourceNotFound", (400, 404)),
        (Conflict("busy"), "ResourceInUse", (400, 409)),
        (RuntimeError("a secret"), "InternalFailure", (500, 500)),
    ],
)
def test_errors_are_told_in_each(
    desk: Desk, protocol: str, error: Exception, code: str, status: tuple[int, int]
) -> None:
    desk.error = error

    answer, said = _alarms(desk, protocol)

    assert answer.status == status[protocol == "query"]
    assert said["Error"]["Code"] == code
    assert said["Error"]["Message"] == (str(error) if code != "InternalFailure" else said["Error"]["Message"])
    assert "a secret" not in answer.body.decode("latin-1")


def test_s3_says_errors_in_its_own_form(desk: Desk) -> None:
    desk.error = NotFound("no such key")
    answer = desk.ask("GET", "/bucket/key", service="s3")

    said = create_parser("rest-xml").parse(
        {"status_code": answer.status, "headers": answer.headers, "body": answer.body}, None
    )
    assert (answer.status, said["Error"]["Code"], said["Error"]["Message"]) == (404, "NoSuchKey", "no such key")
    assert said["Error"]["Resource"] == "/bucket/key"


@pytest.mark.parametrize(
    ("body", "headers", "service", "words"),
    [
        (b"{}", {"x-amz-target": "SageMaker.CreateAutoMLJob"}, "sagemaker", "CreateAutoMLJob"),
        (b"{}", {"x-amz-target": "DynamoDB_20120810.PutItem"}, "dynamodb", "PutItem"),
        (b"Action=SendMessage&Version=2012-11-05", {"content-type": services.FORM}, "sqs", "SendMessage"),
    ],
)
def test_what_is_not_there_is_named(desk: Desk, body: bytes, headers: dict[str, str], service: str, words: str) -> None:
    told = desk.ask("POST", "/", body, headers, service=service)

    assert told.status == 501
    assert words in told.body.decode()
    assert service in told.body.decode()


def test_an_operation_that_aws_has_not_is_not_found(desk: Desk) -> None:
    told = desk.target("DanceTango", {})

    assert (told.status, msgspec.json.decode(told.body)["__type"]) == (404, "UnknownOperationException")
