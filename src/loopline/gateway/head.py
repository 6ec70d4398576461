"""The head of a request, read strictly: whatever two readers could understand differently is refused.

What llhttp refuses by itself (Transfer-Encoding beside Content-Length, repeated or signed lengths, folded headers, bare
line feeds, control characters, malformed chunks) is not repeated here.
"""

from loopline.domain.capture import PURPOSES
from loopline.errors import InvalidInput

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024

_FIELDS = {
    b"host": 0,
    b"content-length": 1,
    b"transfer-encoding": 2,
    b"expect": 3,
    b"authorization": 4,
    b"x-api-key": 5,
    b"content-type": 6,
    b"x-loopline-inference-id": 7,
    b"x-loopline-timeout-ms": 8,
    b"x-loopline-model": 9,
    b"x-loopline-variant": 10,
}
ENDPOINTS, INVOCATIONS = b"/endpoints/", b"/invocations"
_BEARER, _SIGNED = b"bearer ", b"AWS4-HMAC-SHA256"
_AMZN = b"x-amzn-sagemaker-"
_PASSED = frozenset((b"accept", _AMZN + b"custom-attributes", _AMZN + b"inference-id"))
_PURPOSES = frozenset(purpose.encode() for purpose in PURPOSES)


def refusal(status: int, code: str, message: str) -> InvalidInput:
    """An error after which the connection is closed; its ``details`` are the HTTP status and the code to answer."""
    return InvalidInput(message, status=status, code=code)


def malformed(message: str) -> InvalidInput:
    """400: not HTTP as the gateway speaks it."""
    return refusal(400, "bad_request", message)


def misdirected() -> InvalidInput:
    """421: a request for another host, as DNS rebinding makes a browser send it."""
    return refusal(421, "misdirected", "this server does not answer for that host")


def too_big() -> InvalidInput:
    """431: more or larger headers than anybody needs."""
    message = f"at most {MAX_HEADERS} headers with together {MAX_HEAD_BYTES} bytes are accepted"
    return refusal(431, "headers_too_large", message)


class Head:
    """Method, target and headers of one request, with the fields that the gateway looks at."""

    __slots__ = (
        "_host",
        "chunked",
        "content_type",
        "contexts",
        "credential",
        "expects",
        "headers",
        "join",
        "keep_alive",
        "length",
        "method",
        "model",
        "old",
        "path",
        "signed",
        "target",
        "timeout_ms",
        "variant",
    )

    def __init__(self, method: bytes, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises ``InvalidInput`` for a request that is ambiguous or not for an HTTP/1 origin server."""
        if version not in {"1.1", "1.0"}:
            raise refusal(505, "bad_request", "only the HTTP versions 1.0 and 1.1 are spoken here")
        self.method = method
        self.headers = headers
        self.contexts: dict[bytes, bytes] = {}  # of capture records, by the variant that answered
        self.old = version == "1.0"
        self.keep_alive = True
        found: list[bytes | None] = [None] * len(_FIELDS)
        for name, value in headers:
            place = _FIELDS.get(name.lower())
            if place is not None:
                if found[place] is not None:
                    raise malformed(f"the header {name.lower().decode('latin-1')} may be sent only once")
                found[place] = value
        host, length, coding, expect, authorization, api_key, self.content_type, self.join, timeout = found[:9]
        self.model, self.variant = found[9:]
        if host is None:
            raise malformed("a Host header is needed")
        self._host = host
        self.target = _origin_form(method, target, host)
        self.path = self.target.partition(b"?")[0] if b"?" in self.target else self.target
        self.length = int(length) if length else 0
        self.chunked = coding is not None
        if coding is not None and (coding.lower() != b"chunked" or self.old):
            raise malformed("the only transfer encoding is chunked, in HTTP/1.1")
        self.expects = expect is not None and not self.old
        if self.expects and expect is not None and expect.lower() != b"100-continue":
            raise refusal(417, "bad_request", "the only expectation is 100-continue")
        bearer = authorization is not None and authorization[:7].lower() == _BEARER
        self.credential = authorization[7:].strip() if bearer and authorization else api_key
        self.timeout_ms = None if timeout is None else _milliseconds(timeout)
        self.signed = authorization is not None and api_key is None and authorization.startswith(_SIGNED)

    def invokes(self) -> bytes | None:
        """The name of the endpoint that the request asks for predictions; None for any other request."""
        path = self.path
        if self.method == b"POST" and path.startswith(ENDPOINTS) and path.endswith(INVOCATIONS):
            return path[len(ENDPOINTS) : -len(INVOCATIONS)]
        return None

    def take_amzn(self) -> None:
        """Read what a signed request says in headers of its own. Raises ``InvalidInput`` for one that comes twice."""
        found: dict[bytes, bytes] = {}
        for name, value in self.headers:
            lower = name.lower()
            if lower.startswith(_AMZN) and found.setdefault(lower, value) is not value:
                raise malformed(f"the header {lower.decode('latin-1')} may be sent only once")
        self.variant = found.get(_AMZN + b"target-variant", self.variant)
        self.model = found.get(_AMZN + b"target-model", self.model)
        self.join = found.get(_AMZN + b"inference-id", self.join)

    def passed(self) -> bytes:
        """The content type, and a line for each header that a model is told which reads bodies by itself."""
        lines = [self.content_type or b"application/json"]
        for name, value in self.headers:
            lower = name.lower()
            if lower in _PASSED:
                lines.append(b"%b: %b" % (lower, value))
        return b"\n".join(lines)

    def purpose(self) -> bytes | None:
        """What a private client says that the request is for. Raises ``InvalidInput`` for what is no purpose."""
        said = [value for name, value in self.headers if name.lower() == b"x-loopline-purpose"]
        if not said:
            return None
        if len(said) > 1 or said[0] not in _PURPOSES:
            raise malformed(f"x-loopline-purpose is one of {', '.join(PURPOSES)}")
        return said[0]

    def tested(self) -> tuple[bytes, bytes] | None:
        """The endpoint and the variant that a request of the purpose ``test`` stands for, wherever it goes; None where
        it says nothing. Raises ``InvalidInput`` for what is no ``ENDPOINT/VARIANT``."""
        said = [value for name, value in self.headers if name.lower() == b"x-loopline-tested"]
        if not said:
            return None
        endpoint, _, variant = said[0].partition(b"/")
        if len(said) > 1 or not endpoint or not variant:
            raise malformed("x-loopline-tested is ENDPOINT/VARIANT")
        return endpoint, variant

    def check_host(self, hosts: frozenset[bytes]) -> None:
        """Raises ``InvalidInput`` unless the Host header is exactly one of ``hosts``."""
        if self._host not in hosts and self._host.lower() not in hosts:
            raise misdirected()


def _milliseconds(value: bytes) -> int:
    """How long a client waits. Raises ``InvalidInput`` unless it is a positive whole number."""
    if not (value.isdigit() and len(value) <= 9 and int(value)):
        raise malformed("x-loopline-timeout-ms must be a whole number of milliseconds, at least 1")
    return int(value)


def _origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """The path and query of a request target that is for this server."""
    if b"#" in target:
        raise malformed("a request target has no fragment")
    if target.startswith(b"/"):
        return target
    if method == b"OPTIONS" and target == b"*":
        return target
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise malformed("the request target must be a path")
    authority, _, path = rest.partition(b"/")
    if authority.lower() != host.lower():
        raise misdirected()
    return b"/" + path
