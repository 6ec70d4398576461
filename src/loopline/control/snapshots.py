"""Desired traffic as numbered snapshots: the one thing gateways follow, and the ledger of what was live when.

``write`` runs inside the transaction that changes traffic, so that status, alias and traffic commit together as number
N; the file is published after the commit. A file that is behind the table (a crash in between) is published again at
the next start or tick.
"""

import itertools
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain import sigv4
from loopline.store.db import Row, Tx
from loopline.store.schema import access_keys, consumers, endpoints, functions, gateways, keys, snapshots, variants

SIGNING_DAYS = 8  # so long gateways go on checking signatures while control is down
KEPT_SECONDS = 3600.0  # so long a snapshot stays as it was written
PRUNER = "snapshots.prune"
ROWS = 20  # of one transaction of the pruner; each may name thousands of models
ROUNDS = 500  # transactions of one look


def write(ctx: Context, tx: Tx, *, actor: str, reason: str) -> int:
    """Take a snapshot of what the tables say now; publish it after commit. Returns its number."""
    body = {"endpoints": _endpoints(ctx, tx), "keys": _keys(tx), "functions": _functions(ctx, tx)}
    result = tx.execute(snapshots.insert().values(at=tx.now, body=body, reason=reason, by=actor))
    number = int(result.inserted_primary_key[0])  # type: ignore[index]
    tx.after_commit.append(lambda: publish(ctx))
    return number


def _endpoints(ctx: Context, tx: Tx) -> dict[str, Any]:
    by_endpoint: dict[str, list[Row]] = {}
    for row in tx.rows(sa.select(variants).where(variants.c.status.in_(("Ready", "Warm"))).order_by(variants.c.name)):
        by_endpoint.setdefault(row["endpoint"], []).append(row)
    body = {}
    for row in tx.rows(sa.select(endpoints).where(endpoints.c.status != "Deleted")):
        settings = row["settings"] or {}
        body[row["name"]] = {
            "auth": settings.get("auth", True),
            "capture": settings.get("capture", 1.0),
            "max_body_bytes": ctx.settings.max_body_mb << 20,
            "timeout_ms": int(settings.get("timeout_seconds", 30) * 1000),
            "max_concurrent": settings.get("max_concurrent", 256),
            "queue_ms": int(settings.get("queue_seconds", 1.0) * 1000),
            **({"sticky": settings["sticky"]} if settings.get("sticky") else {}),
            **_many(settings.get("multi_model")),
            "variants": [
                {
                    "name": variant["name"],
                    "version": variant["number"],
                    "model": variant["model"],
                    "weight": variant["weight"],
                    **({"shadow": variant["shadow"] / 100} if variant["shadow"] else {}),
                    "servers": [entry["socket"] for entry in variant["server"] or () if _takes(entry)],
                    **_demand(variant, settings),
                    **_manner(variant),
                }
                for variant in by_endpoint.get(row["name"], ())
            ],
        }
    return body


def _many(table: dict[str, Any] | None) -> dict[str, Any]:
    """Of an endpoint with many models, that it is one, and whether there may be others than those named."""
    return {"multi_model": True, **({"fetches": True} if table.get("store") else {})} if table else {}


def _takes(entry: dict[str, Any]) -> bool:
    """Whether a server is there for requests: neither leaving, nor added to the others and not ready yet."""
    return not entry.get("leaving") and not entry.get("joining")


def _demand(variant: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether the first of a variant's servers starts when it is asked for, and how long a request waits for it."""
    if not variant["server"] or not variant["server"][0]["process"].get("on_demand"):
        return {}
    table = settings.get("multi_model") or settings.get("scaling") or {}
    return {"on_demand": True, "cold_start_ms": int(table.get("cold_start_seconds", 30) * 1000)}


def _manner(variant: Row) -> dict[str, Any]:
    """What callers know a variant as, what its model is asked for by, and whether that reads bodies by itself."""
    entries = variant["server"] or ()
    found: dict[str, Any] = {"called": variant["called"]} if variant["called"] else {}
    for entry in entries:
        if entry.get("answers_to"):
            found["answers_to"] = entry["answers_to"]
    return {**found, "whole": True} if any(entry.get("whole") for entry in entries) else found


def _functions(ctx: Context, tx: Tx) -> dict[str, Any]:
    """Every function that has processes, also while new ones are on their way."""
    found = {}
    for row in tx.rows(sa.select(functions).where(functions.c.status != "Deleted").order_by(functions.c.name)):
        settings = row["settings"]
        if row["server"]:
            servers = [entry["socket"] for entry in row["server"]]
            found[row["name"]] = {
                "auth": settings["auth"],
                "capture": settings["capture"],
                "max_body_bytes": ctx.settings.max_body_mb << 20,
                "timeout_ms": int(settings["timeout_seconds"] * 1000),
                "calls": settings["endpoints"],
                "variants": [{"name": "live", "version": None, "model": None, "weight": 100.0, "servers": servers}],
            }
    return found


def _keys(tx: Tx) -> dict[str, Any]:
    """Every live key, those too whose role may not ask: a gateway tells them so, rather than that they are unknown."""
    query = sa.select(keys).where(keys.c.revoked_at.is_(None))
    return {
        row["id"]: {
            "sha256": row["sha256"],
            "role": row["role"],
            "endpoints": row["endpoints"],
            "expires_at": row["expires_at"],
            **_key_limits(row),
        }
        for row in tx.rows(query)
        if row["expires_at"] is None or row["expires_at"] > tx.now
    }


def _key_limits(row: Row) -> dict[str, Any]:
    names = ("rate", "burst", "quota", "quota_seconds")
    return {name: row[name] for name in names if row[name] is not None}


def _signers(ctx: Context, tx: Tx) -> dict[str, Any]:
    """What gateways check signatures with: of each live access key the keys derived for the days around now.

    It stands in the file alone, which is written anew each day, and never in the table. The secret itself cannot be had
    from it, and what it signs is refused when its day is over.
    """
    today = int(tx.now // 86400)
    days = [time.strftime("%Y%m%d", time.gmtime(day * 86400)) for day in range(today - 1, today + SIGNING_DAYS)]
    found = {}
    for row in tx.rows(sa.select(access_keys).where(access_keys.c.revoked_at.is_(None))):
        if row["expires_at"] is None or row["expires_at"] > tx.now:
            secret = ctx.secrets.get(tx, f"access_key/{row['id']}")
            found[row["id"]] = {
                "role": row["role"],
                "endpoints": row["endpoints"],
                "expires_at": row["expires_at"],
                "token_sha256": row["token_sha256"],
                "signing": {day: sigv4.day_key(secret, day).hex() for day in days},
            }
    return found


def latest(tx: Tx) -> Row | None:
    """The newest snapshot."""
    return tx.row(sa.select(snapshots).order_by(snapshots.c.number.desc()).limit(1))


def publish(ctx: Context) -> int:
    """Write the newest snapshot to ``snapshot.json`` unless it is there, and tell the gateways. Returns its number."""
    with ctx.publishing:
        with ctx.db.read() as tx:
            row = latest(tx)
            number = 0 if row is None else int(row["number"])
            day = int(ctx.clock.now() // 86400)
            if (number, day) <= ctx.cache.get("published", (-1, 0)):
                return number
            signers = _signers(ctx, tx)
        body = {} if row is None else row["body"]
        document = {
            "number": number,
            "at": 0.0 if row is None else row["at"],
            "allowed_hosts": allowed_hosts(ctx),
            "endpoints": body.get("endpoints", {}),
            "keys": body.get("keys", {}),
            "functions": body.get("functions", {}),
            "access_keys": signers,
        }
        replace_json(ctx.settings.dir / "snapshot.json", document)
        ctx.cache["published"] = number, day
    tell_gateways(ctx, {"kind": "snapshot"})
    return number


def replace_json(path: Path, document: Any) -> None:
    """Write by rename, mode 0600: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, separators=(",", ":"))
    temporary.rename(path)


def allowed_hosts(ctx: Context) -> list[str]:
    """Host headers that the public port answers to."""
    port = ctx.cache.get("port", ctx.settings.port)
    names = ctx.settings.allowed_hosts  # as proxies at the usual ports pass them on, too: without a port
    bound = [ctx.settings.host, "localhost", "127.0.0.1", "[::1]", *names]
    return sorted(
        {name if ":" in name.strip("[]") and not name.startswith("[") else f"{name}:{port}" for name in bound}
        | set(names)
    )


def tell_gateways(ctx: Context, message: dict[str, Any]) -> None:
    """A datagram to every gateway. One that is lost costs time alone: they look at the file, and ask again."""
    data = json.dumps(message).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for path in ctx.settings.run_dir.glob("gateway-*.sock"):
            try:
                sender.sendto(data, str(path))
            except OSError:
                continue


def acknowledged(ctx: Context, number: int) -> bool:
    """Whether every live gateway has switched to this snapshot or a later one. With no gateway alive, no."""
    live = 0
    for path in ctx.settings.run_dir.glob("gateway-*.json"):
        try:
            state = json.loads(path.read_text())
            os.kill(int(state["pid"]), 0)
        except (OSError, ValueError, KeyError):
            continue
        live += 1
        if int(state["number"]) < number:
            return False
    return live > 0


def record_acknowledgements(ctx: Context, tx: Tx) -> None:
    """Keep what each gateway acknowledged last, for people."""
    rows = []
    for path in ctx.settings.run_dir.glob("gateway-*.json"):
        try:
            state = json.loads(path.read_text())
            rows.append({"name": path.stem, "number": int(state["number"]), "at": float(state["at"])})
        except (OSError, ValueError, KeyError):
            continue
    tx.upsert(gateways, rows, ("name",), ("number", "at"))


def live_at(ctx: Context, tx: Tx, at: float | None) -> list[dict[str, Any]]:
    """Which version served which share of each endpoint at a time (None: now)."""
    query = sa.select(snapshots).order_by(snapshots.c.number.desc()).limit(1)
    if at is not None:
        query = query.where(snapshots.c.at <= at)
    row = tx.row(query)
    if row is None:
        return []
    answer = []
    for name, endpoint in sorted(row["body"]["endpoints"].items()):
        # Each of many models answers to its own name: it has all of the requests that name it.
        total = 100.0 if endpoint.get("multi_model") else sum(each["weight"] for each in endpoint["variants"]) or 1.0
        for variant in endpoint["variants"]:
            if variant["weight"] > 0:
                answer.append(
                    {
                        "endpoint": name,
                        "variant": variant["name"],
                        "model": variant["model"],
                        "version": variant["version"],
                        "share": variant["weight"] / total,
                        "snapshot": row["number"],
                        "since_at": _since(tx, row, name, variant),
                    }
                )
    return answer


def unchanged_since(tx: Tx, endpoint: str) -> float | None:
    """The time from which an endpoint's weights have been what they are, as far as the last 1000 snapshots tell."""
    found: float | None = None
    weights: dict[str, float] | None = None
    for row in tx.rows(sa.select(snapshots).order_by(snapshots.c.number.desc()).limit(1000)):
        entries = row["body"]["endpoints"].get(endpoint, {}).get("variants", ())
        there = {entry["name"]: entry["weight"] for entry in entries if entry["weight"] > 0}
        if weights is not None and there != weights:
            break
        weights, found = there, float(row["at"])
    return found


def _since(tx: Tx, row: Row, endpoint: str, variant: dict[str, Any]) -> float:
    """The time from which the variant has had this weight without a break, among the last 200 snapshots."""
    since = float(row["at"])
    query = sa.select(snapshots).where(snapshots.c.number <= row["number"]).order_by(snapshots.c.number.desc())
    for earlier in tx.rows(query.limit(200)):
        entries = earlier["body"]["endpoints"].get(endpoint, {}).get("variants", ())
        if not any(e["name"] == variant["name"] and e["weight"] == variant["weight"] for e in entries):
            break
        since = float(earlier["at"])
    return since


# -- snapshots that are over ------------------------------------------------------------------------------------------


def prune(ctx: Context) -> int:
    """Tick: reduce old snapshots to the ledger of what was live when; says how many of them went.

    Of those that gave endpoints the same traffic the first stays, without what gateways alone need: keys, sockets,
    limits. The newest one, which gateways follow and the next start publishes, is never touched.
    """
    removed = 0
    for _ in range(ROUNDS):
        with ctx.db.read() as tx:
            reached, gone, told = _outworn(tx, ctx.clock.now() - KEPT_SECONDS)
        if not gone and not told:
            break
        with ctx.db.transaction() as tx:
            if gone:
                tx.execute(snapshots.delete().where(snapshots.c.number.in_(gone)))
            for number, body in told.items():
                tx.execute(snapshots.update().where(snapshots.c.number == number).values(body=body))
            tx.upsert(consumers, [{"name": PRUNER, "position": reached}], ("name",), ("position",))
        removed += len(gone)
    return removed


def _outworn(tx: Tx, before: float) -> tuple[int, list[int], dict[int, dict[str, Any]]]:
    """How far the ledger reaches now, the snapshots that say nothing new, and what the others are reduced to."""
    c = snapshots.c
    reached = tx.execute(sa.select(consumers.c.position).where(consumers.c.name == PRUNER)).scalar() or 0
    newest = sa.select(sa.func.max(c.number)).scalar_subquery()
    query = sa.select(c.number, c.at).where(c.number >= reached, c.number < newest).order_by(c.number).limit(ROWS)
    old = [row["number"] for row in itertools.takewhile(lambda row: row["at"] <= before, tx.rows(query))]
    last: dict[str, Any] | None = None
    gone: list[int] = []
    told: dict[int, dict[str, Any]] = {}
    if len(old) > 1 or (old and old[0] != reached):  # the one that the ledger ends with is done already
        for number in old:
            body = tx.execute(sa.select(c.body).where(c.number == number)).scalar_one()
            said = {"endpoints": _shares(body)}
            if said == last:
                gone.append(number)
                continue
            last, reached = said, number
            if said != body:
                told[reached] = said
    return reached, gone, told


def _shares(body: dict[str, Any]) -> dict[str, Any]:
    """Of a snapshot's endpoints what ``live_at`` and ``unchanged_since`` ask for."""
    found = {}
    for name, endpoint in body["endpoints"].items():
        serving = [
            {key: variant[key] for key in ("name", "version", "model", "weight")}
            for variant in endpoint["variants"]
            if variant["weight"] > 0
        ]
        if serving:
            many = {"multi_model": True} if endpoint.get("multi_model") else {}
            found[name] = {**many, "variants": serving}
    return found
