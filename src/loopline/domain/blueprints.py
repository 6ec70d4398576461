"""Blueprints as values: the variants that an endpoint is brought to, and what of its requests is kept as objects."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from loopline.domain import names
from loopline.domain.objects import split_uri
from loopline.errors import InvalidInput

MAX_VARIANTS = 10
MAX_INSTANCES = 64


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant. ``weight`` is relative; ``copies``: percent of the callers' requests that it gets copies of, and
    then it has no weight. ``memory_mb``: where the servable is a store of models, what all their servers may take."""

    name: str
    servable: str
    weight: float = 1.0
    instances: int = 1
    copies: float | None = None
    memory_mb: int | None = None


class Capture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``uri``: where captured requests go, ``s3://BUCKET/PREFIX``; ``percent`` of them; bodies of the ``texts`` and
    ``jsons`` content types as they are, others in base 64."""

    uri: str
    percent: float = 100.0
    sides: tuple[Literal["input", "output"], ...] = ("input", "output")
    texts: tuple[str, ...] = ()
    jsons: tuple[str, ...] = ()


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``uri``: where answers of asynchronous invocations go, ``s3://BUCKET/PREFIX``; ``failures_uri``: those that are
    none."""

    uri: str
    failures_uri: str | None = None


def read(variants: Sequence[Mapping[str, Any]]) -> list[Variant]:
    """The variants of a blueprint; raises ``InvalidInput``."""
    try:
        found = msgspec.convert(list(variants), list[Variant])
    except msgspec.ValidationError as error:
        raise InvalidInput(f"variants: {error}") from None
    if not 1 <= len(found) <= MAX_VARIANTS:
        raise InvalidInput(f"variants: a blueprint has 1 to {MAX_VARIANTS}")
    if len({each.name for each in found}) < len(found):
        raise InvalidInput("variants: each has a name of its own")
    for each in found:
        _check(each)
    if not any(each.weight > 0 and each.copies is None for each in found):
        raise InvalidInput("variants: at least one needs a weight above 0")
    return found


def _check(variant: Variant) -> None:
    names.check_name(variant.name, "a variant")
    if not 0 <= variant.weight <= 1e6:
        raise InvalidInput(f"the weight of {variant.name} must lie between 0 and 1000000, unlike {variant.weight:g}")
    if not 1 <= variant.instances <= MAX_INSTANCES:
        raise InvalidInput(f"{variant.name} may have 1 to {MAX_INSTANCES} instances, not {variant.instances}")
    if variant.copies is not None and not 0 < variant.copies <= 100:
        raise InvalidInput(f"copies of {variant.name}: a percentage above 0 and at most 100")
    if variant.memory_mb is not None and not 64 <= variant.memory_mb <= 1 << 24:
        raise InvalidInput(f"memory_mb of {variant.name}: 64 to {1 << 24}, unlike {variant.memory_mb}")


def read_capture(given: Mapping[str, Any]) -> Capture:
    """What is captured; raises ``InvalidInput``."""
    try:
        found = msgspec.convert(dict(given), Capture)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"capture: {error}") from None
    split_uri(found.uri)
    if not 0 < found.percent <= 100:
        raise InvalidInput(f"capture: percent must lie above 0 and be at most 100, unlike {found.percent:g}")
    return found


def read_results(given: Mapping[str, Any]) -> Results:
    """Where answers go; raises ``InvalidInput``."""
    try:
        found = msgspec.convert(dict(given), Results)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"results: {error}") from None
    for uri in filter(None, (found.uri, found.failures_uri)):
        split_uri(uri)
    return found
