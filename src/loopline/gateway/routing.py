"""From a snapshot and its links to decisions: which endpoint, whether the key may, which variant, which server."""

import json
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from loopline.domain import sigv4
from loopline.domain.access import FUNCTION_SCOPE, ROLES, Permission, parse_key, secret_matches
from loopline.domain.frames import MAX_FRAME_BYTES
from loopline.errors import BadSignature, Forbidden, InvalidInput, NotFound, Unauthenticated
from loopline.gateway import sticky
from loopline.gateway.allowances import Allowance, Allowances
from loopline.gateway.head import MAX_HEAD_BYTES, Head
from loopline.gateway.limits import Admission, Limits
from loopline.gateway.links import Link
from loopline.gateway.shadow import Shadow
from loopline.gateway.snapshot import AccessKeySpec, EndpointSpec, KeySpec, Snapshot, VariantSpec

MAX_DERIVED = 16  # keys of days and regions that are kept of each access key


class Variant:
    """A variant with its live servers, and the bytes that every answer and record of it repeats."""

    __slots__ = (
        "_turn",
        "admission",
        "called",
        "cold_start_seconds",
        "headers",
        "invoked",
        "links",
        "meta",
        "name",
        "ok",
        "on_demand",
        "weight",
        "what",
        "whole",
    )

    def __init__(self, endpoint: str, spec: VariantSpec, links: Mapping[str, Link], admission: Admission) -> None:
        self.name = spec.name
        self.admission = admission
        self.weight = spec.weight
        self.links = [links[path] for path in spec.servers]
        self._turn = 0
        self.on_demand = spec.on_demand and bool(spec.servers)
        self.cold_start_seconds = spec.cold_start_ms / 1000
        named = f"the model {spec.answers_to}" if spec.answers_to else f"the variant {spec.name}"
        self.what = f"the model {spec.model} version {spec.version}" if spec.model else named
        version = "none" if spec.version is None else str(spec.version)
        self.headers = f"x-loopline-version: {version}\r\nx-loopline-variant: {spec.name}\r\n".encode(
            "ascii", "replace"
        )
        self.called = (spec.called or spec.name).encode()
        self.invoked = b"x-amzn-invoked-production-variant: %b\r\n" % self.called
        self.whole = spec.whole
        self.ok = b"HTTP/1.1 200 OK\r\n%bcontent-type: application/json\r\nx-request-id: " % self.headers
        self.meta = _meta(endpoint, spec.name, spec.version, spec.model)

    @property
    def awake(self) -> bool:
        """Whether any of its servers is connected."""
        return any(link.connected for link in self.links)

    @property
    def ready(self) -> bool:
        """Whether it can be asked; one on demand starts when it is."""
        return self.on_demand or self.awake

    def next_link(self) -> Link | None:
        """The connected server that has the fewest requests, those with as few in turn; None when none is connected.

        One that hangs is so given no more than the others have.
        """
        links = self.links
        if len(links) == 1:
            return links[0] if links[0].connected else None
        found: Link | None = None
        for step in range(1, len(links) + 1):
            link = links[(self._turn + step) % len(links)]
            if link.connected and (found is None or len(link.pending) < len(found.pending)):
                found, turn = link, self._turn + step
        if found is not None:
            self._turn = turn % len(links)
        return found


def _meta(endpoint: str, variant: str | None, version: int | None, model: str | None) -> bytes:
    fields = {"endpoint": endpoint, "variant": variant, "version": version, "model": model}
    return json.dumps(fields, separators=(",", ":"))[1:-1].encode()


class Models:
    """The models of an endpoint with many: each a variant of its own, made when it is asked for first."""

    def __init__(self, name: str, spec: EndpointSpec, links: Mapping[str, Link], limits: Limits) -> None:
        self._endpoint = name
        self._spec = spec
        self._links = links
        self._limits = limits
        self._made: dict[str, Variant] = {}
        self._known: dict[bytes, VariantSpec] = {}
        for variant in spec.variants:
            if variant.answers_to:
                self._known[variant.answers_to.encode()] = variant
                continue
            self._known[f"{variant.model}:{variant.version}".encode()] = variant
            if variant.weight > 0:
                self._known[str(variant.model).encode()] = variant

    @property
    def made(self) -> Iterable[Variant]:
        """The variants that were asked for so far."""
        return self._made.values()

    def has(self, wanted: bytes) -> bool:
        """Whether a variant serves ``NAME`` or ``NAME:VERSION``."""
        return wanted in self._known

    def find(self, wanted: bytes | None) -> Variant:
        """The variant that serves ``NAME`` or ``NAME:VERSION``. Raises ``InvalidInput`` for none, ``NotFound``."""
        if wanted is None:
            raise InvalidInput("this endpoint serves several models; name one in the header x-loopline-model")
        spec = self._known.get(wanted)
        if spec is None:
            raise NotFound("this endpoint serves no model by that name")
        variant = self._made.get(spec.name)
        if variant is None:
            whole = self._spec
            admission = self._limits.of(self._endpoint, spec.name, whole.max_concurrent, whole.queue_ms / 1000)
            variant = self._made[spec.name] = Variant(self._endpoint, spec, self._links, admission)
        return variant


class Endpoint:
    """An endpoint as the data plane sees it. ``models``: of one whose requests name theirs; it has no ``variants``."""

    __slots__ = (
        "_bounds",
        "_total",
        "by_request",
        "capture",
        "max_body_bytes",
        "meta",
        "models",
        "name",
        "named",
        "shadows",
        "spec",
        "sticky",
        "timeout_seconds",
        "variants",
    )

    def __init__(self, name: str, spec: EndpointSpec, links: Mapping[str, Link], limits: Limits) -> None:
        self.name = name
        self.spec = spec
        self.capture = spec.capture
        self.max_body_bytes = min(spec.max_body_bytes, MAX_FRAME_BYTES - MAX_HEAD_BYTES)  # one frame carries it
        self.timeout_seconds = spec.timeout_ms / 1000
        self.meta = _meta(name, None, None, None)
        self.models = Models(name, spec, links, limits) if spec.multi_model else None
        every = [
            Variant(name, variant, links, limits.of(name, variant.name, spec.max_concurrent, spec.queue_ms / 1000))
            for variant in spec.variants
            if not spec.multi_model
        ]
        self.variants = [variant for variant in every if variant.weight > 0]
        self.named = {variant.name.encode(): variant for variant in every}
        self.shadows = [
            Shadow(variant, self.named[variant.name.encode()].links, self.named[variant.name.encode()].meta, spec)
            for variant in spec.variants
            if variant.shadow > 0 and not spec.multi_model
        ]
        self.sticky = spec.sticky.lower().encode() or None
        self.by_request = self.models is not None or self.sticky is not None  # which variant depends on the request
        self._bounds = list(accumulate(variant.weight for variant in self.variants))
        self._total = self._bounds[-1] if self._bounds else 0.0

    @property
    def asked(self) -> list[Variant]:
        """Every variant that may have been asked, also those that get no traffic by weight."""
        return [*self.named.values(), *(self.models.made if self.models is not None else ())]

    @property
    def ready(self) -> bool:
        """Whether every variant that gets traffic can be asked."""
        return bool(self.models or self.variants) and all(variant.ready for variant in self.variants)

    def pick(self, head: Head, chance: Callable[[], float]) -> Variant | None:
        """The variant of the model that a request names, the one asked for by name, the one of its sticky key, or
        any by ``choose``.

        Raises ``NotFound`` for a name that nothing has, and ``InvalidInput`` where it has to name a model.
        """
        if self.models is not None:
            return self.models.find(head.model)
        if head.variant is not None:
            variant = self.named.get(head.variant)
            if variant is None:
                known = ", ".join(sorted(each.name for each in self.named.values())) or "none"
                raise NotFound(f"this endpoint has no variant by that name; variants: {known}")
            return variant
        if self.sticky is not None and len(self.variants) > 1:
            for name, value in head.headers:
                if name.lower() == self.sticky:
                    return sticky.choose(self.variants, value)
        return self.choose(chance)

    def choose(self, chance: Callable[[], float]) -> Variant | None:
        """A variant with a probability in proportion to its weight; ``chance`` gives numbers from [0, 1)."""
        if len(self.variants) < 2:
            return self.variants[0] if self.variants else None
        place = bisect_right(self._bounds, chance() * self._total)
        return self.variants[min(place, len(self.variants) - 1)]  # rounding may reach the last bound

    def called(self, wanted: bytes, chance: Callable[[], float]) -> Variant | None:
        """A variant that callers know as ``wanted``: of those that get traffic one by its weight, else any."""
        found = [variant for variant in self.named.values() if variant.called == wanted]
        taking = [variant for variant in found if variant.weight > 0]
        if len(taking) < 2:
            return next(iter(taking or found), None)
        bounds = list(accumulate(variant.weight for variant in taking))
        return taking[min(bisect_right(bounds, chance() * bounds[-1]), len(taking) - 1)]


class Key:
    """An API key and where it may go."""

    __slots__ = ("_endpoints", "_everywhere", "_may_invoke", "_sha256", "allowance", "expires_at", "meta")

    def __init__(self, key_id: str, spec: KeySpec, allowance: Allowance | None) -> None:
        self.meta = json.dumps(key_id).encode()
        self.allowance = allowance
        self._sha256 = spec.sha256
        self.expires_at = spec.expires_at
        self._may_invoke = Permission.INVOKE in ROLES.get(spec.role, frozenset())
        self._everywhere = "*" in spec.endpoints
        self._endpoints = frozenset(spec.endpoints)

    def opens(self, secret: str, now: float) -> bool:
        """Whether the secret is right and the key has not expired."""
        return secret_matches(secret, self._sha256) and (self.expires_at is None or now < self.expires_at)

    def may_invoke(self, endpoint: str) -> bool:
        """Whether its role may invoke at all and its scope holds the endpoint."""
        return self._may_invoke and (self._everywhere or endpoint in self._endpoints)


class AccessKey(Key):
    """A key that signs requests."""

    __slots__ = ("_days", "_derived", "_token_sha256")

    def __init__(self, key_id: str, spec: AccessKeySpec) -> None:
        plain = KeySpec(sha256="", role=spec.role, endpoints=spec.endpoints, expires_at=spec.expires_at)
        super().__init__(key_id, plain, None)
        self._token_sha256 = spec.token_sha256
        self._days = spec.signing
        self._derived: dict[tuple[str, str, str], bytes] = {}

    def comes_with(self, token: str | None, now: float) -> bool:
        """Whether it has not expired, and was shown with its token where it has one, and with none where not."""
        if self.expires_at is not None and now >= self.expires_at:
            return False
        if self._token_sha256 is None:
            return token is None
        return token is not None and secret_matches(token, self._token_sha256)

    def signing(self, day: str, region: str, service: str) -> bytes:
        """What signs its requests of a day. Raises ``BadSignature`` for a day that is not near."""
        found = self._derived.get((day, region, service))
        if found is None:
            if day not in self._days:
                raise BadSignature(f"the request was signed on {day}")
            if len(self._derived) >= MAX_DERIVED:
                self._derived.clear()
            of_the_day = bytes.fromhex(self._days[day])
            found = self._derived[day, region, service] = sigv4.signing_key(of_the_day, region, service)
        return found


class Table:
    """An immutable routing table, made from one snapshot."""

    def __init__(self, snapshot: Snapshot, links: Mapping[str, Link], limits: Limits, allowances: Allowances) -> None:
        self.number = snapshot.number
        self.hosts = frozenset(host.lower().encode() for host in snapshot.allowed_hosts)
        self.endpoints = {
            name.encode(): Endpoint(name, spec, links, limits) for name, spec in snapshot.endpoints.items()
        }
        self.functions = {
            name.encode(): Endpoint(f"{FUNCTION_SCOPE}:{name}", spec, links, limits)
            for name, spec in snapshot.functions.items()
        }
        self.calls = {  # which endpoints each function may ask
            name.encode(): frozenset(endpoint.encode() for endpoint in spec.calls)
            for name, spec in snapshot.functions.items()
        }
        self._signers = {key_id: AccessKey(key_id, spec) for key_id, spec in snapshot.access_keys.items()}
        self._keys = {key_id: Key(key_id, spec, allowances.of(key_id, spec)) for key_id, spec in snapshot.keys.items()}

    def authorise(self, credential: bytes | None, endpoint: str) -> Key:
        """The key that was shown, if it may invoke the endpoint.

        Raises ``Unauthenticated`` for no, a malformed, unknown, wrong or expired key, ``Forbidden`` for any other key.
        """
        parsed = parse_key(credential.decode("latin-1")) if credential else None
        key = self._keys.get(parsed[0]) if parsed else None
        if parsed is None or key is None or not key.opens(parsed[1], time.time()):
            raise Unauthenticated
        if not key.may_invoke(endpoint):
            raise Forbidden("this key may not invoke this endpoint")
        return key

    def signer(self, key_id: str, token: str | None, endpoint: str | None) -> AccessKey:
        """The access key that a request claims, if it may invoke the endpoint (None: there is none to be asked).

        Raises ``Unauthenticated`` for an unknown or expired one or a wrong token, and ``Forbidden``.
        """
        key = self._signers.get(key_id)
        if key is None or not key.comes_with(token, time.time()):
            raise Unauthenticated("The security token included in the request is invalid.")
        if endpoint is not None and not key.may_invoke(endpoint):
            raise Forbidden("this access key may not invoke this endpoint")
        return key


def make_rng(seed: str, index: int) -> random.Random:
    """The generator of a gateway's traffic choices; repeatable when a seed is set."""
    return random.Random(f"{seed}:{index}") if seed else random.Random()  # noqa: S311 - chooses variants, no secrets
