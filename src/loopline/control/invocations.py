"""Asynchronous invocations: a body is taken and kept, an endpoint is asked as soon as it can, the answer is fetched.

The bodies are files named by the invocation's id below ``DIR/invocations``; they are removed when the invocation
expires. An invocation that control died in the middle of is asked again: the model may see it twice, its result is
recorded once.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, events, invoking, objects
from loopline.control.context import SYSTEM, Context
from loopline.domain import access, allowances
from loopline.domain.access import Actor, Permission
from loopline.domain.objects import check_key, split_uri
from loopline.domain.states import EndpointStatus, InvocationStatus
from loopline.errors import Conflict, Forbidden, InvalidInput, LooplineError, NotFound, Overloaded, TooLarge
from loopline.store import queue, records
from loopline.store.allowances import spend
from loopline.store.db import Row, Tx
from loopline.store.schema import invocations

TIMEOUT_SECONDS = 3600.0
TRY_AGAIN = frozenset({429, 503})
LONGEST_PAUSE_SECONDS = 30.0
MAX_CONTENT_TYPE = 200
MAX_REASON = 500
MAX_BODY_MB = 63  # one frame carries it to the model server
SECONDS_OF_AN_HOUR = 3600.0
log = logging.getLogger(__name__)


# -- taking one -------------------------------------------------------------------------------------------------------


def submit(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    stream: Iterator[bytes],
    content_type: str = "application/json",
    inference_id: str | None = None,
    accept: str | None = None,
    output: str | None = None,
    failure: str | None = None,
) -> dict[str, Any]:
    """Take a request for an endpoint, to be answered later; it is on disk when this returns.

    It counts against the rate and the quota of its key as a direct request does. Raises ``RateLimited`` or
    ``QuotaExceeded`` when those are used up, and ``Overloaded`` when ``async_queue`` requests wait for the endpoint
    already. ``inference_id`` joins labels that arrive later, as the header of the same name does for a direct request.
    ``output``: the object (an address s3://BUCKET/KEY) that the answer goes to; ``failure``: the one that says why
    there is none.
    """
    destination = {"uri": output, "failure_uri": failure} if output or failure else None
    _check_may_invoke(ctx, actor, endpoint)
    _check_destination(ctx, actor, endpoint, destination)
    if len(content_type) > MAX_CONTENT_TYPE or not (content_type.isascii() and content_type.isprintable()):
        raise InvalidInput(f"the content type must be at most {MAX_CONTENT_TYPE} printable ASCII characters")
    with ctx.db.read() as tx:
        _check_room(ctx, tx, endpoint)
        key = None if actor.key is None else records.find(tx, "key", id=actor.key)
    if key is not None:
        _count_for(ctx, key)
    identifier = ctx.ids.new("in")
    size = _keep(_input(ctx, identifier), stream, min(ctx.settings.async_body_mb, MAX_BODY_MB) << 20)
    try:
        with ctx.db.transaction(durable=True) as tx:
            _check_room(ctx, tx, endpoint)
            row = records.create(
                tx,
                "invocation",
                actor=actor.name,
                id=identifier,
                endpoint=endpoint,
                key=actor.key,
                by=actor.name,
                content_type=content_type,
                accept=accept,
                destination=destination,
                size_bytes=size,
                inference_id=inference_id,
                tries=0,
                expires_at=tx.now + ctx.settings.async_hours * SECONDS_OF_AN_HOUR,
            )
            queue.ask(tx, "invocation.start", endpoint)
    except BaseException:
        _input(ctx, identifier).unlink(missing_ok=True)
        raise
    return _public(row)


def _check_destination(ctx: Context, actor: Actor, endpoint: str, destination: dict[str, str | None] | None) -> None:
    """The objects have to be possible, and beneath a place that the endpoint names, or its caller's to write."""
    if destination is None:
        return
    with ctx.db.read() as tx:
        results = (endpoints.endpoint_row(tx, endpoint)["settings"] or {}).get("results_to") or {}
    named = tuple(f"{uri.rstrip('/')}/" for uri in results.values() if uri)
    for uri in filter(None, destination.values()):
        if not uri.startswith(named):
            access.require(actor, Permission.WRITE)
        bucket, key = split_uri(uri)
        objects.check_place(ctx, bucket, check_key(key))


def _check_may_invoke(ctx: Context, actor: Actor, endpoint: str) -> None:
    """An invoker's key names its endpoints; of others it learns nothing."""
    if actor.role != "invoker":
        return
    with ctx.db.read() as tx:
        found = (records.find(tx, noun, id=actor.key) for noun in ("key", "access_key") if actor.key is not None)
        key = next(filter(None, found), None)
    scope = [] if key is None else key["endpoints"] or []
    if endpoint not in scope and "*" not in scope:
        raise Forbidden(f"this key may not invoke the endpoint {endpoint!r}")


def _check_room(ctx: Context, tx: Tx, endpoint: str) -> None:
    found = endpoints.endpoint_row(tx, endpoint)
    if found["status"] == EndpointStatus.DELETED:
        raise NotFound(f"there is no endpoint {endpoint!r}")
    waiting = _count(tx, endpoint, InvocationStatus.PENDING, InvocationStatus.RUNNING)
    if waiting >= ctx.settings.async_queue:
        raise Overloaded(f"{waiting} asynchronous requests wait for {endpoint} already; try again later")


def _count_for(ctx: Context, key: Row) -> None:
    """Count a request against its key's limits, where the gateways count those that wait for their answers."""
    limits = allowances.terms(key["rate"], key["burst"], key["quota"], key["quota_seconds"])
    if limits != allowances.NONE:
        spend(ctx.settings.dir / allowances.FOLDER / key["id"], limits, ctx.clock.now())


def _count(tx: Tx, endpoint: str, *statuses: InvocationStatus) -> int:
    query = sa.select(sa.func.count()).where(invocations.c.endpoint == endpoint, invocations.c.status.in_(statuses))
    return int(tx.execute(query).scalar_one())


def _keep(path: Path, chunks: Iterator[bytes], most: int) -> int:
    """Write a body whole, and to disk, or not at all; gives its size."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".new")
    size = 0
    try:
        with open(temporary, "xb", opener=_private) as file:
            for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise TooLarge(f"the body is larger than {most} bytes", limit_bytes=most)
                file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _input(ctx: Context, identifier: str) -> Path:
    folder: Path = ctx.settings.dir / "invocations"
    return folder / f"{identifier}.in"


def _output(ctx: Context, identifier: str) -> Path:
    return _input(ctx, identifier).with_suffix(".out")


# -- asking the endpoint ----------------------------------------------------------------------------------------------


class _Slots:
    """How many threads of this process ask each endpoint."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    def take(self, endpoint: str, most: int) -> bool:
        """One more, unless there are ``most``."""
        with self._lock:
            taken = self._taken.get(endpoint, 0)
            if taken >= most:
                return False
            self._taken[endpoint] = taken + 1
            return True

    def give_back(self, endpoint: str) -> None:
        """One less."""
        with self._lock:
            self._taken[endpoint] -= 1


def start(ctx: Context, endpoint: str) -> float | None:
    """Task: have a thread ask the endpoint for what waits, and one more as long as there are more and may be."""
    slots: _Slots = ctx.cache.setdefault("invocations", _Slots())
    with ctx.db.read() as tx:
        waiting = _count(tx, endpoint, InvocationStatus.PENDING)
    for _ in range(waiting):
        if not slots.take(endpoint, ctx.settings.async_concurrency):
            break
        threading.Thread(target=_work, args=(ctx, endpoint, slots), name=f"async-{endpoint}", daemon=True).start()
    return None


def _work(ctx: Context, endpoint: str, slots: _Slots) -> None:
    try:
        while (row := _next(ctx, endpoint)) is not None:
            try:
                _answer(ctx, row)
            except Exception as error:
                log.exception("the invocation %s could not be answered", row["id"])
                _end(ctx, row, f"loopline could not answer it: {type(error).__name__}", {})
    finally:
        slots.give_back(endpoint)
        with suppress(sa.exc.SQLAlchemyError), ctx.db.transaction() as tx:  # the database is closed: control ends
            if _count(tx, endpoint, InvocationStatus.PENDING):  # it came while this thread was about to end
                queue.ask(tx, "invocation.start", endpoint)


def _next(ctx: Context, endpoint: str) -> Row | None:
    """Take the oldest one that waits."""
    query = sa.select(invocations).where(
        invocations.c.endpoint == endpoint, invocations.c.status == InvocationStatus.PENDING
    )
    with ctx.db.transaction() as tx:
        row = tx.row(query.order_by(invocations.c.created_at, invocations.c.id).limit(1))
        if row is None:
            return None
        to = InvocationStatus.RUNNING
        return records.move(tx, "invocation", row["id"], to, actor=SYSTEM.name, known=row, started_at=tx.now)


def _answer(ctx: Context, row: Row) -> None:
    """Ask until there is an answer that is one, or no time is left; record it."""
    until = row["expires_at"]
    tries = row["tries"]
    while True:
        tries += 1
        answer, problem, again = _ask(ctx, row)
        pause = min(2.0 ** min(tries - 1, 8), LONGEST_PAUSE_SECONDS)
        if not again or ctx.clock.now() + pause > until:
            break
        time.sleep(pause)
    values: dict[str, Any] = {"tries": tries}
    if answer is not None:
        size = _keep(_output(ctx, row["id"]), iter([answer.body]), len(answer.body))
        kind = answer.headers.get("content-type", "application/octet-stream")
        values["answer"] = {"status": answer.status, "content_type": kind, "size_bytes": size}
        values["request"] = answer.headers.get("x-request-id")
    _end(ctx, row, problem, values)


def _end(ctx: Context, row: Row, problem: str | None, values: dict[str, Any]) -> None:
    """Record the one result. From now on it is kept for its time."""
    to = InvocationStatus.SUCCEEDED if problem is None else InvocationStatus.FAILED
    made = _object(ctx, row, problem, values)
    with ctx.db.transaction(durable=True) as tx:
        if made is not None:
            try:
                objects.put_in(tx, actor=row["by"], **made)
            except LooplineError as error:  # the bucket has gone meanwhile
                to, problem = InvocationStatus.FAILED, f"its answer cannot be kept: {error.message}"
        until = tx.now + ctx.settings.async_hours * SECONDS_OF_AN_HOUR
        ended = {**values, "ended_at": tx.now, "expires_at": until}
        records.move(tx, "invocation", row["id"], to, actor=SYSTEM.name, reason=problem, **ended)


def _object(ctx: Context, row: Row, problem: str | None, values: dict[str, Any]) -> dict[str, Any] | None:
    """The object that an invocation leaves, as ``objects.put_in`` takes it."""
    uri = (row["destination"] or {}).get("uri" if problem is None else "failure_uri")
    if uri is None:
        return None
    bucket, key = split_uri(uri)
    data = _output(ctx, row["id"]).read_bytes() if problem is None else problem.encode()
    kind = values["answer"]["content_type"] if problem is None else "text/plain; charset=utf-8"
    source = {"kind": "invocation", "id": row["id"]}
    made = objects.blob_values(ctx, ctx.blobs.put_bytes(data).digest, content_type=kind, source=source)
    return {"bucket": bucket, "key": key, "values": made}


def _ask(ctx: Context, row: Row) -> tuple[invoking.Answer | None, str | None, bool]:
    """(answer, why it is none, whether another try may help)."""
    try:
        answer = invoking.invoke(
            ctx,
            row["endpoint"],
            _input(ctx, row["id"]).read_bytes(),
            purpose="async",
            timeout_seconds=TIMEOUT_SECONDS,
            content_type=row["content_type"],
            inference_id=row["inference_id"],
            headers={"accept": row["accept"]} if row["accept"] else None,
        )
    except FileNotFoundError:
        return None, "its input is gone", False
    except LooplineError as error:
        return None, error.message, error.status in TRY_AGAIN
    if answer.status < 300:
        return answer, None, False
    return answer, _reason(answer), answer.status in TRY_AGAIN


def _reason(answer: invoking.Answer) -> str:
    text = answer.body[: MAX_REASON * 4].decode("utf-8", "replace")
    return f"the endpoint answered {answer.status}: {text}"[:MAX_REASON]


def recover(ctx: Context) -> None:
    """At start: what the process before was asking is asked again, and what waits is begun. Only control asks."""
    with ctx.db.transaction() as tx:
        query = sa.select(invocations).where(
            invocations.c.status.in_((InvocationStatus.PENDING, InvocationStatus.RUNNING))
        )
        for row in tx.rows(query):
            if row["status"] == InvocationStatus.RUNNING:
                reason = "asked again: control was started anew"
                records.move(tx, "invocation", row["id"], InvocationStatus.PENDING, actor=SYSTEM.name, reason=reason)
            queue.ask(tx, "invocation.start", row["endpoint"])


def prune(ctx: Context) -> None:
    """Tick: remove the bodies of expired invocations, and those of none. What was not answered in time has failed."""
    now = ctx.clock.now()
    with ctx.db.transaction() as tx:
        query = sa.select(invocations).where(invocations.c.expires_at < now, invocations.c.removed_at.is_(None))
        expired = tx.rows(query)
        for row in expired:
            if row["status"] == InvocationStatus.PENDING:
                reason = "it expired before the endpoint could be asked"
                to = InvocationStatus.FAILED
                records.move(tx, "invocation", row["id"], to, actor=SYSTEM.name, reason=reason, ended_at=now)
            if row["status"] != InvocationStatus.RUNNING:
                records.set(tx, "invocation", row["id"], actor=SYSTEM.name, removed_at=now)
                tx.after_commit.append(partial(_remove, ctx, row["id"]))
    folder = ctx.settings.dir / "invocations"
    for path in folder.glob("*.*"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > SECONDS_OF_AN_HOUR:
                with ctx.db.read() as tx:
                    known = records.find(tx, "invocation", id=path.stem)
                if known is None or known["removed_at"] is not None:
                    path.unlink()


def _remove(ctx: Context, identifier: str) -> None:
    for path in (_input(ctx, identifier), _output(ctx, identifier)):
        path.unlink(missing_ok=True)


# -- looking ----------------------------------------------------------------------------------------------------------


def list_(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str | None = None,
    status: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Asynchronous invocations, newest first."""
    query = sa.select(invocations).order_by(invocations.c.created_at.desc(), invocations.c.id.desc())
    if endpoint is not None:
        query = query.where(invocations.c.endpoint == endpoint)
    if status is not None:
        query = query.where(invocations.c.status == status)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page([_public(row) for row in rows], limit, offset)


def show(ctx: Context, actor: Actor, *, invocation: str) -> dict[str, Any]:
    """An asynchronous invocation and how far it is."""
    return _public(_found(ctx, actor, invocation))


def output(ctx: Context, actor: Actor, *, invocation: str) -> Iterator[bytes]:
    """The endpoint's answer, once it has Succeeded."""
    row = _found(ctx, actor, invocation)
    if row["status"] != InvocationStatus.SUCCEEDED:
        reason = f": {row['reason']}" if row["reason"] else ""
        raise Conflict(f"the invocation {invocation} is {row['status']}{reason}", status=row["status"])
    try:
        file = _output(ctx, row["id"]).open("rb")
    except FileNotFoundError:
        raise NotFound(f"the answer of {invocation} has expired") from None
    return _pieces(file)


def _pieces(file: Any) -> Iterator[bytes]:
    with file:
        while piece := file.read(1 << 20):
            yield piece


def _found(ctx: Context, actor: Actor, identifier: str) -> Row:
    """A key that may only invoke sees what it submitted itself, and that of its endpoints alone."""
    with ctx.db.read() as tx:
        row = records.get(tx, "invocation", identifier)
    if Permission.READ not in access.ROLES[actor.role] and row["by"] != actor.name:
        raise NotFound(f"there is no invocation {identifier!r}")
    _check_may_invoke(ctx, actor, row["endpoint"])
    return row


def _public(row: Row) -> dict[str, Any]:
    place = f"/api/async-invocations/{row['id']}"
    return {**row, "status_url": place, "output_url": f"{place}/output"}
