"""The request log: what the gateways captured, found again by request id, by a client's own id, or by time."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import monitoring
from loopline.control.context import Context
from loopline.domain import captured, names
from loopline.domain.access import Actor
from loopline.domain.capture import HEADER, CaptureRecord, ids_at, iter_records
from loopline.domain.captured import JOINS_SUFFIX, Prediction
from loopline.domain.verification import of_evaluation
from loopline.errors import InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import assets, evaluations, executions, keys, labels, pushes, runs, variants, versions

MAX_SHOWN_BYTES = 64 * 1024
_LABELS_AT_ONCE = 500


class CapturedRow(NamedTuple):
    """One row of a captured request: its features by name, the label that arrived for it (or None), and where from."""

    features: dict[str, Any]
    label: Any
    request: str
    at: float
    prediction: Prediction | None
    position: int  # among the request's rows
    meta: Mapping[str, Any]  # the request's


# -- the files --------------------------------------------------------------------------------------------------------


def _folders(ctx: Context) -> list[Path]:
    return sorted(path for path in (ctx.settings.dir / "spool").glob("gateway-*") if path.is_dir())


def _segments(folder: Path, start: float, end: float) -> list[Path]:
    found = captured.segments(entry.name for entry in folder.iterdir())
    return [folder / name for name in captured.candidates(found, start, end)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""  # deleted as too old while we looked


def find_by_id(ctx: Context, wanted: Collection[str]) -> dict[str, CaptureRecord]:
    """{request id: record} of those that the log still holds; ids of another form are passed over."""
    times: dict[str, float] = {}
    for identifier in wanted:
        try:
            times[identifier] = names.time_of_id(identifier)
        except InvalidInput:
            continue
    found: dict[str, CaptureRecord] = {}
    for folder in _folders(ctx) if times else ():
        listed = captured.segments(entry.name for entry in folder.iterdir())
        places: dict[str, set[str]] = {}
        for identifier, at in times.items():
            for name in captured.candidates(listed, at, at):
                places.setdefault(name, set()).add(identifier)
        for name in sorted(places):
            left = places[name].difference(found)
            if left:
                found.update(_pick(_read(folder / name), left))
            if len(found) == len(times):
                return found
    return found


def _pick(data: bytes, wanted: Collection[str]) -> dict[str, CaptureRecord]:
    """The records of a segment with these ids."""
    if len(wanted) <= 4 and not any(data.find(identifier.encode()) >= 0 for identifier in wanted):
        return {}
    found = {}
    keys_wanted = {identifier.encode() for identifier in wanted}
    at, size = 0, len(data)
    while at + HEADER.size <= size:
        _, meta, body, answer = HEADER.unpack_from(data, at)
        end = at + HEADER.size + meta + body + answer
        if end > size:
            break
        # A gateway's ids have their place; one that stands elsewhere is found by reading the whole meta.
        ids = ids_at(data, at)
        if not keys_wanted.isdisjoint(ids) or not ids[0].startswith(b"rq_"):
            for record in iter_records(data[at:end])[0]:
                if str(record.meta.get("id")).encode() in keys_wanted and not record.meta.get("shadow"):
                    found[str(record.meta["id"])] = record
        at = end
    return found


def find_by_join(ctx: Context, endpoint: str, wanted: Collection[str]) -> dict[str, CaptureRecord]:
    """{client's id: record} of those that the log still holds; of several requests with one id the latest."""
    found: dict[str, CaptureRecord] = {}
    asked = dict.fromkeys(wanted)
    for folder in _folders(ctx):
        for index in sorted(folder.glob(f"*{JOINS_SUFFIX}")):
            places = captured.find_joins(_read(index), asked)
            if not places:
                continue
            data = _read(index.with_suffix(captured.SUFFIX))
            for join, offset in ((join, offset) for join, offsets in places.items() for offset in offsets):
                for record in _records_at(data, offset):
                    meta = record.meta
                    if meta.get("join") != join or meta.get("endpoint") != endpoint or meta.get("shadow"):
                        continue
                    if join not in found or found[join].meta["at"] < meta["at"]:
                        found[join] = record
    return found


def _records_at(data: bytes, offset: int) -> list[CaptureRecord]:
    if offset + HEADER.size > len(data):
        return []
    _, meta, body, answer = HEADER.unpack_from(data, offset)
    return iter_records(data[offset : offset + HEADER.size + meta + body + answer])[0]


def scan(ctx: Context, endpoint: str, start: float, end: float) -> Iterator[CaptureRecord]:
    """Every captured record of an endpoint with ``start <= at < end``, gateway by gateway in the order written."""
    for folder in _folders(ctx):
        for path in _segments(folder, start, end):
            for record in iter_records(_read(path))[0]:
                if record.meta.get("endpoint") == endpoint and start <= float(record.meta["at"]) < end:
                    yield record


# -- rows for training ------------------------------------------------------------------------------------------------


def captured_rows(
    ctx: Context, endpoint: str, start: float, end: float, labelled_only: bool = True
) -> Iterator[CapturedRow]:
    """Rows of answered requests with their labels, for a retraining's data asset.

    A label of a request with several rows is a list, one for each; a scalar label belongs to a request of one row.
    """
    batch: list[CaptureRecord] = []
    for record in scan(ctx, endpoint, start, end):
        if record.meta.get("status") == 200 and record.body and not _is_for_the_platform(record):
            batch.append(record)
        if len(batch) >= _LABELS_AT_ONCE:
            yield from _labelled(ctx, endpoint, batch, labelled_only)
            batch = []
    yield from _labelled(ctx, endpoint, batch, labelled_only)


def _is_for_the_platform(record: CaptureRecord) -> bool:
    """Whether no caller asked: a copy to a shadow, or a test of a version."""
    return bool(record.meta.get("shadow")) or record.meta.get("purpose") == "test"


def _labelled(ctx: Context, endpoint: str, batch: list[CaptureRecord], labelled_only: bool) -> Iterator[CapturedRow]:
    if not batch:
        return
    wanted = {str(r.meta["id"]) for r in batch} | {str(r.meta["join"]) for r in batch if r.meta.get("join")}
    with ctx.db.read() as tx:
        c = labels.c
        rows = tx.rows(sa.select(c.join_id, c.value).where(c.endpoint == endpoint, c.join_id.in_(wanted)))
        signatures = _signatures(tx, endpoint)
    known = {row["join_id"]: row["value"] for row in rows}
    for record in batch:
        identifier = str(record.meta["id"])
        label = known.get(identifier, known.get(str(record.meta.get("join"))))
        if label is None and labelled_only:
            continue
        names_, kinds = signatures.get(str(record.meta.get("variant") or ""), ([], []))
        yield from _rows(record, label, names_, kinds)


def _rows(record: CaptureRecord, label: Any, names_: list[str], kinds: list[str]) -> Iterator[CapturedRow]:
    content_type = str(record.meta.get("content_type") or "")
    found = captured.rows_of(content_type, record.body) or []
    answers = captured.predictions_of(record.answer) or []
    per_row = labels_of(label, len(found))
    if per_row is None:
        return
    for position, row in enumerate(found):
        if isinstance(row, dict):
            features = row
        else:
            values = captured.arrange(row, names_)
            if values is None:
                continue
            text = content_type.startswith("text/csv")
            features = dict(zip(names_, captured.typed(values, kinds) if text else values, strict=True))
        answer = answers[position] if position < len(answers) else None
        request, at = str(record.meta["id"]), float(record.meta["at"])
        yield CapturedRow(features, per_row[position], request, at, answer, position, record.meta)


def labels_of(label: Any, rows: int) -> list[Any] | None:
    """A label for each of a request's rows; None when it does not fit."""
    if isinstance(label, list):
        return label if len(label) == rows else None
    return [label] * rows if rows == 1 or label is None else None


def _signatures(tx: Tx, endpoint: str) -> dict[str, tuple[list[str], list[str]]]:
    """{variant: (feature names, types)} in the order in which arrays arrive."""
    query = (
        sa.select(variants.c.name, versions.c.signature)
        .join(versions, versions.c.id == variants.c.version)
        .where(variants.c.endpoint == endpoint)
    )
    found = {}
    for row in tx.rows(query):
        features = (row["signature"] or {}).get("features") or []
        found[row["name"]] = (
            [str(feature["name"]) for feature in features],
            [str(feature.get("type", "number")) for feature in features],
        )
    return found


# -- one request ------------------------------------------------------------------------------------------------------


def show(ctx: Context, actor: Actor, *, request_id: str) -> dict[str, Any]:
    """One request as it was logged: time, key, version, status, latency, digest of the input, and the output.

    Raises ``NotFound`` when the log does not hold it (any more, or not yet: it is written within a second).
    """
    record = find_by_id(ctx, [request_id]).get(request_id)
    if record is None:
        raise NotFound(f"the request log holds no request {request_id!r}; it keeps {ctx.settings.capture_days} days")
    with ctx.db.read() as tx:
        return _describe(tx, record)


def _describe(tx: Tx, record: CaptureRecord) -> dict[str, Any]:
    meta = record.meta
    key = tx.row(sa.select(keys).where(keys.c.id == str(meta.get("key")))) if meta.get("key") else None
    label = None
    for join in (meta.get("id"), meta.get("join")):
        row = tx.row(sa.select(labels).where(labels.c.endpoint == meta.get("endpoint"), labels.c.join_id == str(join)))
        label = label or row
    return {
        "request_id": meta["id"],
        "at": meta["at"],
        "endpoint": meta.get("endpoint"),
        "variant": meta.get("variant"),
        "model": meta.get("model"),
        "version": meta.get("version"),
        "key": meta.get("key"),
        "user": key["user"] if key else None,
        "status": meta.get("status"),
        "latency_ms": round(float(meta["latency_us"]) / 1000, 3),
        "content_type": meta.get("content_type"),
        "join_id": meta.get("join"),
        "captured": bool(record.body),
        "input_sha256": hashlib.sha256(record.body).hexdigest() if record.body else None,
        "input": _text(record.body),
        "output": _json(record.answer),
        "label": label["value"] if label else None,
    }


def _text(data: bytes) -> str | None:
    return data[:MAX_SHOWN_BYTES].decode(errors="replace") if data else None


def _json(data: bytes) -> Any:
    if not data or len(data) > MAX_SHOWN_BYTES:
        return _text(data)
    try:
        return json.loads(data)
    except ValueError:
        return _text(data)


def why(ctx: Context, actor: Actor, *, request_id: str) -> dict[str, Any]:
    """Everything that one prediction rests on, in one document: the request, the version and who approved it, the run,
    execution, commit and data that made it, its environment's lock and its baseline. Raises ``NotFound``."""
    record = find_by_id(ctx, [request_id]).get(request_id)
    if record is None:
        raise NotFound(f"the request log holds no request {request_id!r}; it keeps {ctx.settings.capture_days} days")
    with ctx.db.read() as tx:
        meta = record.meta
        version = records.find(tx, "version", model=meta.get("model"), number=meta.get("version"))
        return {"request": _describe(tx, record), **(_origin(tx, version) if version else {"version": None})}


def _origin(tx: Tx, version: Row) -> dict[str, Any]:
    execution = _get(tx, executions, version["execution"])
    run = _get(tx, runs, version["run"])
    push = _get(tx, pushes, execution["push"]) if execution else None
    evaluation = _get(tx, evaluations, version["evaluation"])
    servable = records.find(tx, "servable", id=version["servable"]) if version["servable"] else {}
    packages = version["environment"] or (servable or execution or {}).get("environment")
    environment = records.find(tx, "environment", id=packages)
    baseline = version["baseline"]
    return {
        "version": {
            **_some(version, "id", "model", "number", "status", "requested_by", "decided_by", "policy", "comment"),
            **_some(version, "decided_at", "created_at", "metrics", "tree"),
            "artifact": version["artifact"],
            "objects": (servable or {}).get("source"),
            "verification": of_evaluation(evaluation["status"] if evaluation else None),
        },
        "evaluation": _some(evaluation, "id", "status", "asset", "metrics", "verdict", "champion", "reason", "sources"),
        "run": _some(run, "id", "name", "experiment", "status", "parameters", "metrics", "inputs", "commit", "dirty"),
        "execution": _some(execution, "id", "status", "pipeline", "pipeline_version", "parameters", "trigger", "by"),
        "push": _some(push, "id", "branch", "commit", "dirty", "message", "by", "source"),
        "data": _data(tx, run, execution, evaluation),
        "environment": _some(environment, "id", "key", "python", "packages", "lock"),
        "baseline": {
            "rows": baseline.get("rows"),
            "features": sorted(baseline.get("features", {})),
            "sha256": _digest(baseline),
        }
        if baseline
        else None,
    }


def _get(tx: Tx, table: sa.Table, identifier: str | None) -> Row | None:
    return tx.row(sa.select(table).where(table.c.id == identifier)) if identifier else None


def _some(row: Row | None, *wanted: str) -> dict[str, Any]:
    return {name: row.get(name) for name in wanted} if row else {}


def _data(tx: Tx, run: Row | None, execution: Row | None, evaluation: Row | None) -> list[dict[str, Any]]:
    """The data assets that a version was trained and judged on, with their digests."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    pinned = (execution or {}).get("assets") or []
    inputs = (run or {}).get("inputs") or []
    judged = (evaluation or {}).get("asset")
    for use, item in [
        *(("pipeline", each) for each in _dicts(pinned)),
        *(("run", each) for each in _dicts(inputs)),
        *(("gate", each) for each in _dicts([judged])),
    ]:
        name, number = item.get("name") or item.get("asset"), item.get("version")
        if name is None:
            continue
        before, colon, after = str(name).rpartition(":")
        if number is None and colon and after.isdecimal():  # NAME:VERSION, as a run notes what it read
            name, number = before, int(after)
        row = tx.row(_asset_query(str(name), number, item.get("project") or (execution or {}).get("project")))
        if row is not None:
            told = _some(row, "name", "version", "digest", "kind", "size_bytes", "source", "created_at")
        else:
            told = {"name": str(name), **item}
        entry = found.setdefault((str(told["name"]), int(told.get("version") or number or 0)), {"use": [], **told})
        if use not in entry["use"]:
            entry["use"].append(use)
    return list(found.values())


def _dicts(items: Any) -> Iterable[dict[str, Any]]:
    values = items.values() if isinstance(items, dict) else items
    return [each for each in values if isinstance(each, dict)]


def _asset_query(name: str, number: Any, project: Any) -> sa.Select[Any]:
    query = sa.select(assets).where(assets.c.name == name)
    if project is not None:
        query = query.where(assets.c.project == project)
    if number is not None:
        query = query.where(assets.c.version == int(number))
    return query.order_by(assets.c.version.desc()).limit(1)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def export(
    ctx: Context, actor: Actor, *, endpoint: str, start: float | None = None, end: float | None = None
) -> Iterator[bytes]:
    """The rows that callers asked about in a stretch of time (all that the log holds), with what was answered and the
    labels that have arrived: one JSON object a line, the features under their names, everything else behind ``@``."""
    with ctx.db.read() as tx:
        monitoring.endpoint_row(tx, endpoint)
    end = ctx.clock.now() + 1 if end is None else end
    return _lines(captured_rows(ctx, endpoint, start or 0.0, end, labelled_only=False))


def _lines(rows: Iterator[CapturedRow]) -> Iterator[bytes]:
    """JSON lines, many in one piece."""
    waiting: list[str] = []
    for row in rows:
        told: dict[str, Any] = {"@request": row.request, "@row": row.position, "@at": row.at}
        told |= {f"@{name}": row.meta.get(name) for name in ("variant", "version", "model", "key", "join")}
        told |= {"@latency_us": row.meta.get("latency_us"), "@prediction": None, "@score": None, "@label": row.label}
        if row.prediction is not None:
            told |= {"@prediction": row.prediction.value, "@score": row.prediction.score}
        waiting.append(json.dumps({**row.features, **told}, separators=(",", ":")))
        if len(waiting) >= _LABELS_AT_ONCE:
            yield ("\n".join(waiting) + "\n").encode()
            waiting = []
    if waiting:
        yield ("\n".join(waiting) + "\n").encode()


def list_(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    start: float | None = None,
    end: float | None = None,
    status: int | None = None,
    limit: int = 50,
) -> dict[str, Any]:
    """The latest requests of an endpoint in a stretch of time (the last 10 minutes), newest first, no bodies.

    Copies to shadows are not listed: they bear their request's id.
    """
    end = ctx.clock.now() + 1 if end is None else end
    start = end - 600 if start is None else start
    with ctx.db.read() as tx:
        monitoring.endpoint_row(tx, endpoint)
    found: list[dict[str, Any]] = []
    for record in scan(ctx, endpoint, start, end):
        if not record.meta.get("shadow") and (status is None or record.meta.get("status") == status):
            found.append(record.meta)
        if len(found) > 50 * max(limit, 100):
            found = sorted(found, key=lambda meta: -meta["at"])[:limit]
    found.sort(key=lambda meta: -meta["at"])
    return {"items": found[:limit], "next": None}
