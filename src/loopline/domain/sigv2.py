"""Presigned S3 addresses of Signature Version 2, which boto3 still makes by default for us-east-1.

Nothing but a presigned address is taken: requests signed in this way in their headers are refused. Source: Amazon S3
User Guide, "Signing and authenticating REST requests (AWS signature version 2)".
"""

import base64
import hmac
from dataclasses import dataclass

from loopline.domain.sigv4 import MAX_EXPIRES_SECONDS, SKEW_SECONDS, Request
from loopline.errors import BadSignature, Expired

# The parts of a query that say what is asked for, and so are signed.
_SIGNED = frozenset(
    (
        *("accelerate", "acl", "analytics", "cors", "delete", "inventory", "lifecycle", "location", "logging"),
        *("metrics", "notification", "object-lock", "partNumber", "policy", "replication", "requestPayment"),
        *("response-cache-control", "response-content-disposition", "response-content-encoding"),
        *("response-content-language", "response-content-type", "response-expires", "restore", "select"),
        *("select-type", "storageClass", "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning"),
        *("versions", "website"),
    )
)


@dataclass(frozen=True)
class Presigned:
    """What an address says about itself; nothing of it is true before ``verify``."""

    key: str
    signature: str
    expires_at: int  # seconds since the epoch
    token: str | None


def read(request: Request) -> Presigned | None:
    """The claim of a presigned address, None for any other request. Raises ``BadSignature`` for half of one."""
    arguments = dict(request.arguments())
    if "AWSAccessKeyId" not in arguments or "Signature" not in arguments:
        return None
    expires = arguments.get("Expires", "")
    if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12):
        raise BadSignature("Expires must be a number of seconds since the epoch")
    token = arguments.get("x-amz-security-token") or request.header("x-amz-security-token")
    return Presigned(arguments["AWSAccessKeyId"], arguments["Signature"], int(expires), token)


def verify(claim: Presigned, request: Request, secret: str, now: float) -> None:
    """Raise ``BadSignature``, or ``Expired`` out of its time, unless the address was signed with the secret."""
    wanted = hmac.new(secret.encode(), _string_to_sign(claim, request).encode(), "sha1").digest()
    if not hmac.compare_digest(base64.b64encode(wanted).decode(), claim.signature):
        raise BadSignature(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method."
        )
    if now > claim.expires_at:
        raise Expired("the address has expired")
    if now < claim.expires_at - MAX_EXPIRES_SECONDS - SKEW_SECONDS:
        raise BadSignature(f"an address is good for at most {MAX_EXPIRES_SECONDS // 86400} days")


def _string_to_sign(claim: Presigned, request: Request) -> str:
    arguments = request.arguments()
    named = dict(arguments)
    own = {name: request.header(name) or "" for name, _ in request.headers if name.startswith("x-amz-")}
    own.update({name: value for name, value in arguments if name.startswith("x-amz-")})
    standard = [named.get(name) or request.header(name) or "" for name in ("content-md5", "content-type")]
    headers = "".join(f"{name}:{value.strip()}\n" for name, value in sorted(own.items()))
    asked = sorted((name, value) for name, value in arguments if name in _SIGNED)
    bare = {part for part in request.query.split("&") if "=" not in part}
    query = "&".join(name if name in bare else f"{name}={value}" for name, value in asked)
    resource = f"{request.path}?{query}" if query else request.path
    return "\n".join((request.method, *standard, str(claim.expires_at), headers + resource))
