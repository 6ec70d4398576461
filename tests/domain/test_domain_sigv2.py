"""Presigned addresses of Signature Version 2 against botocore, which signs by itself."""

import time
from urllib.parse import urlsplit

import pytest
from botocore.auth import HmacV1QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from loopline.domain import sigv2
from loopline.domain.sigv4 import Request
from loopline.errors import BadSignature, Expired

KEY, SECRET = "LLAK234567ABCDEFGHIJ", "a/secret+with=signs"


def presigned(method: str, path: str, token: str | None = None, headers: dict[str, str] | None = None) -> Request:
    request = AWSRequest(method, f"http://127.0.0.1:8600{path}", headers=headers or {})
    HmacV1QueryAuth(Credentials(KEY, SECRET, token), expires=60).add_auth(request)
    parts = urlsplit(request.prepare().url)
    return Request(method, parts.path, parts.query, [("host", "127.0.0.1:8600")])


@pytest.mark.parametrize(
    ("method", "path", "token", "headers"),
    [
        ("GET", "/bucket/key", None, {}),
        ("PUT", "/bucket/a%20b/%C3%BC", None, {}),
        ("GET", "/bucket/key?versionId=7&response-content-type=text%2Fplain", None, {}),
        ("GET", "/bucket/key", "a/token+", {}),
        ("PUT", "/bucket/key?partNumber=1&uploadId=u", None, {"x-amz-meta-a": "b"}),
    ],
)
def test_what_botocore_signs_holds(method: str, path: str, token: str | None, headers: dict[str, str]) -> None:
    request = presigned(method, path, token, headers)
    claim = sigv2.read(request)
    assert claim is not None and (claim.key, claim.token) == (KEY, token)
    now = claim.expires_at - 60

    sigv2.verify(claim, request, SECRET, now)

    assert abs(now - time.time()) < 60
    for changed in (request._replace(method="DELETE"), request._replace(path="/bucket/other")):
        with pytest.raises(BadSignature):
            sigv2.verify(claim, changed, SECRET, now)
    with pytest.raises(BadSignature):
        sigv2.verify(claim, request, "another", now)
    with pytest.raises(Expired):
        sigv2.verify(claim, request, SECRET, now + 61)
    with pytest.raises(BadSignature):
        sigv2.verify(claim, request, SECRET, now - 8 * 86400)


def test_half_an_address_is_none() -> None:
    assert sigv2.read(Request("GET", "/b/k", "versionId=1", [])) is None
    with pytest.raises(BadSignature):
        sigv2.read(Request("GET", "/b/k", f"AWSAccessKeyId={KEY}&Expires=soon&Signature=x", []))
