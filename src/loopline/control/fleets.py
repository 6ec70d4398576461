"""Fleets: the model servers of a variant. They are started, waited for, and let go of one by one.

A server that is leaving is in no snapshot any more but still runs, until what it was asked before has been answered.
"""

from typing import Any

from loopline.control import artifacts, compilations, outputs, processes, servables
from loopline.control.context import SYSTEM, Context
from loopline.domain import warmup
from loopline.errors import Conflict
from loopline.store import records
from loopline.store.db import Row, Tx

Entry = dict[str, Any]
READ_BODIES = ("sagemaker",)  # handlers that read bodies by themselves, and so want to know what is accepted


def staying(variant: Row) -> list[Entry]:
    """The servers that a variant is to keep."""
    return [entry for entry in variant["server"] or () if not entry.get("leaving")]


def grown(ctx: Context, variant: Row, count: int) -> list[Entry]:
    """A variant's servers, those that leave called back, and new ones until there are ``count``.

    The new ones run once the variant has them and ``processes.write`` has been called. Raises ``LooplineError`` or
    ``OSError`` when the version cannot be laid out.
    """
    entries = [{key: value for key, value in entry.items() if key != "leaving"} for entry in variant["server"] or ()]
    if len(entries) >= count:
        return entries
    with ctx.db.read() as tx:
        servable = servables.of_variant(tx, variant)
        version = records.get(tx, "version", variant["version"]) if servable is None else None
        named = (servable or version or {}).get("environment")
        environment = records.get(tx, "environment", named) if named else None
    if servable is not None and (problem := servables.problem(servable)):
        raise Conflict(problem)
    if environment is None:
        raise Conflict("the version names no environment to run in")
    if servable is not None:
        spec = servables.spec(ctx, servable)
    else:
        assert version is not None
        spec = _version_spec(ctx, version)
    spec["limits"] = {"memory_mb": ctx.settings.job_memory_mb}
    whole = {"whole": True} if spec["handler"] in READ_BODIES else {}
    more = range(len(entries), count)
    return entries + [
        {**processes.server(ctx, variant["id"], index, spec, environment["python"], environment), **whole}
        for index in more
    ]


def _version_spec(ctx: Context, version: Row) -> dict[str, Any]:
    return {
        "model_dir": str(artifacts.model_dir(ctx, version)),
        "handler": version["handler"],
        "compiled": compilations.served(ctx, version),
        "code_dir": str(outputs.tree_path(ctx, version["tree"])) if version["tree"] else None,
        "signature": version["signature"],
        "warmup": version["warmup"] or warmup.rows(version["signature"], version["baseline"]),
    }


def states(variant: Row) -> list[dict[str, Any]]:
    """What the servers that stay last said of themselves."""
    return [processes.server_state(entry) for entry in staying(variant)]


def death(ctx: Context, variant: Row) -> tuple[str, int] | None:
    """How a server of a variant that is not ready ended last, in words, and how often it was started again."""
    known = processes.children(ctx)
    for entry in staying(variant):
        child = known.get(entry["id"])
        last = child and child.get("last_exit")
        if child and last and processes.server_state(entry)["state"] != "ready":
            how = f"signal {last['signal']}" if last.get("signal") else f"exit code {last.get('code')}"
            return f"it ended with {how} while it loaded", int(child.get("restarts") or 0)
    return None


def shrink(tx: Tx, variant: Row, count: int) -> None:
    """Let all but ``count`` servers leave: the next snapshot is without them."""
    entries = list(variant["server"] or ())
    marked = [entry if place < count else {**entry, "leaving": True} for place, entry in enumerate(entries)]
    if marked != entries:
        records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=marked)


def let_go(tx: Tx, variant: Row) -> bool:
    """End the servers that leave; says whether there were any. They have to be in no gateway's snapshot any more."""
    kept = staying(variant)
    if len(kept) == len(variant["server"] or ()):
        return False
    records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=kept)
    return True
