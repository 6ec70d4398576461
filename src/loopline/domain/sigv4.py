"""AWS Signature Version 4 from the side that verifies: headers, presigned addresses, and bodies signed in chunks.

Sources: the AWS guide "AWS Signature Version 4 for API requests", and of the S3 API reference "Signature calculations
for the Authorization header: transferring payload in multiple chunks" and the same with trailing headers.
What is signed binds the request to its method, path, query, host and every ``x-amz-*`` header; the body by its hash.
"""

import datetime
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

from loopline.errors import BadSignature, Expired, InvalidInput

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()
SKEW_SECONDS = 900
MAX_EXPIRES_SECONDS = 7 * 86400

_CREDENTIAL = re.compile(r"([A-Za-z0-9]{4,128})/([0-9]{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request")
_HEX = re.compile(r"[0-9a-f]{64}")
_AT = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Request(NamedTuple):
    """What was sent: path and query as they stood on the request line, header names in lower case."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]

    def header(self, name: str) -> str | None:
        """The value; several of one name joined by commas."""
        values = [value for key, value in self.headers if key == name]
        return ",".join(values) if values else None

    def arguments(self) -> list[tuple[str, str]]:
        """The query's pairs, decoded. A plus sign is a plus sign."""
        pairs = (part.partition("=") for part in self.query.split("&") if part)
        return [(unquote(name), unquote(value)) for name, _, value in pairs]


@dataclass(frozen=True)
class Claim:
    """What a signed request says about itself; nothing of it is true before ``verify``."""

    key: str  # the access key's id
    date: str  # yyyymmdd
    region: str
    service: str
    at: str  # yyyymmddThhmmssZ
    signed: tuple[str, ...]
    signature: str
    payload: str | None  # what stands for the body's hash; None: the hash itself, which was not said
    token: str | None  # of temporary credentials
    expires_seconds: int | None  # of a presigned address

    @property
    def scope(self) -> str:
        """What the key was derived for."""
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def read(request: Request) -> Claim | None:
    """The claim of a request, None for one that is not signed like this. Raises ``BadSignature`` for half of one."""
    authorization = request.header("authorization") or ""
    if authorization.startswith(ALGORITHM):
        return _in_header(request, authorization[len(ALGORITHM) :])
    arguments = dict(request.arguments())
    if arguments.get("X-Amz-Algorithm") == ALGORITHM:
        return _in_query(request, arguments)
    return None


def _in_header(request: Request, text: str) -> Claim:
    fields = dict(part.strip().partition("=")[::2] for part in text.split(","))
    at = request.header("x-amz-date") or ""
    names = fields.get("SignedHeaders", "")
    payload, token = request.header("x-amz-content-sha256"), request.header("x-amz-security-token")
    return _claim(fields.get("Credential", ""), at, names, fields.get("Signature", ""), payload, token, None)


def _in_query(request: Request, arguments: dict[str, str]) -> Claim:
    expires = arguments.get("X-Amz-Expires", "")
    if not (expires.isascii() and expires.isdecimal() and 1 <= int(expires[:9]) <= MAX_EXPIRES_SECONDS):
        raise BadSignature(f"X-Amz-Expires must be a number of seconds from 1 to {MAX_EXPIRES_SECONDS}")
    payload = arguments.get("X-Amz-Content-Sha256") or request.header("x-amz-content-sha256")
    credential = arguments.get("X-Amz-Credential", "")
    if payload is None and "/s3/" in credential:
        payload = UNSIGNED
    return _claim(
        credential,
        arguments.get("X-Amz-Date", ""),
        arguments.get("X-Amz-SignedHeaders", ""),
        arguments.get("X-Amz-Signature", ""),
        payload,
        arguments.get("X-Amz-Security-Token"),
        int(expires),
    )


def _claim(
    credential: str,
    at: str,
    names: str,
    signature: str,
    payload: str | None,
    token: str | None,
    expires: int | None,
) -> Claim:
    found = _CREDENTIAL.fullmatch(credential)
    if found is None or not _AT.fullmatch(at) or not _HEX.fullmatch(signature) or not names:
        raise BadSignature("the signature is incomplete: Credential, SignedHeaders, Signature and a date are needed")
    key, date, region, service = found.groups()
    if at[:8] != date:
        raise BadSignature("the date of the credential's scope is not the day of X-Amz-Date")
    return Claim(key, date, region, service, at, tuple(names.split(";")), signature, payload, token, expires)


# -- checking ---------------------------------------------------------------------------------------------------------


def day_key(secret: str, date: str) -> bytes:
    """The key of one day, from which ``signing_key`` derives further; the secret cannot be had from it."""
    return _hmac(f"AWS4{secret}".encode(), date)


def signing_key(of_the_day: bytes, region: str, service: str) -> bytes:
    """The key that signs requests of that day to one service of one region."""
    key = of_the_day
    for part in (region, service, "aws4_request"):
        key = _hmac(key, part)
    return key


def verify(claim: Claim, request: Request, key: bytes, now: float, body_sha256: str | None = None) -> None:
    """Raise ``BadSignature``, or ``Expired`` out of its time, unless the request was signed with ``key``.

    ``body_sha256``: the hash of the body, which only a request needs that does not say it. Where it says one, that is
    what was signed: whoever reads the body compares (``whole``, ``chunks``).
    """
    _check_time(claim, now)
    unsigned = sorted({name for name, _ in request.headers if name.startswith("x-amz-")} - set(claim.signed))
    if "host" not in claim.signed or unsigned:
        raise BadSignature(f"these headers have to be signed: {', '.join(unsigned) or 'host'}")
    payload = claim.payload if claim.payload is not None else body_sha256
    if payload is None:
        raise BadSignature("the header x-amz-content-sha256 is needed")
    if payload == UNSIGNED and claim.service != "s3":
        raise BadSignature("the body has to be signed")
    wanted = _hmac(key, string_to_sign(claim, canonical(claim, request, payload))).hex()
    if not hmac.compare_digest(wanted, claim.signature):
        raise BadSignature(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method."
        )


def moment(at: str) -> float:
    """Seconds since the epoch of ``yyyymmddThhmmssZ``; raises ``BadSignature`` for no such moment."""
    try:
        return datetime.datetime.strptime(f"{at}+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    except ValueError:
        raise BadSignature(f"{at} is not a date") from None


def _check_time(claim: Claim, now: float) -> None:
    at = moment(claim.at)
    if claim.expires_seconds is None:
        if abs(now - at) > SKEW_SECONDS:
            raise Expired(f"the request was signed at {claim.at}, more than {SKEW_SECONDS // 60} minutes from now")
    elif now < at - SKEW_SECONDS:
        raise Expired(f"the address is good from {claim.at} on")
    elif now > at + claim.expires_seconds:
        raise Expired("the address has expired")


def canonical(claim: Claim, request: Request, payload: str) -> str:
    """The canonical request."""
    values: dict[str, list[str]] = {}
    for name, value in request.headers:
        values.setdefault(name, []).append(" ".join(value.split()))
    missing = [name for name in claim.signed if name not in values]
    if missing:
        raise BadSignature(f"signed headers are missing: {', '.join(missing)}")
    headers = "".join(f"{name}:{','.join(values[name])}\n" for name in claim.signed)
    parts = request.path.split("/")  # an encoded slash is part of a key's name
    whole = claim.service == "s3"
    path = "/".join(_encode(unquote(part)) for part in parts) if whole else _encode(_normal(request.path), "/")
    pairs = [(_encode(k), _encode(v)) for k, v in request.arguments() if k != "X-Amz-Signature"]
    query = "&".join(f"{name}={value}" for name, value in sorted(pairs))
    return "\n".join((request.method, path, query, headers, ";".join(claim.signed), payload))


def string_to_sign(claim: Claim, canonical_request: str) -> str:
    """What the signing key signs."""
    return "\n".join((ALGORITHM, claim.at, claim.scope, hashlib.sha256(canonical_request.encode()).hexdigest()))


def _normal(path: str) -> str:
    """RFC 3986, 5.2.4, and no empty segment: services other than S3 sign the path so."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    tail = "/" if kept and path.endswith("/") else ""
    return f"/{'/'.join(kept)}{tail}"


def _encode(text: str, safe: str = "") -> str:
    return quote(text, safe="-_.~" + safe, errors="surrogatepass")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), "sha256").digest()


# -- bodies -----------------------------------------------------------------------------------------------------------

MAX_LINE_BYTES = 4096
MAX_TRAILERS = 16
_PLAIN_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"


def is_chunked(payload: str | None) -> bool:
    """Whether the body comes as ``aws-chunked``."""
    return payload in (_PLAIN_TRAILER, _SIGNED, _SIGNED_TRAILER)


def whole(parts: Iterable[bytes], payload: str) -> Iterator[bytes]:
    """The parts of a body whose hash was said in advance; raises ``BadSignature`` at the end for another body."""
    if payload == UNSIGNED:
        yield from parts
        return
    seen = hashlib.sha256()
    for part in parts:
        seen.update(part)
        yield part
    if not hmac.compare_digest(seen.hexdigest(), payload):
        raise BadSignature("The provided 'x-amz-content-sha256' header does not match what was computed.")


class _Source:
    """Lines and lengths out of parts of any size."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._held = b""

    def line(self) -> bytes:
        """Up to the next CRLF, without it."""
        while b"\r\n" not in self._held:
            if len(self._held) > MAX_LINE_BYTES:
                raise InvalidInput("a line of an aws-chunked body is too long")
            self._more()
        line, _, self._held = self._held.partition(b"\r\n")
        return line

    def take(self, size: int) -> Iterator[bytes]:
        """Exactly ``size`` bytes, in parts as they come."""
        while size:
            if not self._held:
                self._more()
            piece, self._held = self._held[:size], self._held[size:]
            size -= len(piece)
            yield piece

    def _more(self) -> None:
        for part in self._parts:
            if part:
                self._held += part
                return
        raise InvalidInput("the aws-chunked body ended before its last chunk")


class Chunked:
    """An ``aws-chunked`` body, decoded; ``trailers`` is filled when it has been read to its end.

    Iteration raises ``BadSignature`` where a chunk is not the one that was signed, and ``InvalidInput`` where the body
    is not framed as it should be; what came before must then be forgotten.
    """

    def __init__(self, parts: Iterable[bytes], claim: Claim | None, key: bytes, mode: str) -> None:
        self.trailers: dict[str, str] = {}
        self._source = _Source(parts)
        self._claim = claim if mode != _PLAIN_TRAILER else None
        self._key = key
        self._trailing = mode != _SIGNED
        self._last = claim.signature if claim else ""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            size, signature = _chunk_head(self._source.line())
            seen = hashlib.sha256()
            for piece in self._source.take(size):
                seen.update(piece)
                yield piece
            self._check("PAYLOAD", f"{EMPTY}\n{seen.hexdigest()}", signature)
            if not size:
                break
            if self._source.line():
                raise InvalidInput("a chunk of an aws-chunked body is longer than it says")
        if self._trailing:
            self._read_trailers()
        else:
            self._source.line()

    def _read_trailers(self) -> None:
        lines: list[tuple[str, str]] = []
        signature = ""
        while line := self._source.line():
            name, _, value = line.decode("latin-1").partition(":")
            if name.strip().lower() == "x-amz-trailer-signature":
                signature = value.strip()
                continue
            if len(lines) == MAX_TRAILERS:
                raise InvalidInput("an aws-chunked body has too many trailers")
            lines.append((name.strip().lower(), value.strip()))
        text = "".join(f"{name}:{value}\n" for name, value in lines)
        self._check("TRAILER", hashlib.sha256(text.encode("latin-1")).hexdigest(), signature)
        self.trailers.update(lines)

    def _check(self, what: str, hashes: str, signature: str) -> None:
        if self._claim is None:
            return
        text = "\n".join((f"{ALGORITHM}-{what}", self._claim.at, self._claim.scope, self._last, hashes))
        self._last = _hmac(self._key, text).hex()
        if not hmac.compare_digest(self._last, signature):
            raise BadSignature("a chunk of the body is not the one that was signed")


def _chunk_head(line: bytes) -> tuple[int, str]:
    size, _, extension = line.partition(b";")
    if not 1 <= len(size) <= 16 or not re.fullmatch(b"[0-9A-Fa-f]+", size):
        raise InvalidInput("a chunk of an aws-chunked body has no size")
    return int(size, 16), extension.partition(b"chunk-signature=")[2].decode("latin-1").strip()
