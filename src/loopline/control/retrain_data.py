"""A retraining's data: the base asset's rows, and behind them the captured rows whose labels have arrived."""

import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import assets, requests, specs
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.projects import Loop
from loopline.domain.states import RetrainingStatus, RolloutStatus
from loopline.domain.tables import Style, cells
from loopline.errors import InvalidInput, NotFound
from loopline.store import records
from loopline.store.blobs import Blob
from loopline.store.db import Row, Tx
from loopline.store.schema import assets as table
from loopline.store.schema import labels, retrainings, rollouts

KIND = "captured"
MAX_HEADER_BYTES = 1 << 20
MAX_BYTES = 16 << 30
DAY_SECONDS = 86400
LABELS_RECENT_SECONDS = (
    60.0  # labels that came so shortly before are joined within seconds, if their requests are known
)


class Plan(NamedTuple):
    """What to collect. Rows of requests made in [start_at, end_at) whose label was joined in [joined_from, end_at)."""

    base: Row
    endpoint: str
    label: str
    start_at: float
    end_at: float
    joined_from: float
    min_rows: int


class Collected(NamedTuple):
    """The bytes of the new version and what they were made of; ``source`` is the asset's."""

    blob: Blob
    rows: int
    source: dict[str, Any]


def plan(ctx: Context, tx: Tx, row: Row, loop: Loop) -> Plan:
    """What a retraining collects; raises ``InvalidInput`` or ``NotFound`` when the project says too little.

    The base is the newest version of the training asset that did not come from a retraining that failed. Where the base
    holds captured rows already, only labels that were joined since then are added, each once; otherwise the window
    begins at the release of the live version. It reaches back no further than the request log does (``capture_days``).
    """
    if not loop.gate.label:
        raise InvalidInput("[gate] label does not say which column of the training data is the truth")
    base = _base(tx, row["project"], loop.retrain.asset)
    end = tx.now
    oldest = end - ctx.settings.capture_days * DAY_SECONDS
    joined_from = _collected_until(tx, base, row["endpoint"])
    start = oldest if joined_from else max(oldest, _released_at(tx, row["endpoint"]) or oldest)
    return Plan(base, row["endpoint"], loop.gate.label, start, end, joined_from, loop.retrain.min_rows)


def _base(tx: Tx, project: str, reference: str) -> Row:
    name, version = names.split_version(reference, "a data asset")
    if version is not None:
        return specs.find_asset(tx, project, name, version)
    done = sa.select(retrainings.c.asset).where(
        retrainings.c.project == project, retrainings.c.status == RetrainingStatus.SUCCEEDED
    )
    good = {row["asset"] for row in tx.rows(done)}
    c = table.c
    for row in tx.rows(sa.select(table).where(c.project == project, c.name == name).order_by(c.version.desc())):
        if (row["source"] or {}).get("kind") != KIND or f"{name}:{row['version']}" in good:
            return row
    raise NotFound(f"the project {project} has no data asset {name!r} to train on; `loopline assets put` adds it")


def _collected_until(tx: Tx, base: Row, endpoint: str) -> float:
    """Up to when the base, or what it was made from, holds this endpoint's labels; 0 when it holds none."""
    found: Row | None = base
    while found is not None and (found["source"] or {}).get("kind") == KIND:
        source = found["source"]
        if source["endpoint"] == endpoint:
            return float(source["window"]["end_at"])
        name, version = names.split_version(source["base"], "a data asset")
        found = records.find(tx, "asset", project=found["project"], name=name, version=version)
    return 0.0


def _released_at(tx: Tx, endpoint: str) -> float | None:
    """When the endpoint's latest release that held began to take traffic."""
    c = rollouts.c
    query = sa.select(c.created_at).where(c.endpoint == endpoint, c.kind == "release")
    row = tx.row(query.where(c.status == RolloutStatus.SUCCEEDED).order_by(c.created_at.desc()).limit(1))
    return None if row is None else float(row["created_at"])


def collect(ctx: Context, what: Plan) -> Collected:
    """Write the new version's bytes. Raises ``InvalidInput``, with the figures, for fewer than ``min_rows``."""
    base = what.base
    name = f"{base['name']}:{base['version']}"
    if base["kind"] != "file" or base["format"] != "csv":
        kind = base["format"] or base["kind"]
        raise InvalidInput(f"captured rows extend a CSV file; the training data {name} is a {kind}")
    header, style = _read_base(ctx, base, name)
    if what.label not in header:
        raise InvalidInput(f"the training data {name} has no column {what.label!r}, which [gate] label names")
    counted = [0]
    blob = ctx.blobs.put_stream(_content(ctx, what, header, style, counted), MAX_BYTES)
    source = {
        "kind": KIND,
        "endpoint": what.endpoint,
        "window": {"start_at": what.start_at, "end_at": what.end_at, "labels_from_at": what.joined_from},
        "rows": counted[0],
        "base": name,
    }
    return Collected(blob, counted[0], source)


def _read_base(ctx: Context, base: Row, name: str) -> tuple[list[str], Style]:
    """The base's columns, and how it writes true and false."""
    start = ctx.blobs.read(base["digest"], 0, MAX_HEADER_BYTES)
    whole = start if len(start) < MAX_HEADER_BYTES else start[: start.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(whole.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"the training data {name} is not a CSV file in UTF-8: {error}") from None
    if not rows or len(set(rows[0])) != len(rows[0]):
        raise InvalidInput(f"the training data {name} has no header of distinct column names")
    return rows[0], Style.of(rows[0], rows[1:])


def _content(ctx: Context, what: Plan, header: list[str], style: Style, counted: list[int]) -> Iterator[bytes]:
    """The base as it is, then the captured rows; raises at the end when they are too few, so that nothing is kept."""
    last = b"\n"
    for chunk in ctx.blobs.chunks(what.base["digest"]):
        last = chunk[-1:] or last
        yield chunk
    if last != b"\n":
        yield b"\n"
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    wanted = _joined(ctx, what)
    for row in requests.captured_rows(ctx, what.endpoint, what.start_at, what.end_at, labelled_only=True):
        if row.request not in wanted or row.label is None:
            continue
        writer.writerow(cells({**row.features, what.label: row.label}, header, style))
        counted[0] += 1
        if text.tell() > 1 << 16:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    if counted[0] < what.min_rows:
        raise InvalidInput(
            f"{counted[0]} captured rows have new labels; [retrain] min_rows asks for {what.min_rows} "
            f"(send labels with `loopline labels put`, or lower it)",
            rows=counted[0],
            min_rows=what.min_rows,
        )
    yield text.getvalue().encode()


def _joined(ctx: Context, what: Plan) -> set[str]:
    """The requests whose labels were joined in this window: a label counts in one collection only."""
    c = labels.c
    query = sa.select(c.request).where(c.endpoint == what.endpoint, c.request.is_not(None))
    with ctx.db.read() as tx:
        rows = tx.rows(query.where(c.joined_at >= what.joined_from, c.joined_at < what.end_at))
    return {row["request"] for row in rows}


def labels_are_coming(tx: Tx, row: Row) -> bool:
    """Whether labels that came shortly before a retraining was asked for are still to be joined with their requests."""
    c = labels.c
    asked = float(row["created_at"])
    query = sa.select(c.join_id).where(c.endpoint == row["endpoint"], c.joined_at.is_(None), c.at <= asked)
    return tx.row(query.where(c.at > asked - LABELS_RECENT_SECONDS).limit(1)) is not None


def put(tx: Tx, row: Row, what: Plan, made: Collected) -> str:
    """Add the version; gives ``name:version``."""
    base = what.base
    version, _ = assets.put_in(
        tx,
        project=row["project"],
        name=base["name"],
        digest=made.blob.digest,
        size_bytes=made.blob.size_bytes,
        kind="file",
        file_name=str((base["source"] or {}).get("name") or f"{base['name']}.csv"),
        actor=row["by"],
        source=made.source,
    )
    return f"{base['name']}:{version['version']}"
