"""Model stores: endpoints with many models whose models are the archives below a prefix of a bucket.

Each archive is a model, asked for by its key below the prefix. A gateway that does not know one tells control; the
archive becomes a servable, read once like any other, and a variant whose server starts on demand, under the rules of
``multimodel``. An archive that is overwritten or deleted is put down, and read again when it is next asked for.
"""

import hashlib
import re
from typing import Any, NamedTuple

from loopline.control import endpoints, fleets, multimodel, objects, processes, servables, snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain.objects import check_key, join_uri, split_uri
from loopline.domain.states import EndpointStatus, ServableStatus, VariantStatus
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx

MAX_NAME = 40
MAX_TOLD = 1000  # characters of a reason; it goes into a datagram
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_OVER = (VariantStatus.STOPPED, VariantStatus.FAILED)


class Place(NamedTuple):
    """A model of a store: its endpoint, the servable that is the store, its object, and its variant if there is one."""

    endpoint: Row
    store: Row
    archive: Row
    name: str  # of the variant
    variant: Row | None
    served: str | None  # the digest of the archive that it was made of


def setting(store: Row, *, called: str, memory_mb: int) -> dict[str, Any]:
    """What an endpoint's setting ``multi_model`` says of its store."""
    return {"memory_mb": memory_mb, "store": store["id"], "called": called, "uri": servables.store_of(store)}


def open_(ctx: Context, endpoint: str) -> float | None:
    """Task: let an endpoint serve once its store's environment is built."""
    with ctx.db.transaction() as tx:
        row = records.find(tx, "endpoint", name=endpoint)
        if row is None or row["status"] != EndpointStatus.CREATING:
            return None
        store = records.get(tx, "servable", row["settings"]["multi_model"]["store"])
        if store["status"] == ServableStatus.PENDING:
            return servables.WAIT_SECONDS
        problem = servables.problem(store)
        status = EndpointStatus.IN_SERVICE if problem is None else EndpointStatus.FAILED
        records.move(tx, "endpoint", row["id"], status, actor=SYSTEM.name, reason=problem)
    return None


# -- a model that somebody asked for ----------------------------------------------------------------------------------


def wanted(ctx: Context, endpoint: str, model: str) -> None:
    """A gateway waits for a model: bring it, or tell the gateways why it does not come. Safe to repeat."""
    try:
        with ctx.db.read() as tx:
            place = _find(tx, endpoint, model)
        if _is_coming(place):
            return
        with ctx.db.transaction() as tx:
            place = _find(tx, endpoint, model)
            if not _is_coming(place):
                _begin(tx, place, model)
    except LooplineError as error:
        _refuse(ctx, endpoint, model, error.message, absent=isinstance(error, NotFound | InvalidInput))


def _find(tx: Tx, name: str, model: str) -> Place:
    """Where a model is; raises ``NotFound`` and ``InvalidInput``."""
    endpoint = endpoints.endpoint_row(tx, name)
    store = _store(tx, endpoint)
    if store is None:
        raise NotFound(f"{name} serves no model {model!r}")
    bucket, prefix = split_uri(servables.store_of(store))
    try:
        archive = objects.find(tx, bucket, check_key(f"{prefix}{model}"))
    except NotFound as error:
        raise NotFound(f"{name} serves no model {model!r}: {error.message}") from None
    label = _name(store, model)
    variant = records.find(tx, "variant", endpoint=name, name=label)
    data = _data(tx, variant) if variant is not None else {}
    return Place(endpoint, store, archive, label, variant, data.get("digest"))


def _data(tx: Tx, variant: Row) -> dict[str, Any]:
    """The archive that a variant was made of; nothing where it came otherwise."""
    servable = records.get(tx, "servable", variant["servable"]) if variant["servable"] else {}
    data = (servable.get("source") or {}).get("data") or {}
    return data if "below" in data else {}


def _store(tx: Tx, endpoint: Row) -> Row | None:
    table = (endpoint["settings"] or {}).get("multi_model") or {}
    return records.get(tx, "servable", table["store"]) if table.get("store") else None


def _name(store: Row, model: str) -> str:
    """A variant's name: what people recognise of the key, and a digest of all of it."""
    digest = hashlib.sha256(f"{store['id']}/{model}".encode()).hexdigest()[:12]
    readable = _UNFIT.sub("-", model.removesuffix(".tar.gz")).strip("-_")[-MAX_NAME:].strip("-_")
    return f"{readable or 'model'}-{digest}"


def _is_coming(place: Place) -> bool:
    """Whether nothing need be done: it is there or on its way. Raises ``Conflict`` where the same bytes failed."""
    variant = place.variant
    if variant is None or variant["status"] not in _OVER:
        return variant is not None
    if variant["status"] == VariantStatus.FAILED and place.served == place.archive["digest"]:
        raise Conflict(f"{join_uri(place.archive['bucket'], place.archive['key'])} is not served: {variant['reason']}")
    return False


def _begin(tx: Tx, place: Place, model: str) -> None:
    """Make the servable and the variant of an archive."""
    name = place.endpoint["name"]
    if place.variant is None and len(tx.rows(multimodel.living(name))) >= multimodel.MAX_MODELS:
        raise Conflict(f"an endpoint serves at most {multimodel.MAX_MODELS} models")
    made = servables.below(tx, place.store, model, place.archive)
    fresh: dict[str, Any] = {"servable": made["id"], "digest": "", "weight": 0.0}
    if place.variant is not None:
        again = {**fresh, "server": None, "reason": None}
        records.move(tx, "variant", place.variant["id"], VariantStatus.STARTING, actor=SYSTEM.name, **again)
        queue.ask(tx, "modelstore.fetch", place.variant["id"])
        return
    called = place.endpoint["settings"]["multi_model"]["called"]
    row = records.create(
        tx, "variant", actor=SYSTEM.name, endpoint=name, name=place.name, called=called, instances=1, **fresh
    )
    queue.ask(tx, "modelstore.fetch", row["id"])


def fetch(ctx: Context, key: str) -> float | None:
    """Task: put a model into the traffic table once its files are unpacked; its server starts when it is asked."""
    with ctx.db.read() as tx:
        variant = records.find(tx, "variant", id=key)
        if variant is None or variant["status"] != VariantStatus.STARTING:
            return None
        servable = records.get(tx, "servable", variant["servable"])
    if servable["status"] == ServableStatus.PENDING:
        return servables.WAIT_SECONDS
    model = servable["source"]["data"]["below"]
    try:
        problem = servables.problem(servable)
        entries = [{**each, "answers_to": model} for each in fleets.grown(ctx, variant, 1)] if problem is None else []
    except (LooplineError, OSError) as error:
        problem, entries = f"{type(error).__name__}: {error}", []
    with ctx.db.transaction(durable=True) as tx:
        if records.get(tx, "variant", key)["status"] != VariantStatus.STARTING:
            return None
        if problem is not None:
            records.move(tx, "variant", key, VariantStatus.FAILED, actor=SYSTEM.name, reason=problem)
        else:
            digest = servable["artifact"]["sha256"]
            there: dict[str, Any] = {"server": entries, "weight": 100.0, "digest": digest}
            records.move(tx, "variant", key, VariantStatus.READY, actor=SYSTEM.name, **there)
            tx.after_commit.append(lambda: processes.write(ctx))
            snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"{model} for {variant['endpoint']}")
    if problem is not None:
        _refuse(ctx, variant["endpoint"], model, f"{model} is not served: {problem}", absent=False)
    return None


def _refuse(ctx: Context, endpoint: str, model: str, message: str, *, absent: bool) -> None:
    told = {"kind": "refused", "endpoint": endpoint, "model": model, "message": message[:MAX_TOLD], "absent": absent}
    snapshots.tell_gateways(ctx, told)


# -- archives that change ---------------------------------------------------------------------------------------------


def refresh(ctx: Context) -> None:
    """Tick: put down models whose archive is another one by now, or gone."""
    with ctx.db.read() as tx:
        stale = [each for row in tx.rows(endpoints.existing()) for each in _stale(tx, row)]
    for variant in stale:
        with ctx.db.transaction() as tx:
            if records.get(tx, "variant", variant["id"])["status"] not in _OVER:
                reason = "its archive was overwritten or deleted"
                stopped: dict[str, Any] = {"weight": 0.0, "reason": reason}
                records.move(tx, "variant", variant["id"], VariantStatus.STOPPED, actor=SYSTEM.name, **stopped)
                snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"{variant['endpoint']}/{variant['name']}: {reason}")
                tx.after_commit.append(lambda: processes.write(ctx))


def _stale(tx: Tx, endpoint: Row) -> list[Row]:
    store = _store(tx, endpoint)
    if store is None:
        return []
    bucket, prefix = split_uri(servables.store_of(store))
    found = []
    for variant in tx.rows(multimodel.living(endpoint["name"])):
        data = _data(tx, variant)
        if data and _digest(tx, bucket, f"{prefix}{data['below']}") != data["digest"]:
            found.append(variant)
    return found


def _digest(tx: Tx, bucket: str, key: str) -> str | None:
    try:
        return str(objects.find(tx, bucket, key)["digest"])
    except NotFound:
        return None
