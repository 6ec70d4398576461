"""The snapshot that control writes: what the gateway may route, to whom, and for which keys; checked on reading."""

from typing import Annotated

import msgspec

from loopline.domain.access import FUNCTION_SCOPE
from loopline.errors import InvalidInput

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-z]{8}\Z")]  # becomes a file's name


class VariantSpec(msgspec.Struct, frozen=True):
    """One variant of an endpoint; ``servers`` are paths of Unix sockets.

    ``shadow``: the share of the endpoint's requests that it gets copies of.
    ``on_demand``: the first of them runs only while somebody asks; a request waits ``cold_start_ms`` for it at most.
    ``called``: what callers know it as, where that is not its name. ``whole``: its model reads and writes bodies by
    itself, and is told what the caller accepts. ``answers_to``: what its model is asked for by, where that is no name.
    """

    name: str
    weight: Weight
    servers: tuple[str, ...]
    version: int | None = None
    model: str | None = None
    shadow: Fraction = 0.0
    on_demand: bool = False
    cold_start_ms: Count = 30_000
    called: str = ""
    whole: bool = False
    answers_to: str = ""


class EndpointSpec(msgspec.Struct, frozen=True):
    """One endpoint. ``auth`` is on unless it is switched off in so many words.

    ``multi_model``: each request names its model; the variant with a weight serves unless it names the version, too.
    ``fetches``: control is asked for a model that is not among the variants.
    """

    variants: tuple[VariantSpec, ...]
    auth: bool = True
    capture: Fraction = 1.0
    max_body_bytes: Count = 6 * 1024 * 1024
    timeout_ms: Count = 30_000
    max_concurrent: Count = 256  # of each variant
    queue_ms: Annotated[int, msgspec.Meta(ge=0)] = 1000  # how long a request may wait for its turn
    multi_model: bool = False
    fetches: bool = False
    sticky: str = ""  # the header by which callers are kept on one variant


class FunctionSpec(EndpointSpec, frozen=True):
    """One function, which serves as an endpoint does; ``calls`` are the endpoints that it may ask."""

    calls: tuple[str, ...] = ()


class KeySpec(msgspec.Struct, frozen=True):
    """One API key: the hash of its secret, its role, the endpoints that it may ask (``*``: all), and when it ends.

    ``rate``: requests a second, with bursts of ``burst``; ``quota``: requests in every ``quota_seconds``.
    """

    sha256: str
    role: str
    endpoints: tuple[str, ...] = ()
    expires_at: float | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[float, msgspec.Meta(ge=1)] | None = None
    quota: Count | None = None
    quota_seconds: Count = 86400


class AccessKeySpec(msgspec.Struct, frozen=True):
    """One key that signs requests. ``signing``: of each day, yyyymmdd, the key that those of its services are derived
    from, in hexadecimal digits; ``token_sha256``: of the token that a temporary one is shown with."""

    role: str
    signing: dict[str, str]
    endpoints: tuple[str, ...] = ()
    expires_at: float | None = None
    token_sha256: str | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that a gateway knows, as one immutable value with a number."""

    number: int
    at: float
    allowed_hosts: tuple[str, ...]
    endpoints: dict[str, EndpointSpec]
    keys: dict[KeyId, KeySpec]
    functions: dict[str, FunctionSpec] = {}
    access_keys: dict[str, AccessKeySpec] = {}

    def served(self) -> dict[str, EndpointSpec]:
        """Endpoints and functions; a function by the name that a key's scope has for it."""
        return {**self.endpoints, **{f"{FUNCTION_SCOPE}:{name}": spec for name, spec in self.functions.items()}}

    def sockets(self) -> tuple[set[str], set[str]]:
        """The paths of the model servers that always run, and of those on demand."""
        always: set[str] = set()
        on_demand: set[str] = set()
        for endpoint in self.served().values():
            for variant in endpoint.variants:
                asleep = variant.servers[:1] if variant.on_demand else ()
                on_demand.update(asleep)
                always.update(variant.servers[len(asleep) :])
        return always, on_demand


_decoder = msgspec.json.Decoder(Snapshot)


def parse_snapshot(text: bytes) -> Snapshot:
    """Raises ``InvalidInput`` for anything but a whole and valid snapshot; unknown fields are left alone."""
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the snapshot is not valid: {error}") from None
