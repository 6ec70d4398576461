"""Claims: figures of a version that come from files which a client named. They are kept and shown as what they are,
an evaluation that is *Claimed*: nobody measured them here, and no enforced gate takes them for a judgement."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from loopline.control import objects
from loopline.control.context import Context
from loopline.domain.objects import split_uri
from loopline.domain.states import EvaluationStatus
from loopline.domain.verification import figures
from loopline.errors import InvalidInput, LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx

MAX_REPORT_BYTES = 8 << 20
QUALITY = "model_quality"  # the report whose numbers are figures of the version
SHOWN = 5


class Source(NamedTuple):
    """Where a report is: the address of an object, and its type as its author says."""

    uri: str
    content_type: str | None = None
    digest: str | None = None


def record(
    ctx: Context, tx: Tx, version: Row, reports: Mapping[str, Source], *, actor: str
) -> tuple[dict[str, Any], list[str]]:
    """Keep what reports claim of a version; gives the columns of the version that changed, and warnings.

    A report that cannot be read is kept with its ``problem``; when none can be, there is no evaluation at all.
    """
    if not reports:
        return {}, []
    sources, metrics = _read(ctx, tx, reports)
    problems = [f"{name}: {source['problem']}" for name, source in sources.items() if "problem" in source]
    read = [name for name, source in sources.items() if "problem" not in source]
    if not read:
        records.note(tx, "version", version["id"], "reports_unread", actor=actor, reason="; ".join(problems))
        return {}, problems
    row = records.create(
        tx,
        "evaluation",
        actor=actor,
        version=version["id"],
        model=version["model"],
        number=version["number"],
        sources=sources,
        by=actor,
    )
    reason = _in_words(read, metrics)
    records.move(
        tx,
        "evaluation",
        row["id"],
        EvaluationStatus.CLAIMED,
        actor=actor,
        reason=reason,
        metrics=metrics,
        ended_at=tx.now,
    )
    values = {"evaluation": row["id"], "metrics": {**(version["metrics"] or {}), **metrics}}
    records.set(tx, "version", version["id"], actor=actor, **values)
    return values, problems


def _read(ctx: Context, tx: Tx, reports: Mapping[str, Source]) -> tuple[dict[str, Any], dict[str, float]]:
    """({report: where it is, its digest or its problem}, the figures of the report of quality)."""
    sources: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    for name, source in reports.items():
        entry: dict[str, Any] = {"uri": source.uri, "content_type": source.content_type}
        sources[name] = entry
        try:
            found = objects.find(tx, *split_uri(source.uri))
            if source.digest is not None and found["digest"] != source.digest:
                raise InvalidInput(f"{source.uri} has the digest {found['digest']}, not {source.digest}")
            entry.update(digest=found["digest"], size_bytes=found["size_bytes"])
            if name == QUALITY:
                metrics = _figures(ctx, found)
        except LooplineError as error:
            entry["problem"] = error.message
    return sources, metrics


def _figures(ctx: Context, found: Row) -> dict[str, float]:
    if found["size_bytes"] > MAX_REPORT_BYTES:
        raise InvalidInput(f"a report of more than {MAX_REPORT_BYTES} bytes is not read")
    try:
        document = json.loads(ctx.blobs.read(found["digest"]))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the report is no JSON: {error}") from None
    return figures(document)


def _in_words(read: list[str], metrics: Mapping[str, float]) -> str:
    """What is claimed, in a sentence."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:SHOWN])
    more = f" and {len(metrics) - SHOWN} more" if len(metrics) > SHOWN else ""
    return f"a file claims {shown}{more}" if metrics else f"claimed by files without figures: {', '.join(read)}"
