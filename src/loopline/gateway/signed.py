"""Invocations that are signed (AWS Signature Version 4), as InvokeEndpoint of the AWS SDKs asks for predictions.

They take the same way as any other. What differs: who asks is known by the signature over head and body, so that no
head is remembered for the next request; the answer's headers and errors are those that the SDKs read.
Sources: botocore's model of ``sagemaker-runtime``, and the API reference of InvokeEndpoint for its errors.
"""

import contextlib
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from loopline.domain import sigv4
from loopline.errors import (
    BadSignature,
    Expired,
    Forbidden,
    InvalidInput,
    LooplineError,
    NotFound,
    NotReady,
    Overloaded,
    Timeout,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from loopline.gateway.answers import error_body, status_line
from loopline.gateway.head import Head
from loopline.gateway.invocation import JSON_TYPE, Invocation
from loopline.gateway.routing import AccessKey, Endpoint

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection

SERVICE = "sagemaker"
MODEL_ERROR = 424
ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
MAX_TOLD_BYTES = 2048  # of a model's own words in an error


class Fault(NamedTuple):
    """An error as the SDKs read it."""

    status: int
    name: str
    body: dict[str, object]


_FAULTS: tuple[tuple[type[LooplineError], int, str], ...] = (
    (BadSignature, 403, "InvalidSignatureException"),
    (Expired, 403, "InvalidSignatureException"),
    (Unauthenticated, 403, "UnrecognizedClientException"),
    (Forbidden, 403, "AccessDeniedException"),
    (TooLarge, 413, "RequestEntityTooLargeException"),
    (InvalidInput, 400, "ValidationError"),
    (NotFound, 400, "ValidationError"),
    (Overloaded, 429, "ThrottlingException"),
    (NotReady, 429, "ModelNotReadyException"),
    (Unavailable, 503, "ServiceUnavailable"),
)


class SignedInvocation(Invocation):
    """``known``: whether there is an endpoint by that name; who signed well is told that there is none."""

    __slots__ = ("_attributes", "_claim", "_fault", "_known", "_request", "_signer")

    def __init__(
        self,
        connection: "Connection",
        head: Head,
        request_id: bytes,
        endpoint: Endpoint | None,
        at: float,
        name: bytes,
    ) -> None:
        gateway = connection.gateway
        super().__init__(connection, head, request_id, endpoint or gateway.nowhere(name), at)
        self._known = endpoint is not None
        self._attributes = b""  # what the model tells the caller beside its answer
        self._fault: Fault | None = None
        self._claim: sigv4.Claim | None = None
        self._signer: AccessKey | None = None
        headers = [(name.decode("latin-1").lower(), _text(value)) for name, value in head.headers]
        query = head.target.partition(b"?")[2].decode("latin-1")
        self._request = sigv4.Request(head.method.decode(), head.path.decode("latin-1"), query, headers)
        head.take_amzn()

    # who asks

    def _authorise(self) -> bool:
        """Whether the claimed key may invoke the endpoint; that the claim is true shows when the body is there."""
        try:
            claim = self._claim = self._claim or sigv4.read(self._request)
            if claim is None:
                raise BadSignature("the request is not signed as it says")
            if claim.service != SERVICE:
                raise BadSignature(f"Credential should be scoped to correct service: '{SERVICE}'.")
            self.key = self._signer = self.table.signer(
                claim.key, claim.token, self.endpoint.name if self._known else None
            )
        except LooplineError as error:
            self.refuse(error)
            return False
        return True

    def complete(self) -> None:
        """The request is whole: check its signature, and go the way of all others."""
        if self.done:
            return
        try:
            self._verify()
            if not self._known:
                account = self.connection.gateway.account
                raise NotFound(f"Endpoint {self.endpoint.name} of account {account} not found.")
        except LooplineError as error:
            self.refuse(error)
            return
        super().complete()

    def _verify(self) -> None:
        claim, key = self._claim, self._signer
        assert claim is not None and key is not None
        seen = hashlib.sha256(self.payload).hexdigest()
        sigv4.verify(claim, self._request, key.signing(claim.date, claim.region, SERVICE), time.time(), seen)
        if claim.payload is not None and not hmac.compare_digest(seen, claim.payload):
            raise BadSignature("The provided 'x-amz-content-sha256' header does not match what was computed.")

    # the variant

    def choose(self) -> None:
        """A variant by what callers know it as, one that gets traffic before one that gets none."""
        wanted, name = self.head.variant, self.endpoint.name
        if self.head.model is not None and self.endpoint.models is None:
            text = f"Endpoint {name} is not a multi-model endpoint and does not support target model header."
            self.refuse(InvalidInput(text))
            return
        if wanted is None or self.endpoint.models is not None:
            super().choose()
            return
        found = self.endpoint.called(wanted, self.connection.gateway.chance)
        if found is None:
            told = wanted.decode("latin-1")
            self.refuse(InvalidInput(f"Variant {told} not found for endpoint {name}"))
            return
        self.variant = found
        self.enter()

    # the answer

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:
        """The model server's answer."""
        self._attributes = content_type.partition(b"\n")[2]
        super().answered(status, content_type, body)

    def refuse(self, error: LooplineError, headers: bytes = b"") -> None:
        """Answer an error in the SDKs' terms."""
        head = self.head
        if not self.received and (head.expects or head.chunked or head.length):
            self.close = True
        self.release()
        self._fault = _fault_of(error)
        self._finish(error.status, JSON_TYPE, error_body(error.code, error.message, self.request_id), headers)

    def _finish(self, status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> None:
        self.done = True
        if self._known:
            self._record(status, body)
        if status >= 400:
            fault = self._fault or _model_error(status, body)
            status, content_type, body = fault.status, JSON_TYPE, json.dumps(fault.body).encode()
            headers += b"x-amzn-errortype: %b\r\n" % fault.name.encode()
        if self._attributes:
            headers += b"%b: %b\r\n" % (ATTRIBUTES, self._attributes)
        variant = self.variant
        answer = (
            b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-amzn-requestid: %b\r\nx-request-id: %b\r\n%b%b%b\r\n%b"
            % (
                status_line(status),
                content_type,
                len(body),
                self.request_id,
                self.request_id,
                b"" if variant is None else variant.headers + variant.invoked,
                headers,
                self.connection_header(),
                body,
            )
        )
        self.connection.deliver(self, answer, last=True)


def _text(value: bytes) -> str:
    """A header's value as its sender signed it: clients sign, and send, what is no ASCII as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _fault_of(error: LooplineError) -> Fault:
    if isinstance(error, Timeout):
        return _model_failed(0, "the model did not answer in time")
    for kind, status, name in _FAULTS:
        if isinstance(error, kind):
            return Fault(status, name, {"message": error.message, "Message": error.message})
    return Fault(500, "InternalFailure", {"message": error.message, "Message": error.message})


def _model_error(status: int, body: bytes) -> Fault:
    """What a model answered, as ModelError has it."""
    told = body[:MAX_TOLD_BYTES].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = str(json.loads(body)["error"]["message"])
    return _model_failed(status, told)


def _model_failed(status: int, told: str) -> Fault:
    side = "client" if 400 <= status < 500 else "server"
    message = f'Received {side} error ({status}) from primary with message "{told}".'
    body: dict[str, object] = {
        "Message": message,
        "message": message,
        "OriginalStatusCode": status,
        "OriginalMessage": told,
    }
    return Fault(MODEL_ERROR, "ModelError", body)
