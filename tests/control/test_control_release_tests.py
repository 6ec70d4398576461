"""Runs of an endpoint's tests: over a gateway's private socket, kept with the version, told to people."""

import itertools
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from loopline.control import endpoint_tests, endpoints, events, invoking, projects, release_tests, topics, variants
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.capture import encode_record
from loopline.domain.notifications import slack_payload
from loopline.domain.states import CheckupStatus, RolloutStatus
from loopline.errors import Conflict, InvalidInput, NotFound, Timeout, Unavailable
from loopline.store import records, schema
from loopline.testing.boxes import LOOP, project
from loopline.testing.world import World

ANA = Actor("ana", "editor")
LIMITS = {"small": 1.0, "wrong": 3.0}
CASES = [
    {"request": {"instances": [{"size": size}]}, "expected": [kind]} for size, kind in ((0.5, "small"), (2, "large"))
]
GOLDEN = {"kind": "golden", "cases": CASES}
LOAD = {"kind": "load", "body": {"instances": [{"size": 2}]}, "rate": 50, "connections": 2, "seconds": 0.3}


class Gateway(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A gateway's private socket with models of one number: what a variant answers is decided by its limit."""

    daemon_threads = True

    def __init__(self, ctx: Context) -> None:
        path = ctx.settings.run_dir / "gateway-0.http.sock"
        super().__init__(str(path), Answering)
        self.limits: dict[str, float] = {"v1": 1.0, "v2": 1.0}
        self.answer: Callable[[Any], tuple[int, Any] | None] = lambda _: None  # instead of the model's
        self.asked: list[Any] = []
        self.says: str | None = None
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.server_close()
            self.thread.join()


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(self)
        variant = self.headers["x-loopline-variant"]
        status, value = self.server.answer(self) or (200, None)
        if value is None:
            rows = json.loads(body)["instances"]
            value = {"predictions": ["large" if row["size"] > self.server.limits[variant] else "small" for row in rows]}
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("x-loopline-variant", self.server.says or variant)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "data")
    endpoints.create(world.ctx, world.actor, name="boxes")
    yield world
    world.close()


@pytest.fixture
def gateway(world: World) -> Iterator[Gateway]:
    world.ctx.settings.run_dir.mkdir(mode=0o700, exist_ok=True)
    gateway = Gateway(world.ctx)
    yield gateway
    gateway.close()


def add_variant(world: World, number: int, weight: float = 0.0, status: str = "Ready") -> dict[str, Any]:
    with world.ctx.db.transaction() as tx:
        endpoint = endpoints.endpoint_row(tx, "boxes")
        version = {"id": f"ve_{number}", "number": number, "model": "boxes", "artifact": {"sha256": "0"}}
        row = variants.ensure(tx, {**endpoint, "model": "boxes"}, version, "ana")
        if status == "Ready":
            row = records.move(tx, "variant", row["id"], status, actor="ana", weight=weight)
        return row


def put(world: World, name: str, definition: dict[str, Any]) -> dict[str, Any]:
    return endpoint_tests.put(world.ctx, ANA, endpoint="boxes", name=name, definition=definition)


def ended(world: World, run: str) -> dict[str, Any]:
    def shown() -> dict[str, Any]:
        return release_tests.show(world.ctx, ANA, run=run)

    world.settle(lambda: shown()["status"] in ("Passed", "Failed", "Stopped"))
    return shown()


def rollout_to(world: World, variant: dict[str, Any]) -> dict[str, Any]:
    with world.ctx.db.transaction() as tx:
        return records.create(
            tx,
            "rollout",
            actor="ana",
            endpoint="boxes",
            kind="release",
            strategy="canary",
            variant=variant["id"],
            step=0,
            by="ana",
            decisions=[],
            plan={},
        )


def begin(world: World, rollout: dict[str, Any], stage: str) -> str | None:
    with world.ctx.db.transaction() as tx:
        return release_tests.begin(world.ctx, tx, rollout, stage)


def verdict(world: World, run: str) -> release_tests.Verdict:
    with world.ctx.db.read() as tx:
        return release_tests.verdict(world.ctx, tx, run)


# -- definitions ------------------------------------------------------------------------------------------------------


def test_a_test_is_kept_replaced_listed_and_removed(world: World) -> None:
    put(world, "known", GOLDEN)
    put(world, "busy", LOAD)
    put(world, "known", {**GOLDEN, "cases": CASES[:1]})
    listed = endpoint_tests.list_(world.ctx, ANA, endpoint="boxes")["items"]
    assert [(each["name"], each["case_count"]) for each in listed] == [("known", 1), ("busy", 0)]
    assert "cases" not in listed[0]
    shown = endpoint_tests.show(world.ctx, ANA, endpoint="boxes", name="known")
    assert shown["cases"] == CASES[:1] and shown["definition"]["relative"] == 1e-6
    endpoint_tests.delete(world.ctx, ANA, endpoint="boxes", name="known")
    with pytest.raises(NotFound, match="no test 'known'"):
        endpoint_tests.show(world.ctx, ANA, endpoint="boxes", name="known")


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"kind": "golden"}, "has no cases"),
        ({"kind": "golden", "file": "a.jsonl"}, "a file belongs to a project"),
        ({**GOLDEN, "name": "other"}, "it stands in the address"),
        ({"kind": "load", "body": 1, "seconds": 0}, "seconds cannot be 0"),
    ],
)
def test_a_definition_with_a_mistake_is_refused(world: World, definition: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        put(world, "known", definition)


def test_a_project_brings_its_tests_and_takes_them_away(world: World) -> None:
    loop = LOOP + '[endpoint]\nname = "shop"\n'
    golden = '[[tests]]\nname = "known"\nkind = "golden"\nfile = "tests/known.jsonl"\n'
    lines = "".join(json.dumps(case) + "\n" for case in CASES)

    def apply(text: str, lines: str = lines) -> list[Any]:
        files = {**project(loop_toml=text), "tests/known.jsonl": lines}
        found = projects.apply(world.ctx, ANA, tree=world.tree(files))
        return [each for each in found["changes"] if each["noun"] == "test"]

    assert apply(loop + golden) == [{"noun": "test", "name": "known", "change": "created"}]
    assert apply(loop + golden) == []
    assert endpoint_tests.show(world.ctx, ANA, endpoint="shop", name="known")["cases"] == CASES
    assert apply(loop + golden, lines * 2)[0]["change"] == "changed"
    with pytest.raises(Conflict, match=r"comes from loop\.toml"):
        endpoint_tests.put(world.ctx, ANA, endpoint="shop", name="known", definition=GOLDEN)
    with pytest.raises(InvalidInput, match=r"known\.jsonl:1: "):
        apply(loop + golden, "nonsense\n")
    assert apply(loop)[0]["change"] == "deleted"


def test_an_endpoint_takes_its_tests_with_it(world: World) -> None:
    put(world, "known", GOLDEN)
    endpoints.delete(world.ctx, world.actor, endpoint="boxes")
    world.settle(lambda: events.list_(world.ctx, ANA, noun="test")["items"][0]["kind"] == "deleted")
    endpoints.create(world.ctx, world.actor, name="boxes")
    assert endpoint_tests.list_(world.ctx, ANA, endpoint="boxes")["items"] == []


def test_captured_requests_become_cases_with_the_answers_they_got(world: World) -> None:
    now = world.ctx.clock.now()
    folder = world.ctx.settings.dir / "spool" / "gateway-0"
    folder.mkdir(parents=True)
    written = b""
    for number in range(30):
        body = json.dumps({"instances": [{"size": number % 20}]}).encode()
        meta = {"id": f"rq_{number:020}", "at": now - 60 + number, "endpoint": "boxes", "variant": "v1", "status": 200}
        meta.update({"content_type": "application/json"})
        if number == 27:
            meta["status"] = 500
        if number == 28:
            meta["purpose"] = "test"
        if number == 29:
            meta["endpoint"] = "other"
        written += encode_record(meta, body, json.dumps({"predictions": [number]}).encode())
    (folder / f"{int((now - 100) * 1000):015}.seg").write_bytes(written)
    made = endpoint_tests.record(world.ctx, ANA, endpoint="boxes", last=5, definition={"relative": 0.1})
    assert made["case_count"] == 5 and made["source"] == "captured" and made["definition"]["relative"] == 0.1
    cases = endpoint_tests.show(world.ctx, ANA, endpoint="boxes", name="recorded")["cases"]
    assert [case["expected"]["predictions"] for case in cases] == [[26], [25], [24], [23], [22]]
    with pytest.raises(NotFound, match="no request of boxes"):
        endpoint_tests.record(world.ctx, ANA, endpoint="boxes", start=now + 0.5)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_asks_the_named_variant_and_is_kept_with_its_version(world: World, gateway: Gateway) -> None:
    add_variant(world, 1, 100.0)
    add_variant(world, 2)
    put(world, "known", GOLDEN)
    put(world, "smoke", {"kind": "call", "calls": [{"body": CASES[0]["request"], "json": {"predictions[0]": "small"}}]})
    run = release_tests.start(world.ctx, ANA, endpoint="boxes", variant="v2")
    done = ended(world, run["id"])
    assert (done["status"], done["reason"]) == ("Passed", "3 checks of 2 tests passed")
    assert [result["test"] for result in done["results"]] == ["smoke", "known"]
    assert {each.headers["x-loopline-variant"] for each in gateway.asked} == {"v2"}
    assert {each.headers["x-loopline-purpose"] for each in gateway.asked} == {"test"}
    kept = release_tests.list_(world.ctx, ANA, model="boxes", number=2)["items"]
    assert [each["id"] for each in kept] == [run["id"]]
    assert release_tests.list_(world.ctx, ANA, model="boxes", number=1)["items"] == []


def test_a_wrong_answer_fails_the_run_and_is_told_so_that_a_person_understands(world: World, gateway: Gateway) -> None:
    topics.create(world.ctx, world.actor, name="news", events=["test_run.Failed"])
    topics.subscribe(world.ctx, world.actor, topic="news", kind="slack", url="https://chat.example/hook")
    add_variant(world, 2, 100.0)
    gateway.limits["v2"] = 3.0
    put(world, "known", GOLDEN)
    done = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert done["status"] == "Failed"
    assert done["results"][0]["failed"][1] == {"check": "case 2, [0]", "expected": '"large"', "got": '"small"'}

    def sent() -> list[dict[str, Any]]:
        with world.ctx.db.read() as tx:
            return tx.rows(sa.select(schema.deliveries))

    world.settle(lambda: bool(sent()))
    text = slack_payload(sent()[0]["body"])["text"]
    assert text.startswith("Test run of boxes v2 on endpoint boxes is Failed: known failed")
    assert 'known, case 2, [0]: expected "large", got "small"' in text


def test_a_load_has_its_limits(world: World, gateway: Gateway) -> None:
    add_variant(world, 1, 100.0)
    put(world, "busy", LOAD)
    good = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert good["status"] == "Passed", good["reason"]
    assert good["results"][0]["figures"]["requests"] == 15
    assert good["results"][0]["figures"]["variants"] == {"v1": 15}
    gateway.answer = lambda _: (500, {"error": {"message": "broken"}})
    bad = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert bad["status"] == "Failed" and "100.00% (15 x 500)" in bad["reason"]


def test_an_endpoint_that_has_no_room_is_asked_again(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_tests, "BUSY_SECONDS", 0.01)
    full = iter([(429, {"error": {"message": "full"}})] * 2)
    gateway.answer = lambda _: next(full, None)
    add_variant(world, 1, 100.0)
    put(world, "known", GOLDEN)
    assert ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])["status"] == "Passed"
    assert len(gateway.asked) == 4


def test_an_answer_of_another_variant_proves_nothing(world: World, gateway: Gateway) -> None:
    gateway.says = "v1"
    add_variant(world, 2, 100.0)
    put(world, "known", GOLDEN)
    put(world, "busy", LOAD)
    done = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert done["status"] == "Failed" and done["reason"].count("v2 was asked, and v1 answered") == 2


def test_a_gateway_that_dies_is_asked_again(world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_tests, "BUSY_SECONDS", 0.01)
    asked = itertools.count()

    def die_first(_: Any) -> None:
        if next(asked) < 2:
            raise Unavailable("the gateway ended while it had a request")

    monkeypatch.setattr(invoking, "invoke", _before(invoking.invoke, die_first))
    add_variant(world, 1, 100.0)
    put(world, "known", GOLDEN)
    assert ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])["status"] == "Passed"
    assert next(asked) == 4


def test_no_gateway_is_a_failed_run_and_no_hang(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_tests, "GATEWAY_SECONDS", 0.05)
    add_variant(world, 1, 100.0)
    put(world, "known", GOLDEN)
    put(world, "busy", LOAD)
    done = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert done["status"] == "Failed" and done["reason"].count("no gateway is running") == 2


def test_a_test_has_its_time_and_no_more(world: World, gateway: Gateway) -> None:
    release = threading.Event()
    gateway.answer = lambda _: (release.wait(60), None)[1]
    add_variant(world, 1, 100.0)
    put(world, "known", {**GOLDEN, "timeout_seconds": 0.2})
    done = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    release.set()
    assert done["status"] == "Failed" and "did not answer within" in done["reason"]


def test_what_cannot_be_run_is_refused(world: World) -> None:
    add_variant(world, 1, 100.0)
    add_variant(world, 2, status="Starting")
    for given, kind, message in (
        ({}, Conflict, "has no tests"),
        ({"tests": ["none"]}, NotFound, "no test 'none'"),
    ):
        with pytest.raises(kind, match=message):
            release_tests.start(world.ctx, ANA, endpoint="boxes", **given)  # type: ignore[arg-type]
    put(world, "known", GOLDEN)
    with pytest.raises(NotFound, match="no variant 'v9'"):
        release_tests.start(world.ctx, ANA, endpoint="boxes", variant="v9")
    with pytest.raises(Conflict, match="is Starting"):
        release_tests.start(world.ctx, ANA, endpoint="boxes", variant="v2")


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_rollout_has_a_verdict_before_each_step(world: World, gateway: Gateway) -> None:
    rollout = rollout_to(world, add_variant(world, 2))
    assert begin(world, rollout, release_tests.STAGING) is None
    put(world, "known", GOLDEN)
    put(world, "busy", LOAD)
    first = begin(world, rollout, release_tests.STAGING)
    assert first is not None
    assert verdict(world, first) == ("pending", "0 of 2 tests have run", [])
    release_tests.advance(world.ctx, first)
    assert verdict(world, first)[:2] == ("passed", "3 checks of 2 tests passed")
    gateway.limits["v2"] = 3.0
    second = begin(world, rollout, "50 %")
    assert second is not None
    release_tests.advance(world.ctx, second)
    found = verdict(world, second)
    assert found.status == "failed" and "case 2" in found.reason
    assert [result["test"] for result in found.report] == ["known"]  # a load is put on before the first step only
    with world.ctx.db.read() as tx:
        assert release_tests.show(world.ctx, ANA, run=second)["rollout"] == rollout["id"]
        waiting = {row["key"] for row in tx.rows(sa.select(schema.queue))}
    assert rollout["id"] in waiting  # it looks again at once


def test_a_rollout_that_turned_back_stops_its_tests(world: World, gateway: Gateway) -> None:
    rollout = rollout_to(world, add_variant(world, 2))
    put(world, "known", GOLDEN)
    run = begin(world, rollout, release_tests.STAGING)
    assert run is not None
    with world.ctx.db.transaction() as tx:
        records.move(tx, "rollout", rollout["id"], RolloutStatus.FAILED, actor="ana")
    release_tests.advance(world.ctx, run)
    assert release_tests.show(world.ctx, ANA, run=run)["status"] == "Stopped"
    assert verdict(world, run).status == "failed" and gateway.asked == []


class Killed(BaseException):
    """The end of a process in the middle of something."""


def _before(function: Callable[..., Any], first: Callable[[Any], None]) -> Callable[..., Any]:
    def wrapped(*given: Any, **options: Any) -> Any:
        first(given)
        return function(*given, **options)

    return wrapped


def test_a_run_that_was_cut_off_goes_on_behind_what_it_has(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_variant(world, 1, 100.0)
    put(world, "a", GOLDEN)
    put(world, "b", GOLDEN)
    run = release_tests.start(world.ctx, ANA, endpoint="boxes")["id"]

    asked = itertools.count()

    def die_at_the_third(_: Any) -> None:
        if next(asked) == 2:
            raise Killed

    monkeypatch.setattr(invoking, "invoke", _before(invoking.invoke, die_at_the_third))
    with pytest.raises(Killed):
        release_tests.advance(world.ctx, run)
    assert release_tests.show(world.ctx, ANA, run=run)["status"] == "Running"
    gateway.asked.clear()
    release_tests.advance(world.ctx, run)
    done = release_tests.show(world.ctx, ANA, run=run)
    assert done["status"] == "Passed" and [each["test"] for each in done["results"]] == ["a", "b"]
    release_tests.advance(world.ctx, run)  # a task that is run once more changes nothing
    moves = [each["after"] for each in events.list_(world.ctx, ANA, noun="test_run", record=run)["items"]]
    assert moves.count(CheckupStatus.PASSED) == 1


def test_a_run_that_never_ends_counts_as_failed(world: World) -> None:
    put(world, "known", GOLDEN)
    rollout = rollout_to(world, add_variant(world, 2))
    run = begin(world, rollout, release_tests.STAGING)
    assert run is not None
    with world.ctx.db.transaction() as tx:
        records.set(tx, "test_run", run, actor="ana", deadline_at=tx.now - 1)
    assert verdict(world, run)[:2] == ("failed", "the tests did not end in time")


def test_a_load_from_outside_is_kept_with_the_version_that_answered(world: World) -> None:
    add_variant(world, 1, 100.0)
    figures = {
        "requests": 10, "errors": 0, "error_share": 0.0, "statuses": {"200": 10}, "variants": {"v1": 10},
        "seconds": 1.0, "rate": 10.0, "connections": 1, "per_second": 10.0, "good_per_second": 10.0,
        "p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "p999_ms": 4.0, "max_ms": 5.0,
    }  # fmt: skip
    kept = release_tests.save_load(world.ctx, ANA, endpoint="boxes", figures=figures, limits={"max_p99_ms": 2})
    assert (kept["status"], kept["number"], kept["stage"]) == ("Failed", 1, "loadtest")
    assert kept["results"][0]["figures"]["p999_ms"] == 4.0
    for wrong, message in (
        ({"variants": {"v1": 5, "v2": 5}}, "2 variants answered"),
        ({"variants": {"v9": 1}}, "no variant 'v9'"),
        ({"p50_ms": "fast"}, "figures: "),
    ):
        with pytest.raises((InvalidInput, NotFound), match=message):
            release_tests.save_load(world.ctx, ANA, endpoint="boxes", figures={**figures, **wrong})


# -- invoking ---------------------------------------------------------------------------------------------------------


def test_an_invocation_says_what_went_wrong(world: World, gateway: Gateway) -> None:
    asked = {"purpose": "test", "timeout_seconds": 5.0}
    with pytest.raises(InvalidInput, match="cannot be asked this"):
        invoking.invoke(world.ctx, "boxes", b"{}", content_type="a\r\nx: y", **asked)  # type: ignore[arg-type]

    def hang_up(asking: Any) -> None:
        asking.connection.close()
        asking.close_connection = True
        raise ConnectionResetError

    gateway.handle_error = lambda *_: None  # type: ignore[method-assign]
    gateway.answer = hang_up
    with pytest.raises((Unavailable, Timeout)):
        invoking.invoke(world.ctx, "boxes", b"{}", **asked)  # type: ignore[arg-type]
    gateway.close()
    with pytest.raises(Unavailable, match="no gateway is running"):
        invoking.invoke(world.ctx, "boxes", b"{}", **asked)  # type: ignore[arg-type]


def test_a_call_may_take_another_route(world: World, gateway: Gateway) -> None:
    gateway.answer = lambda asking: (200, {"by": asking.path}) if asking.path == "/functions/f" else None
    add_variant(world, 2, 100.0)
    call = {"path": "/functions/f", "body": {}, "json": {"by": "/functions/f"}, "headers": {"X-Way": "there"}}
    put(world, "way", {"kind": "call", "calls": [call]})
    done = ended(world, release_tests.start(world.ctx, ANA, endpoint="boxes")["id"])
    assert done["status"] == "Passed", done["reason"]
    assert gateway.asked[0].headers["x-loopline-variant"] is None and gateway.asked[0].headers["x-way"] == "there"
