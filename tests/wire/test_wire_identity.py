"""Who a caller is: sts and iam, asked by boto3."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform

Client = Callable[..., Any]


def test_a_caller_is_an_assumed_role(platform: Platform, client: Client, key: dict[str, Any]) -> None:
    said = client("sts").get_caller_identity()

    assert said["Arn"] == "arn:aws:sts::123456789012:assumed-role/loopline-admin/admin"
    assert (said["Account"], said["UserId"]) == ("123456789012", f"{key['id']}:admin")
    assert said["ResponseMetadata"]["RequestId"]


def test_another_secret_is_refused(client: Client, key: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as refused:
        client("sts", {**key, "secret_key": "x" * 40}).get_caller_identity()

    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_revoked_key_is_refused_at_once(platform: Platform, client: Client) -> None:
    made = platform.call("POST", "/api/access-keys", {"name": "short"})
    assert client("sts", made).get_caller_identity()["Account"]

    platform.call("DELETE", f"/api/access-keys/{made['id']}")

    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        client("sts", made).get_caller_identity()
    listed = platform.call("GET", "/api/access-keys")["items"]
    assert [row["name"] for row in listed if row["revoked_at"]] == ["short"]
    assert not any("secret" in name for row in listed for name in row)


def test_an_operation_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(ClientError) as refused:
        client("sts").decode_authorization_message(EncodedMessage="x")

    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert "DecodeAuthorizationMessage" in refused.value.response["Error"]["Message"]
