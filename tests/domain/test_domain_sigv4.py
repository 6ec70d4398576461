"""Signature Version 4 against botocore, which signs by itself."""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.domain import sigv4
from loopline.domain.sigv4 import Claim, Request
from loopline.errors import BadSignature, Expired, InvalidInput

KEY, SECRET, REGION = "LLAK234567ABCDEFGHIJ", "a/secret+with=signs", "eu-west-3"
HOST = "127.0.0.1:8600"
AUTHS: dict[str, Any] = {"s3": S3SigV4Auth, "sagemaker": SigV4Auth}


def signed(
    service: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> tuple[Request, bytes]:
    """A request as botocore signs it, and its body."""
    request = AWSRequest(method, f"http://{HOST}{path}", data=body, headers={"Host": HOST, **(headers or {})})
    AUTHS[service](Credentials(KEY, SECRET, token), service, REGION).add_auth(request)
    return taken(request), body


def taken(request: AWSRequest) -> Request:
    parts = urlsplit(request.url)
    return Request(request.method, parts.path, parts.query, [(k.lower(), v) for k, v in request.headers.items()])


def key_of(claim: Claim, secret: str = SECRET) -> bytes:
    return sigv4.signing_key(sigv4.day_key(secret, claim.date), claim.region, claim.service)


def check(request: Request, body: bytes = b"", now: float | None = None, secret: str = SECRET) -> Claim:
    claim = sigv4.read(request)
    assert claim is not None
    at = sigv4.moment(claim.at) if now is None else now
    sigv4.verify(claim, request, key_of(claim, secret), at, hashlib.sha256(body).hexdigest())
    return claim


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)


@settings(deadline=None, max_examples=150)
@given(
    service=st.sampled_from(sorted(AUTHS)),
    method=st.sampled_from(("GET", "PUT", "POST", "DELETE")),
    segments=st.lists(TEXT, max_size=4),
    query=st.dictionaries(TEXT, TEXT, max_size=4),
    body=st.binary(max_size=100),
    meta=st.text(" abc,;=é", max_size=20),
)
def test_what_botocore_signs_holds(
    service: str, method: str, segments: list[str], query: dict[str, str], body: bytes, meta: str
) -> None:
    from botocore.compat import quote

    path = "/" + "/".join(quote(segment, safe="~") for segment in segments)
    pairs = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query.items())
    # what of a path two readers would take apart differently is not sent by clients
    if service != "s3" and any(segment in ("", ".", "..") for segment in segments):
        path = "/x"
    request, _ = signed(
        service, method, f"{path}?{pairs}" if pairs else path, body, {"x-amz-meta-x": meta.strip() or "-"}
    )

    claim = check(request, body)

    assert (claim.key, claim.region, claim.service) == (KEY, REGION, service)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r._replace(method="POST"),
        lambda r: r._replace(path="/bucket/other"),
        lambda r: r._replace(query="versionId=2"),
        lambda r: r._replace(headers=[(k, "evil:1" if k == "host" else v) for k, v in r.headers]),
        lambda r: r._replace(headers=[*r.headers, ("x-amz-acl", "public-read")]),
        lambda r: r._replace(
            headers=[(k, "UNSIGNED-PAYLOAD" if k == "x-amz-content-sha256" else v) for k, v in r.headers]
        ),
        lambda r: r._replace(headers=[(k, v.replace("SignedHeaders=host;", "SignedHeaders=")) for k, v in r.headers]),
    ],
)
def test_nothing_that_was_signed_can_be_changed(change: Any) -> None:
    request, _ = signed("s3", "PUT", "/bucket/key", b"body")
    check(request)

    with pytest.raises(BadSignature):
        check(change(request))


def test_the_body_and_the_secret_are_signed() -> None:
    request, body = signed("sagemaker", "POST", "/", b'{"a": 1}')
    check(request, body)

    with pytest.raises(BadSignature):
        check(request, b'{"a": 2}')
    with pytest.raises(BadSignature):
        check(request, body, secret=SECRET + "x")


def test_a_signature_is_good_for_a_quarter_of_an_hour() -> None:
    request, _ = signed("s3", "GET", "/bucket")
    at = sigv4.moment(check(request).at)

    for off in (-900, 900):
        check(request, now=at + off)
    for off in (-901, 901):
        with pytest.raises(Expired):
            check(request, now=at + off)


@pytest.mark.parametrize("service", sorted(AUTHS))
def test_presigned_addresses_hold_until_they_expire(service: str) -> None:
    auth: Any = S3SigV4QueryAuth if service == "s3" else SigV4QueryAuth
    request = AWSRequest("GET", f"http://{HOST}/bucket/a%20key?versionId=3", headers={})
    auth(Credentials(KEY, SECRET, "a/token"), service, REGION, expires=60).add_auth(request)
    head = taken(request.prepare())
    head = head._replace(headers=[("host", HOST)])

    claim = check(head)

    assert (claim.token, claim.expires_seconds) == ("a/token", 60)
    at = sigv4.moment(claim.at)
    check(head, now=at + 60)
    with pytest.raises(Expired):
        check(head, now=at + 61)
    with pytest.raises(Expired):
        check(head, now=at - 901)
    with pytest.raises(BadSignature):
        check(head._replace(query=head.query.replace("versionId=3", "versionId=4")))


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "AWS4-HMAC-SHA256 nothing")],
        [("authorization", f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/r/s3/aws4_request, SignedHeaders=host")],
        [("authorization", f"AWS4-HMAC-SHA256 Credential={KEY}, SignedHeaders=host, Signature={'0' * 64}")],
    ],
)
def test_half_a_signature_is_none(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(BadSignature):
        sigv4.read(Request("GET", "/", "", headers))


def test_what_is_not_signed_has_no_claim() -> None:
    assert sigv4.read(Request("GET", "/", "a=b", [("authorization", "Bearer lk_x")])) is None


# -- bodies -----------------------------------------------------------------------------------------------------------


def chunked(claim: Claim, parts: list[bytes], trailer: tuple[str, str] | None, signs: bool) -> bytes:
    """An aws-chunked body, written from AWS's description of it."""
    last, out = claim.signature, b""
    empty = hashlib.sha256(b"").hexdigest()

    def sign(what: str, hashes: str) -> str:
        nonlocal last
        text = f"AWS4-HMAC-SHA256-{what}\n{claim.at}\n{claim.scope}\n{last}\n{hashes}"
        last = hmac.new(key_of(claim), text.encode(), "sha256").hexdigest()
        return last

    for part in [*parts, b""]:
        extension = f";chunk-signature={sign('PAYLOAD', empty + chr(10) + hashlib.sha256(part).hexdigest())}"
        out += f"{len(part):x}{extension if signs else ''}\r\n".encode() + part + (b"\r\n" if part else b"")
    if trailer:
        line = f"{trailer[0]}:{trailer[1]}"
        out += f"{line}\r\n".encode()
        if signs:
            digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
            out += f"x-amz-trailer-signature:{sign('TRAILER', digest)}\r\n".encode()
    return out + b"\r\n"


MODES = {
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": (True, None),
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": (True, ("x-amz-checksum-crc32", "AAAAAA==")),
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER": (False, ("x-amz-checksum-crc32", "AAAAAA==")),
}


def claim_of() -> Claim:
    request, _ = signed("s3", "PUT", "/bucket/key", b"x")
    claim = sigv4.read(request)
    assert claim is not None
    return claim


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    cut=st.integers(1, 40),
    mode=st.sampled_from(sorted(MODES)),
)
def test_chunks_come_out_as_they_went_in(parts: list[bytes], cut: int, mode: str) -> None:
    signs, trailer = MODES[mode]
    claim = claim_of()
    body = chunked(claim, parts, trailer, signs)

    read = sigv4.Chunked((body[at : at + cut] for at in range(0, len(body), cut)), claim, key_of(claim), mode)

    assert b"".join(read) == b"".join(parts)
    assert read.trailers == (dict([trailer]) if trailer else {})


@pytest.mark.parametrize("mode", sorted(MODES))
def test_chunks_that_were_changed_are_refused(mode: str) -> None:
    signs, trailer = MODES[mode]
    claim = claim_of()
    body = chunked(claim, [b"hello", b"world"], trailer, signs)

    for wrong, error in (
        (body.replace(b"world", b"w0rld"), BadSignature if signs else None),
        (body.replace(b"AAAAAA==", b"BAAAAA=="), BadSignature if signs and trailer else None),
        (body[:20], InvalidInput),
        (body.replace(b"hello", b"hello and more"), InvalidInput),
        (b"xx\r\nhello\r\n", InvalidInput),
        (b"5" * 5000, InvalidInput),
    ):
        if error is not None:
            with pytest.raises((BadSignature, InvalidInput)):
                b"".join(sigv4.Chunked([wrong], claim, key_of(claim), mode))


def test_a_body_is_compared_with_its_hash_at_its_end() -> None:
    said = hashlib.sha256(b"body").hexdigest()

    assert b"".join(sigv4.whole([b"bo", b"dy"], said)) == b"body"
    assert b"".join(sigv4.whole([b"any"], sigv4.UNSIGNED)) == b"any"
    taken_so_far = []
    with pytest.raises(BadSignature):
        for part in sigv4.whole([b"bo", b"dx"], said):
            taken_so_far.append(part)
    assert taken_so_far == [b"bo", b"dx"]


def test_a_moment_is_in_utc() -> None:
    assert sigv4.moment("20261121T160000Z") == datetime(2026, 11, 21, 16, tzinfo=UTC).timestamp()
    with pytest.raises(BadSignature):
        sigv4.moment("20261341T160000Z")
