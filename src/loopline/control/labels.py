"""The truth, which arrives later: labels by request id or by the client's own id, joined with what was predicted.

A label counts once: it is joined and its minute's sums change in one transaction. The sums stand twice: as ``quality``
under the minute in which the request was made (accuracy over time), and as ``labelled`` under the minute in which the
label was joined (what alarms look at, since yesterday's minutes are over).
"""

import csv
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import monitoring, requests
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.domain.capture import CaptureRecord
from loopline.domain.captured import predictions_of
from loopline.domain.quality import MINUTE_SECONDS, Classes, Numbers, Quality, from_dict
from loopline.errors import InvalidInput
from loopline.store import metrics, queue
from loopline.store.db import Row, Tx
from loopline.store.metrics import SeriesPoint
from loopline.store.schema import labels, reports

TASK = "labels.join"
MAX_ITEMS = 10_000
MAX_ID_LENGTH = 127
MAX_LABEL_CHARACTERS = 1000
JOIN_AT_ONCE = 1000
IDS_AT_ONCE = 500
SOON_SECONDS = 2.0  # a request may be labelled before its record has been written
LATER_SECONDS = 600.0
PATIENCE_SECONDS = 60.0  # for a request id: its record is written within a second
JOIN_PATIENCE_SECONDS = 86_400.0  # for a client's id: its request may come after the label

_KEY = ("endpoint", "join_id")
QUALITY, LABELLED = "quality", "labelled"


class _Joined(NamedTuple):
    """One row's prediction and label."""

    variant: str
    at: float
    prediction: Any
    label: Any


# -- taking labels ----------------------------------------------------------------------------------------------------


def put_labels(ctx: Context, actor: Actor, *, endpoint: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Take labels: each item has ``request_id`` or ``join_id``, and ``label`` (a scalar; a list for several rows).

    Sending a label again changes nothing; another value for the same id is counted in ``conflicts`` and not taken.
    Raises ``NotFound`` for an unknown endpoint and ``InvalidInput``, naming the item, when nothing was taken at all.
    """
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise InvalidInput(f"items must be a list of at most {MAX_ITEMS} labels")
    rows = [_check(item, position) for position, item in enumerate(items)]
    taken = {"accepted": 0, "duplicates": 0, "conflicts": 0}
    with ctx.db.transaction(durable=True) as tx:
        monitoring.endpoint_row(tx, endpoint)
        new: dict[str, Any] = {}
        there = _values(tx, endpoint, [join_id for join_id, _ in rows])
        for join_id, value in rows:
            if join_id not in there:
                new[join_id] = there[join_id] = value
                taken["accepted"] += 1
            else:
                taken["duplicates" if there[join_id] == value else "conflicts"] += 1
        common = {"endpoint": endpoint, "at": tx.now, "by": actor.name}
        tx.upsert(labels, [{**common, "join_id": i, "value": v} for i, v in new.items()], _KEY, ("at",))
        if taken["accepted"]:
            queue.ask(tx, TASK, endpoint)
    ctx.wake()
    return taken


def _values(tx: Tx, endpoint: str, ids: list[str]) -> dict[str, Any]:
    """{id: label} of those of these ids that have one already."""
    c = labels.c
    found: dict[str, Any] = {}
    for start in range(0, len(ids), IDS_AT_ONCE):
        some = ids[start : start + IDS_AT_ONCE]
        rows = tx.rows(sa.select(c.join_id, c.value).where(c.endpoint == endpoint, c.join_id.in_(some)))
        found.update((row["join_id"], row["value"]) for row in rows)
    return found


def put_labels_csv(ctx: Context, actor: Actor, *, endpoint: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Take labels from a CSV file with a header: ``request_id`` or ``join_id``, and ``label``; of any length.

    Numbers, true and false are read as such. Raises ``InvalidInput`` naming the line; what stood before it is taken,
    and sending the file again is harmless.
    """
    total = {"accepted": 0, "duplicates": 0, "conflicts": 0}
    batch: list[dict[str, Any]] = []
    for item in _csv_items(chunks):
        batch.append(item)
        if len(batch) == MAX_ITEMS:
            _add(total, put_labels(ctx, actor, endpoint=endpoint, items=batch))
            batch = []
    _add(total, put_labels(ctx, actor, endpoint=endpoint, items=batch))
    return total


def _add(total: dict[str, int], more: dict[str, Any]) -> None:
    for name in total:
        total[name] += more[name]


def _csv_items(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    reader = csv.reader(_lines(chunks))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        column = next((name for name in ("request_id", "join_id") if name in header), None)
        if column is None or "label" not in header:
            raise InvalidInput("the first line must name the columns request_id (or join_id) and label")
        where, what = header.index(column), header.index("label")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InvalidInput(f"line {reader.line_num} has {len(cells)} cells; the header has {len(header)}")
            yield {column: cells[where].strip(), "label": _cell(cells[what])}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"line {reader.line_num} cannot be read: {error}") from None


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > 1 << 20:
            raise InvalidInput("a line is longer than 1 MiB")
        for line in whole:
            yield line.decode() + "\n"
    if rest:
        yield rest.decode()


def _cell(text: str) -> Any:
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text


def _check(item: Any, position: int) -> tuple[str, Any]:
    if not isinstance(item, dict) or "label" not in item or ("request_id" in item) == ("join_id" in item):
        raise InvalidInput(f"item {position} must have label, and either request_id or join_id")
    join_id, label = item.get("request_id", item.get("join_id")), item["label"]
    if not isinstance(join_id, str) or not 0 < len(join_id) <= MAX_ID_LENGTH:
        raise InvalidInput(f"item {position}: an id is a text of 1 to {MAX_ID_LENGTH} characters")
    for each in label if isinstance(label, list) else [label]:
        good = isinstance(each, str | bool | int | float) and not (isinstance(each, float) and not math.isfinite(each))
        if not good or (isinstance(each, str) and not 0 < len(each) <= MAX_LABEL_CHARACTERS):
            raise InvalidInput(f"item {position}: a label is a text, a finite number, true or false, or a list of them")
    return join_id, label


# -- joining ----------------------------------------------------------------------------------------------------------


def join(ctx: Context, key: str) -> float | None:
    """Task: join an endpoint's new labels with the requests that they judge; gives when to look again.

    A request that the log no longer holds is waited for a minute (a client's own id: a day), then given up.
    """
    c = labels.c
    # By id, which is by time for request ids: a batch then lies in few segments, in whatever order labels were sent.
    query = sa.select(labels).where(c.endpoint == key, c.joined_at.is_(None)).order_by(c.join_id)
    following = query
    while True:
        with ctx.db.read() as tx:
            pending = tx.rows(following.limit(JOIN_AT_ONCE))
        if not pending:
            break
        following = query.where(c.join_id > pending[-1]["join_id"])
        _join_batch(ctx, key, pending, _find(ctx, key, pending))
    with ctx.db.read() as tx:
        waiting = tx.execute(
            sa.select(sa.func.max(labels.c.at)).where(labels.c.endpoint == key, labels.c.joined_at.is_(None))
        ).scalar_one()
    if waiting is None:
        return None
    return SOON_SECONDS if ctx.clock.now() - waiting < PATIENCE_SECONDS else LATER_SECONDS


def _find(ctx: Context, endpoint: str, pending: list[Row]) -> dict[str, CaptureRecord]:
    """{id of the label: the request's record} of those that the log holds."""
    wanted = [row["join_id"] for row in pending]
    found = {i: r for i, r in requests.find_by_id(ctx, wanted).items() if r.meta.get("endpoint") == endpoint}
    others = [each for each in wanted if each not in found]
    if others:
        found.update(requests.find_by_join(ctx, endpoint, others))
    return found


def _join_batch(ctx: Context, endpoint: str, pending: list[Row], found: dict[str, CaptureRecord]) -> None:
    now, c = ctx.clock.now(), labels.c
    over = [row for row in pending if row["join_id"] in found or now - row["at"] >= _patience(row["join_id"])]
    if not over:
        return
    with ctx.db.read() as tx:
        positive = (monitoring.endpoint_row(tx, endpoint)["settings"] or {}).get("positive")
    pairs = {
        i: list(_pairs(record, row["value"], positive)) for row in over if (record := found.get(i := row["join_id"]))
    }
    with ctx.db.transaction() as tx:
        # Asked again inside: a label whose sums another worker has counted is not counted once more.
        query = sa.select(c.join_id).where(
            c.endpoint == endpoint, c.joined_at.is_(None), c.join_id.in_([row["join_id"] for row in over])
        )
        still = set(tx.execute(query.with_for_update()).scalars())
        if not still:
            return
        update = labels.update().where(c.endpoint == endpoint, c.join_id == sa.bindparam("join"))
        tx.execute(
            update.values(joined_at=tx.now, request=sa.bindparam("found")),
            [{"join": i, "found": str(found[i].meta["id"]) if i in found else None} for i in sorted(still)],
        )
        _count(tx, endpoint, [pair for i in sorted(still) for pair in pairs.get(i, ())], positive)


def _patience(join_id: str) -> float:
    try:
        names.time_of_id(join_id)
    except InvalidInput:
        return JOIN_PATIENCE_SECONDS
    return PATIENCE_SECONDS if join_id.startswith("rq_") else JOIN_PATIENCE_SECONDS


def _pairs(record: CaptureRecord, label: Any, positive: Any) -> Iterator[_Joined]:
    if record.meta.get("status") != 200:
        return
    answers = predictions_of(record.answer, positive) or []
    per_row = requests.labels_of(label, len(answers))
    if per_row is None:
        return
    for answer, each in zip(answers, per_row, strict=True):
        if answer.value is not None and each is not None:
            yield _Joined(str(record.meta.get("variant") or ""), float(record.meta["at"]), answer.value, each)


def _count(tx: Tx, endpoint: str, joined: list[_Joined], positive: Any) -> None:
    """Add pairs to the sums of their minutes."""
    groups: dict[tuple[str, int], list[_Joined]] = {}
    for each in joined:
        groups.setdefault((each.variant, math.floor(each.at / MINUTE_SECONDS) * MINUTE_SECONDS), []).append(each)
    now = math.floor(tx.now / MINUTE_SECONDS) * MINUTE_SECONDS
    for (variant, minute), pairs in sorted(groups.items()):
        sums = _sums(tx, endpoint, variant, pairs)
        if sums is None:
            continue
        total = _add_report(tx, (endpoint, variant, QUALITY), minute, sums)
        scope = monitoring.scope_of(endpoint, variant)
        for name, value in measures(total, positive).items():
            metrics.set_series(tx, scope, name, [SeriesPoint(minute, value, total.count)])
        _add_report(tx, (endpoint, variant, LABELLED), now, sums)


def _sums(tx: Tx, endpoint: str, variant: str, pairs: list[_Joined]) -> Quality | None:
    """The pairs as counts of classes or as sums of errors, of the kind that this variant has; None if they are not.

    Predictions that are fractions are numbers, unless the labels are 0 and 1: then they are probabilities of 1.
    """
    last = monitoring.last_report(tx, endpoint, variant, QUALITY)
    numeric = all(type(value) in (int, float) for pair in pairs for value in (pair.prediction, pair.label))
    binary = all(pair.label in (0, 1) and 0 <= pair.prediction <= 1 for pair in pairs) if numeric else False
    fractions = any(type(pair.prediction) is float for pair in pairs)
    as_numbers = last["body"]["kind"] == "numbers" if last else numeric and fractions and not binary
    if as_numbers:
        return Numbers.of((pair.prediction, pair.label) for pair in pairs) if numeric else None
    if binary and fractions:
        return Classes.of((int(pair.prediction >= 0.5), int(pair.label)) for pair in pairs)
    return Classes.of((pair.prediction, pair.label) for pair in pairs)


def _add_report(tx: Tx, what: tuple[str, str, str], minute: int, sums: Quality) -> Quality:
    """Merge sums into the report of (endpoint, variant, kind) on a minute; gives what it now holds."""
    endpoint, variant, kind = what
    c = reports.c
    row = tx.row(
        sa.select(reports).where(
            c.endpoint == endpoint, c.kind == kind, c.variant == variant, c.end_at == float(minute + MINUTE_SECONDS)
        )
    )
    total = sums if row is None else add(from_dict(row["body"]), sums)
    if row is not None:
        tx.execute(reports.update().where(c.id == row["id"]).values(body=total.to_dict()))
        return total
    tx.execute(
        reports.insert().values(
            id=tx.new_id("mr"),
            endpoint=endpoint,
            variant=variant,
            kind=kind,
            start_at=float(minute),
            end_at=float(minute + MINUTE_SECONDS),
            fired=False,
            body=total.to_dict(),
        )
    )
    return total


def add(first: Quality, second: Quality) -> Quality:
    """Both together; of two kinds the second, which is the newer."""
    if isinstance(first, Classes) and isinstance(second, Classes):
        return first + second
    if isinstance(first, Numbers) and isinstance(second, Numbers):
        return first + second
    return second


# -- answers ----------------------------------------------------------------------------------------------------------


def measures(sums: Quality, positive: Any = None) -> dict[str, float]:
    """What is known of labelled predictions: ``labels`` (how many) and accuracy, f1 and the like, or mae, rmse, mse."""
    found: dict[str, float | None] = {"labels": float(sums.count)}
    if isinstance(sums, Numbers):
        found.update(mae=sums.mae, rmse=sums.rmse, mse=sums.square / sums.count if sums.count else None)
    else:
        recalls = [recall for name in sums.classes if (recall := _share(sums, name, of_labels=True)) is not None]
        found.update(accuracy=sums.accuracy, f1=sums.f1(positive))
        found["balanced_accuracy"] = sum(recalls) / len(recalls) if recalls else None
        if positive is not None:
            key = next(iter(Classes.of([(positive, positive)]).confusion))[0]
            found["precision"] = _share(sums, key, of_labels=False)
            found["recall"] = _share(sums, key, of_labels=True)
    return {name: value for name, value in found.items() if value is not None}


def _share(sums: Classes, name: str, *, of_labels: bool) -> float | None:
    """Recall (``of_labels``) or precision of a class; None when it has no such row."""
    rows = sum(n for (label, guess), n in sums.confusion.items() if (label if of_labels else guess) == name)
    return sums.confusion.get((name, name), 0) / rows if rows else None


def merged(
    tx: Tx, endpoint: str, kind: str, start: float, end: float, *, variant: str | None = None
) -> dict[int, Quality]:
    """{minute: sums} of minutes with ``start <= minute < end``, of one variant or of all together."""
    c = reports.c
    query = sa.select(reports).where(
        c.endpoint == endpoint, c.kind == kind, c.end_at >= start + MINUTE_SECONDS, c.end_at < end + MINUTE_SECONDS
    )
    if variant is not None:
        query = query.where(c.variant == variant)
    found: dict[int, Quality] = {}
    for row in tx.rows(query.order_by(c.end_at)):
        sums, minute = from_dict(row["body"]), int(row["start_at"])
        found[minute] = add(found[minute], sums) if minute in found else sums
    return found


def quality(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    start: float | None = None,
    end: float | None = None,
    period_seconds: int = 3600,
    variant: str | None = None,
) -> dict[str, Any]:
    """Accuracy (or errors) over the time of the *requests*, from labels that have arrived; the last week by default.

    ``total`` carries the 95 % interval of the accuracy, and how many labels are still to be joined or were given up.
    """
    end = ctx.clock.now() if end is None else end
    start = end - 7 * 86_400 if start is None else start
    if period_seconds < MINUTE_SECONDS or period_seconds % MINUTE_SECONDS:
        raise InvalidInput("period_seconds must be whole minutes")
    if not start < end or (end - start) / period_seconds > monitoring.MAX_POINTS:
        raise InvalidInput(f"start must be before end, with at most {monitoring.MAX_POINTS} periods between them")
    with ctx.db.read() as tx:
        positive = (monitoring.endpoint_row(tx, endpoint)["settings"] or {}).get("positive")
        first = start // MINUTE_SECONDS * MINUTE_SECONDS
        minutes = merged(tx, endpoint, QUALITY, first, end, variant=variant)
        waiting, lost = _unjoined(tx, endpoint)
    periods: dict[int, Quality] = {}
    whole: Quality | None = None
    for minute, sums in minutes.items():
        at = minute // period_seconds * period_seconds
        periods[at] = add(periods[at], sums) if at in periods else sums
        whole = sums if whole is None else add(whole, sums)
    total: dict[str, Any] = {"labels": 0.0} if whole is None else measures(whole, positive)
    if isinstance(whole, Classes):
        total["interval"] = list(whole.interval())
        total["confusion"] = whole.to_dict()["confusion"]
    return {
        "endpoint": endpoint,
        "start": start,
        "end": end,
        "period_seconds": period_seconds,
        "total": {**total, "waiting": waiting, "unmatched": lost},
        "items": [{"at": at, **measures(sums, positive)} for at, sums in sorted(periods.items())],
    }


def _unjoined(tx: Tx, endpoint: str) -> tuple[int, int]:
    """How many labels wait for their request, and how many were given up."""
    c = labels.c
    query = sa.select(sa.func.count()).select_from(labels).where(c.endpoint == endpoint)
    waiting = tx.execute(query.where(c.joined_at.is_(None))).scalar_one()
    lost = tx.execute(query.where(c.joined_at.is_not(None), c.request.is_(None))).scalar_one()
    return int(waiting), int(lost)
