"""The tests of endpoints: what a version has to show before traffic moves to it. ``release_tests`` runs them."""

from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import endpoints, requests
from loopline.control.context import Context
from loopline.domain import endpoint_tests as rules
from loopline.domain import loopfile, names
from loopline.domain.access import Actor
from loopline.domain.capture import CaptureRecord
from loopline.domain.projects import CaseTable, EndpointTest, Loop
from loopline.domain.states import EndpointStatus
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import folders, records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoint_tests

FROM_FILE = "loop.toml"
BY_HAND = "api"
CAPTURED = "captured"
RECORDED_FROM_SECONDS = 3600.0  # how far back `record` looks, unless it is told


def test_of(row: Row) -> EndpointTest:
    """The test in a stored row."""
    return msgspec.convert({**row["definition"], "cases": row["cases"] or []}, EndpointTest)


# -- by hand ----------------------------------------------------------------------------------------------------------


def put(
    ctx: Context, actor: Actor, *, endpoint: str, name: str, definition: dict[str, Any], source: str = BY_HAND
) -> dict[str, Any]:
    """Create a test of an endpoint, or replace the one of this name. ``definition``: the keys of ``[[tests]]``; cases
    are given in it."""
    if "file" in definition:
        raise InvalidInput("file: a file belongs to a project; give its lines as cases")
    if "name" in definition:
        raise InvalidInput("name: it stands in the address, and nowhere else")
    if source not in (BY_HAND, CAPTURED):
        raise InvalidInput(f"source: {BY_HAND} or {CAPTURED}")
    names.check_name(name, "a test")
    test = loopfile.check_test(endpoint, {**definition, "name": name})
    with ctx.db.transaction() as tx:
        endpoints.endpoint_row(tx, endpoint)
        there = records.find(tx, "test", endpoint=endpoint, name=name)
        if there is not None and there["source"] == FROM_FILE:
            raise Conflict(f"the test {name!r} comes from loop.toml; change it there")
        return _shown(_ensure(tx, endpoint, test, actor.name, source)[0])


def _ensure(tx: Tx, endpoint: str, test: EndpointTest, actor: str, source: str) -> tuple[Row, str | None]:
    """The test brought to this definition, and what that took: created, changed or None."""
    cases = [rules.plain_case(case) for case in test.cases]
    rules.check_size(cases, test.name)
    definition = {key: value for key, value in msgspec.to_builtins(test).items() if key != "cases"}
    definition = msgspec.json.decode(msgspec.json.encode(definition))  # lists, not tuples: as it comes back
    values = {"kind": test.kind, "definition": definition, "cases": cases, "source": source}
    there = records.find(tx, "test", endpoint=endpoint, name=test.name)
    if there is None:
        row = records.create(
            tx, "test", actor=actor, endpoint=endpoint, name=test.name, by=actor, changed_at=tx.now, **values
        )
        return row, "created"
    changed = {key: value for key, value in values.items() if there[key] != value}
    if changed:
        changed.update(changed_at=tx.now, by=actor)
        records.set(tx, "test", there["id"], actor=actor, **changed)
    return {**there, **changed}, "changed" if changed else None


def _shown(row: Row) -> dict[str, Any]:
    """A test for people: how many cases there are, not the cases."""
    return {**{key: value for key, value in row.items() if key != "cases"}, "case_count": len(row["cases"] or ())}


def list_(ctx: Context, actor: Actor, *, endpoint: str) -> dict[str, Any]:
    """An endpoint's tests in the order in which they are run."""
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
        return {"items": [_shown(row) for row in rows_of(tx, endpoint)], "next": None}


def rows_of(tx: Tx, endpoint: str) -> list[Row]:
    """An endpoint's tests: calls first, since they take least, loads last."""
    order = {"call": 0, "golden": 1, "load": 2}
    found = tx.rows(sa.select(endpoint_tests).where(endpoint_tests.c.endpoint == endpoint))
    return sorted(found, key=lambda row: (order[row["kind"]], row["name"]))


def show(ctx: Context, actor: Actor, *, endpoint: str, name: str) -> dict[str, Any]:
    """A test with its cases."""
    with ctx.db.read() as tx:
        return _row(tx, endpoint, name)


def _row(tx: Tx, endpoint: str, name: str) -> Row:
    row = records.find(tx, "test", endpoint=endpoint, name=name)
    if row is None:
        known = [each["name"] for each in rows_of(tx, endpoint)]
        raise NotFound(f"the endpoint {endpoint!r} has no test {name!r}{names.meant(name, known)}")
    return row


def delete(ctx: Context, actor: Actor, *, endpoint: str, name: str) -> dict[str, Any]:
    """Remove a test; what its runs found stays. One from loop.toml would come back, so that it is refused."""
    with ctx.db.transaction() as tx:
        row = _row(tx, endpoint, name)
        if row["source"] == FROM_FILE:
            raise Conflict(f"the test {name!r} comes from loop.toml; remove it there")
        records.delete(tx, "test", row["id"], actor=actor.name)
    return _shown(row)


# -- from captured traffic --------------------------------------------------------------------------------------------


def record(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    name: str = "recorded",
    last: int = 50,
    start: float | None = None,
    definition: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a golden test of the latest captured requests that were answered, with the answers they got.

    ``last``: how many different requests. ``start``: none older than that (default: an hour). ``definition``: the other
    keys of a golden test, such as its tolerances.
    """
    if not 1 <= last <= rules.MAX_CASES:
        raise InvalidInput(f"last: between 1 and {rules.MAX_CASES}")
    end = ctx.clock.now() + 1
    start = end - RECORDED_FROM_SECONDS if start is None else start
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
    found: dict[tuple[bytes, str], CaptureRecord] = {}
    for each in requests.scan(ctx, endpoint, start, end):
        of_caller = each.meta.get("purpose") != "test" and not each.meta.get("shadow")
        if of_caller and each.meta.get("status") == 200 and each.body:
            place = (each.body, str(each.meta.get("content_type") or ""))
            found.pop(place, None)
            found[place] = each
        if len(found) > 50 * last:
            found = dict(sorted(found.items(), key=_age)[: 4 * last])
    newest = [each for _, each in sorted(found.items(), key=_age)]
    cases = [case for case in map(_case, newest) if case is not None][:last]
    if not cases:
        raise NotFound(
            f"no request of {endpoint} in this time can be made a case of: it takes one of a caller that was answered "
            "200, of which [endpoint] capture kept body and answer"
        )
    wanted = {**(definition or {}), "kind": "golden", "cases": [rules.plain_case(case) for case in cases]}
    return put(ctx, actor, endpoint=endpoint, name=name, definition=wanted, source=CAPTURED)


def _age(item: tuple[tuple[bytes, str], CaptureRecord]) -> float:
    """Sorts the newest first: each gateway's log is in the order of time, all of them together are not."""
    return -float(item[1].meta["at"])


def _case(captured: CaptureRecord) -> CaseTable | None:
    """A captured request as a case; None for one that is not text."""
    kind = str(captured.meta.get("content_type") or rules.JSON_TYPE)
    try:
        answer = msgspec.json.decode(captured.answer)
        text = captured.body.decode()
        request = msgspec.json.decode(captured.body) if "json" in kind else text
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None
    if isinstance(request, str) != ("json" not in kind):
        return None
    return CaseTable(
        request=request,
        expected=answer,
        name=str(captured.meta["id"]),
        content_type="" if kind == rules.JSON_TYPE else kind,
    )


# -- from loop.toml ---------------------------------------------------------------------------------------------------


def apply_tests(ctx: Context, tx: Tx, *, actor: str, endpoint: str, loop: Loop, tree: str) -> list[dict[str, Any]]:
    """Bring an endpoint's tests to loop.toml and the files that it names; gives what changed. Tests made by hand are
    left alone."""
    changes = []
    for table in loop.tests:
        there = records.find(tx, "test", endpoint=endpoint, name=table.name)
        if there is not None and there["source"] != FROM_FILE:
            raise Conflict(f"{endpoint} has a test {table.name!r} made by hand; choose another name, or remove it")
        test = msgspec.structs.replace(table, cases=_file_cases(ctx, tree, table)) if table.file else table
        _, change = _ensure(tx, endpoint, test, actor, FROM_FILE)
        if change:
            changes.append({"noun": "test", "name": table.name, "change": change})
    wanted = {table.name for table in loop.tests}
    for row in rows_of(tx, endpoint):
        if row["source"] == FROM_FILE and row["name"] not in wanted:
            records.delete(tx, "test", row["id"], actor=actor, reason="no longer in loop.toml")
            changes.append({"noun": "test", "name": row["name"], "change": "deleted"})
    return changes


def _file_cases(ctx: Context, tree: str, table: EndpointTest) -> tuple[CaseTable, ...]:
    """The cases in a file of the project."""
    wanted = "/".join(part for part in table.file.split("/") if part != ".")
    found = next((entry for entry in folders.read_manifest(ctx.blobs, tree) if entry.path == wanted), None)
    if found is None:
        raise InvalidInput(f"[[tests]] {table.name}: the project has no {table.file!r}")
    if found.size_bytes > 2 * rules.MAX_CASES_BYTES:
        raise InvalidInput(f"{table.file}: {found.size_bytes} bytes; at most {rules.MAX_CASES_BYTES} are kept")
    text = ctx.blobs.read(found.sha256).decode("utf-8", "replace")
    cases = rules.read_cases(text, table.file)
    if not cases:
        raise InvalidInput(f"{table.file}: the file holds no case")
    return tuple(msgspec.convert(case, CaseTable) for case in cases)


# -- with the endpoint ------------------------------------------------------------------------------------------------


def react(ctx: Context, tx: Tx, event: dict[str, Any]) -> None:
    """Reaction: an endpoint that is taken away takes its tests with it."""
    if event["kind"] != "moved" or event["after"] != EndpointStatus.DELETED:
        return
    endpoint = records.find(tx, "endpoint", id=event["record"])
    if endpoint is None or endpoint["status"] != EndpointStatus.DELETED:
        return
    for row in rows_of(tx, endpoint["name"]):
        records.delete(tx, "test", row["id"], actor=event["actor"], reason="the endpoint was deleted")
