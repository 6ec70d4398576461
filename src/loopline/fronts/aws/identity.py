"""Who signed a request: a live access key, checked by Signature Version 4, or nobody where a setting allows that."""

from typing import NamedTuple

from loopline import config
from loopline.control import access_keys
from loopline.control.access_keys import Holder
from loopline.control.context import Context
from loopline.domain import sigv2, sigv4
from loopline.domain.access import Actor
from loopline.domain.sigv4 import Claim, Request
from loopline.errors import AwsError, Unauthenticated
from loopline.fronts.aws.models import QUERY, REST_XML

_CLIENT = "x-loopline-client"  # the gateway's word for who asks


class Caller(NamedTuple):
    """Who asks, under which role's name, and with which key further parts of the request are signed."""

    actor: Actor
    role: str
    session: str
    signing_key: bytes = b""


def authenticate(ctx: Context, head: Request, claim: Claim | None, body_sha256: str | None, protocol: str) -> Caller:
    """The caller; raises ``Unauthenticated`` or ``AwsError``."""
    old = sigv2.read(head) if claim is None and protocol == REST_XML else None
    if old is not None:
        holder = _holder(ctx, old.key, old.token, protocol)
        sigv2.verify(old, head, holder.secret, ctx.clock.now())
        return _caller(holder, b"")
    if claim is None:
        return _unsigned(ctx, head)
    holder = _holder(ctx, claim.key, claim.token, protocol)
    key = sigv4.signing_key(sigv4.day_key(holder.secret, claim.date), claim.region, claim.service)
    sigv4.verify(claim, head, key, ctx.clock.now(), body_sha256)
    return _caller(holder, key)


def _holder(ctx: Context, key: str, token: str | None, protocol: str) -> Holder:
    holder = access_keys.find(ctx, key)
    if holder is None or not access_keys.token_matches(holder, token):
        raise _unknown(protocol)
    return holder


def _caller(holder: Holder, key: bytes) -> Caller:
    return Caller(holder.actor, holder.alias or builtin(holder.actor.role), holder.session or holder.actor.name, key)


def builtin(role: str) -> str:
    """The name that a role of loopline goes by where nobody gave it another."""
    return f"loopline-{role}"


def _unknown(protocol: str) -> AwsError:
    message = "The security token included in the request is invalid: this access key is unknown, expired or revoked"
    if protocol == REST_XML:
        return AwsError("InvalidAccessKeyId", message, 403)
    return AwsError("InvalidClientTokenId" if protocol == QUERY else "UnrecognizedClientException", message, 403)


def _unsigned(ctx: Context, head: Request) -> Caller:
    """Requests without a signature: from this machine only, not from a page in a browser, and only where it was set."""
    role = ctx.settings.aws_unsigned
    address = (head.header(_CLIENT) or "").rpartition(":")[0]
    if not role or not config.is_loopback(address) or head.header("origin") or head.header("sec-fetch-site"):
        raise Unauthenticated('the request is not signed; `eval "$(loopline env)"` sets a key pair')
    return Caller(Actor(name="unsigned", role=role), builtin(role), "unsigned")
