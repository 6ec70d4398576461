"""One request: which operation, who asks, its input, its handler, its answer."""

import hashlib
import itertools
import logging
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from loopline.control import warnings
from loopline.control.context import Context
from loopline.domain import access, sigv4
from loopline.domain.sigv4 import Claim
from loopline.errors import AwsError, InvalidInput, LooplineError, TooLarge
from loopline.fronts.aws import checks, faults, form, identity, reading, services, writing
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.models import QUERY, REST_JSON, REST_XML
from loopline.fronts.aws.services import Target
from loopline.fronts.aws.table import TABLE
from loopline.fronts.aws.writing import Answer

log = logging.getLogger(__name__)

THREADS, STREAM_THREADS = 16, 8
BATCH_BYTES = 1 << 20  # of a streamed body, that a thread gets at once
MAX_BODY_BYTES = 8 << 20  # of what is not streamed
MAX_WARNING_HEADER = 1000
WARNING_HEADER = "x-loopline-warning"


class Front:
    """The ASGI application for AWS's requests; ``table``: operations by service, loopline's own unless given."""

    def __init__(self, ctx: Context, table: dict[str, dict[str, Operation]] = TABLE) -> None:
        self._ctx = ctx
        self._table = table
        self._limiters = anyio.CapacityLimiter(THREADS), anyio.CapacityLimiter(STREAM_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        await (await self._response(answer))(scope, receive, send)

    async def _answer(self, request: Request) -> Answer:
        one = _One(self._ctx, self._table, _head(request))
        try:
            one.recognise()
            if one.wants_body_first:
                body: Any = b"".join([part async for part in _limited(request, MAX_BODY_BYTES)])
            else:
                body = _Stream(request)
            limiter = self._limiters[isinstance(body, _Stream)]
            return await anyio.to_thread.run_sync(one.serve, body, limiter=limiter)
        except LooplineError as error:
            return one.refuse(error)

    async def _response(self, answer: Answer) -> Response:
        if isinstance(answer.body, bytes):
            return Response(answer.body, answer.status, answer.headers)
        return StreamingResponse(iterate_in_threadpool(answer.body), answer.status, answer.headers)


def _head(request: Request) -> sigv4.Request:
    scope = request.scope
    path = scope.get("raw_path") or scope["path"].encode()
    return sigv4.Request(
        scope["method"],
        path.partition(b"?")[0].decode("latin-1"),
        scope["query_string"].decode("latin-1"),
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
    )


class _One:
    """One request on its way; ``serve`` runs in a thread."""

    def __init__(self, ctx: Context, table: dict[str, dict[str, Operation]], head: sigv4.Request) -> None:
        self._ctx, self._table, self._head = ctx, table, head
        self._claim: Claim | None = None
        self._protocol = REST_JSON
        self._target: Target | None = None
        self._said: dict[str, str] = {}  # headers that a handler sets, of an error, too
        self.request_id = head.header("x-request-id") or ctx.ids.new("rq")

    def recognise(self) -> None:
        """What can be told by the head alone."""
        self._protocol = services.protocol_of(self._head, None)
        self._claim = sigv4.read(self._head)
        self._protocol = services.protocol_of(self._head, self._claim)
        if self._protocol in (REST_JSON, REST_XML):
            self._target = services.choose(self._head, self._claim, self._protocol, {}, self._table)

    @property
    def wants_body_first(self) -> bool:
        """Whether the body is small and read whole."""
        return self._target is None or self._target.wire.streams_in is None

    def serve(self, body: Any) -> Answer:
        """Everything from the body on; what fails is an answer, too."""
        try:
            return self._serve(body)
        except LooplineError as error:
            return self.refuse(error)
        except Exception as error:
            log.error("request %s failed", self.request_id, exc_info=error)
            told = LooplineError("something went wrong inside loopline; its log has the request id")
            return self.refuse(told)

    def _serve(self, body: Any) -> Answer:
        payload = self._claim.payload if self._claim else self._head.header("x-amz-content-sha256")
        seen = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else None
        caller = identity.authenticate(self._ctx, self._head, self._claim, seen, self._protocol)
        trailers: dict[str, str] = {}
        parts: Iterator[bytes] = iter((body,)) if isinstance(body, bytes) else body
        if sigv4.is_chunked(payload):
            chunked = sigv4.Chunked(parts, self._claim, caller.signing_key, payload or "")
            trailers, parts = chunked.trailers, iter(chunked)
        elif payload is not None and self._claim is not None:
            parts = sigv4.whole(parts, payload)
        content = b"".join(parts) if isinstance(body, bytes) else parts
        if isinstance(content, bytes):
            content = _unpacked(content, self._head.header("content-encoding"))
        target = self._target or self._choose(content)
        operation = self._table.get(target.wire.service.name, {}).get(target.wire.name)
        if operation is None:
            name = f"{target.wire.service.name}: {target.wire.name}"
            raise AwsError("NotImplemented", f"{name} is not supported by loopline", 501)
        self._check_scope(target)
        access.require(caller.actor, operation.permission)
        call = Call(
            ctx=self._ctx,
            actor=caller.actor,
            service=target.wire.service.name,
            operation=target.wire.name,
            account=self._ctx.settings.aws_account,
            region=self._ctx.settings.aws_region,
            request_id=self.request_id,
            session=caller.session,
            role=caller.role,
            request_headers=dict(self._head.headers),
            trailers=trailers,
        )
        return self._perform(target, operation, call, content)

    def _choose(self, content: Any) -> Target:
        fields: dict[str, str] = {}
        if self._protocol == QUERY:
            fields = dict(self._head.arguments()) if self._head.method == "GET" else form.decode(content)
        self._target = services.choose(self._head, self._claim, self._protocol, fields, self._table)
        return self._target

    def _check_scope(self, target: Target) -> None:
        """A signature for one service is none for another."""
        if self._claim is not None and self._claim.service != target.wire.service.signing_name:
            raise AwsError(
                "InvalidSignatureException",
                f"the request was signed for {self._claim.service}, and is for {target.wire.service.signing_name}",
                403,
            )

    def _perform(self, target: Target, operation: Operation, call: Call, content: Any) -> Answer:
        given = reading.read(target, _unchunked(self._head), content)
        for text in checks.check(target.wire.input, given, bool(self._ctx.settings.aws_strict)):
            call.warn(text)
        self._said = call.headers
        result = operation.handler(call, given)
        status, headers, body = writing.write(target.wire, self._protocol, result, self.request_id)
        headers.update(call.headers)
        if call.warnings:
            warnings.record(
                self._ctx,
                call.actor,
                source=f"{call.service}.{call.operation}",
                texts=call.warnings,
                request_id=self.request_id,
            )
            headers[WARNING_HEADER] = _in_header(" | ".join(call.warnings))
        if not isinstance(body, bytes):
            body = itertools.chain(list(itertools.islice(body, 1)), body)  # what is missing is told while it can be
        return Answer(call.status or status, headers, body)

    def refuse(self, error: LooplineError) -> Answer:
        """The answer to a request that failed."""
        if error.status >= 500 and not isinstance(error, AwsError):
            log.warning("request %s: %s: %s", self.request_id, error.code, error.message)
        service = self._target.wire.service.name if self._target else None
        fault = faults.fault_of(error, self._protocol, service)
        answer = writing.write_error(
            self._protocol, fault.code, fault.message, fault.status, self.request_id, self._head.path
        )
        answer.headers.update(self._said)
        return answer


def _in_header(text: str) -> str:
    """What a header can hold of a text."""
    return " ".join(text.split()).encode("ascii", "replace").decode()[:MAX_WARNING_HEADER]


def _unchunked(head: sigv4.Request) -> sigv4.Request:
    """The head without ``aws-chunked``, which is of the way and not of the content."""
    coding = head.header("content-encoding")
    if coding is None or "aws-chunked" not in coding:
        return head
    rest = ",".join(part.strip() for part in coding.split(",") if part.strip() != "aws-chunked")
    headers = [(name, value) for name, value in head.headers if name != "content-encoding"]
    return head._replace(headers=headers + ([("content-encoding", rest)] if rest else []))


def _unpacked(body: bytes, coding: str | None) -> bytes:
    """A body that a client has compressed (``requestcompression``); raises ``TooLarge`` for a bomb."""
    if coding is None or coding.strip() != "gzip":
        return body
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        raise InvalidInput("the body is not gzip") from None
    if unpacker.unconsumed_tail or len(plain) == MAX_BODY_BYTES:
        raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
    if not unpacker.eof:
        raise InvalidInput("the gzip body is not whole")
    return plain


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        yield part


class _Stream(Iterator[bytes]):
    """A body for a handler in a thread: awaited on the event loop, several parts at a time; each way there costs."""

    def __init__(self, request: Request) -> None:
        self._parts = request.stream()

    def __next__(self) -> bytes:
        part = anyio.from_thread.run(self._next)
        if part is None:
            raise StopIteration
        return part

    async def _next(self) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        async for part in self._parts:
            parts.append(part)
            size += len(part)
            if size >= BATCH_BYTES:
                break
        return b"".join(parts) or None
