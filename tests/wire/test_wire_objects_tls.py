"""Objects over TLS: there boto3 sends bodies in chunks whose checksum comes last, in a trailer."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from loopline.testing.live import Platform

BUCKET = "over-tls"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    installation = Platform(tmp_path_factory.mktemp("wire") / "loopline", tls="local")
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def s3(platform: Platform) -> Any:
    key = platform.call("POST", "/api/access-keys", {"name": "wire"})
    client = boto3.client(
        "s3",
        endpoint_url=platform.url,
        region_name="us-east-1",
        aws_access_key_id=key["id"],
        aws_secret_access_key=key["secret_key"],
        verify=str(platform.folder / "tls" / "ca.pem"),
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=BUCKET)
    return client


def sent(s3: Any, **changed: bytes) -> dict[str, Any]:
    """The headers that the client sent, when it puts what ``changed`` says (``replace=`` in its body)."""
    seen: dict[str, Any] = {}

    def look(request: Any, **_: Any) -> None:
        seen.update(request.headers)
        if changed:
            request.body = request.body.read().replace(*changed.values())

    s3.meta.events.register_last("before-send.s3.PutObject", look)
    try:
        s3.put_object(Bucket=BUCKET, Key="k", Body=b"hello" * 1000, ChecksumAlgorithm="SHA256")
    finally:
        s3.meta.events.unregister("before-send.s3.PutObject", look)
    return seen


def test_a_checksum_in_a_trailer_is_verified(s3: Any, platform: Platform) -> None:
    headers = sent(s3)
    assert headers["X-Amz-Content-SHA256"] == b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    assert headers["X-Amz-Trailer"] == b"x-amz-checksum-sha256"
    got = s3.get_object(Bucket=BUCKET, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"hello" * 1000
    assert got["ChecksumSHA256"]
    assert "ContentEncoding" not in got  # aws-chunked is of the way, not of the object
    shown = platform.call("GET", f"/api/buckets/{BUCKET}/object?key=k")
    assert (shown["size_bytes"], shown["checksums"]["type"]) == (5000, "FULL_OBJECT")


def test_a_body_that_was_changed_on_the_way_leaves_the_one_before(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="k", Body=b"before")
    with pytest.raises(ClientError) as caught:
        sent(s3, old=b"hellohello", new=b"hellohellO")
    assert caught.value.response["Error"]["Code"] == "BadDigest"
    assert s3.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"before"
