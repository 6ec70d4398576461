"""Signed invocations at the gateway itself: signatures by botocore, answers as its clients read them."""

import datetime
import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from loopline.domain import sigv4

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "a-token-that-somebody-was-lent"


def day(offset: int = 0) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=offset)).strftime("%Y%m%d")


def access_key(**fields: Any) -> dict[str, Any]:
    signing = {each: sigv4.day_key(SECRET, each).hex() for each in (day(-1), day(), day(1))}
    return {
        "role": "invoker",
        "endpoints": ["e"],
        "expires_at": None,
        "token_sha256": None,
        "signing": signing,
        **fields,
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, shared_rig: Any) -> Iterator[Any]:
    """The endpoint e: its variants green-2 and green are both known as Green, and blue gets no traffic."""
    rig = shared_rig
    rig.start_server("green", ECHO)
    rig.start_server("blue", ECHO.replace("row[0]", "-row[0]"))

    def variant(name: str, server: str, weight: float, called: str) -> dict[str, Any]:
        socket = str(rig.run / f"{server}.sock")
        return {"name": name, "version": None, "model": None, "weight": weight, "servers": [socket], "called": called}

    variants = [
        variant("green", "green", 0.0, "Green"),
        variant("green-2", "green", 100.0, "Green"),
        variant("blue", "blue", 0.0, "Blue"),
    ]
    keys = {
        "LLAKAAAAAAAAAAAAAAAA": access_key(),
        "LLAKEXPIRED": access_key(expires_at=time.time() - 1),
        "LLAKELSEWHERE": access_key(endpoints=["other"]),
        "LLAKVIEWER": access_key(role="viewer"),
        "LLASLENT": access_key(token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest()),
    }
    rig.publish(*variants, wait=False)
    document = json.loads((rig.folder / "snapshot.json").read_text())
    rig.number += 1
    rig.write_snapshot(json.dumps({**document, "number": rig.number, "access_keys": keys}))
    deadline = time.monotonic() + 15
    while rig.state().get("number") != rig.number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return rig


def ask(
    rig: Any,
    body: bytes = b'{"instances": [[4]]}',
    *,
    name: str = "e",
    key: str = "LLAKAAAAAAAAAAAAAAAA",
    secret: str = SECRET,
    token: str | None = None,
    service: str = "sagemaker",
    sent: bytes | None = None,
    at: float = 0.0,
    **headers: str,
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """(status, headers, document) of a request that botocore signs; ``sent``: the body that goes in its place."""
    path = f"/endpoints/{name}/invocations"
    given = {"content-type": "application/json", **{each.replace("_", "-"): value for each, value in headers.items()}}
    request = AWSRequest("POST", f"http://{rig.address}{path}", given, body)
    signer = SigV4Auth(Credentials(key, secret, token), service, "eu-west-1")
    signer.add_auth(request)
    if at:
        moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=at)
        del request.headers["X-Amz-Date"], request.headers["Authorization"]
        request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
        request.headers["X-Amz-Date"] = request.context["timestamp"]
        canonical = signer.canonical_request(request)
        signature = signer.signature(signer.string_to_sign(request, canonical), request)
        parts = [f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}"]
        parts.append(f"SignedHeaders={signer.signed_headers(signer.headers_to_sign(request))}")
        request.headers["Authorization"] = ", ".join([*parts, f"Signature={signature}"])
    client = http.client.HTTPConnection(rig.address, timeout=20)
    client.request("POST", path, body if sent is None else sent, dict(request.headers.items()))
    answer = client.getresponse()
    found = {each.lower(): value for each, value in answer.getheaders()}
    document = json.loads(answer.read())
    client.close()
    return answer.status, found, document


def test_a_signed_request_is_answered_under_the_name_that_callers_know(gateway: Any) -> None:
    status, headers, document = ask(gateway)
    assert (status, document) == (200, {"predictions": [4]})
    assert headers["x-amzn-invoked-production-variant"] == "Green"
    assert headers["x-loopline-variant"] == "green-2"
    assert headers["x-amzn-requestid"].startswith("rq_")


def test_a_variant_may_be_asked_by_what_it_is_called(gateway: Any) -> None:
    for name, expected in (("Blue", [-4]), ("Green", [4])):
        status, headers, document = ask(gateway, x_amzn_sagemaker_target_variant=name)
        assert (status, document["predictions"]) == (200, expected)
        assert headers["x-amzn-invoked-production-variant"] == name
    assert ask(gateway, x_amzn_sagemaker_target_variant="Red")[1]["x-amzn-errortype"] == "ValidationError"


@pytest.mark.parametrize(
    ("case", "status", "name"),
    [
        ({"secret": SECRET[::-1]}, 403, "InvalidSignatureException"),
        ({"sent": b'{"instances": [[5]]}'}, 403, "InvalidSignatureException"),
        ({"service": "s3"}, 403, "InvalidSignatureException"),
        ({"at": -1200.0}, 403, "InvalidSignatureException"),
        ({"at": 1200.0}, 403, "InvalidSignatureException"),
        ({"key": "LLAKUNKNOWN"}, 403, "UnrecognizedClientException"),
        ({"key": "LLAKEXPIRED"}, 403, "UnrecognizedClientException"),
        ({"key": "LLASLENT"}, 403, "UnrecognizedClientException"),
        ({"key": "LLASLENT", "token": "another"}, 403, "UnrecognizedClientException"),
        ({"key": "LLAKELSEWHERE"}, 403, "AccessDeniedException"),
        ({"key": "LLAKVIEWER"}, 403, "AccessDeniedException"),
        ({"name": "nothing"}, 400, "ValidationError"),
        ({"name": "nothing", "secret": SECRET[::-1]}, 403, "InvalidSignatureException"),
        ({"body": b"no json"}, 424, "ModelError"),
    ],
)
def test_what_is_refused_says_so_in_the_words_of_sdks(
    gateway: Any, case: dict[str, Any], status: int, name: str
) -> None:
    found, headers, document = ask(gateway, **case)
    assert (found, headers["x-amzn-errortype"]) == (status, name)
    assert document["message"]


def test_a_lent_key_comes_with_its_token(gateway: Any) -> None:
    assert ask(gateway, key="LLASLENT", token=TOKEN)[0] == 200


def test_the_same_head_with_another_body_is_refused_however_often_it_was_right(gateway: Any) -> None:
    for _ in range(3):
        assert ask(gateway)[0] == 200
    body = b'{"instances": [[4]]}'
    path = "/endpoints/e/invocations"
    request = AWSRequest("POST", f"http://{gateway.address}{path}", {"content-type": "application/json"}, body)
    SigV4Auth(Credentials("LLAKAAAAAAAAAAAAAAAA", SECRET), "sagemaker", "us-east-1").add_auth(request)
    client = http.client.HTTPConnection(gateway.address, timeout=20)
    seen = []
    for sent in (body, body, body, b'{"instances": [[7]]}', body):
        client.request("POST", path, sent, dict(request.headers.items()))
        answer = client.getresponse()
        seen.append((answer.status, answer.read()))
    client.close()
    assert [status for status, _ in seen] == [200, 200, 200, 403, 200]


def test_the_request_log_has_the_access_key_and_the_callers_own_id(gateway: Any, until: Any) -> None:
    _, headers, _ = ask(gateway, x_amzn_sagemaker_inference_id="order-9")
    wanted = headers["x-amzn-requestid"]
    record = until(lambda: next((each for each in gateway.records() if each.meta["id"] == wanted), None))
    assert (record.meta["key"], record.meta["join"]) == ("LLAKAAAAAAAAAAAAAAAA", "order-9")
    assert (record.meta["variant"], record.meta["status"]) == ("green-2", 200)
