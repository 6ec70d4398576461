"""The status page: who sees it, what it shows, and that nothing in it can run."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette

from loopline.console import words
from loopline.console.app import routes
from loopline.console.sessions import LIFETIME_SECONDS, Sessions
from loopline.control import access, endpoints, shadows
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.shadows import Differences
from loopline.store import records
from loopline.store.schema import reports
from loopline.testing.asgi import Answer, ask
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    world = World(tmp_path, clock=ManualClock())
    yield world.ctx
    world.close()


@pytest.fixture
def app(ctx: Context) -> Starlette:
    return Starlette(routes=list(routes(ctx)))


def key_of(ctx: Context, role: str) -> str:
    root = Actor("root", "admin")
    access.create_user(ctx, root, name=role, role=role)
    endpoints = ["*"] if role == "invoker" else None
    return str(access.create_key(ctx, root, user=role, endpoints=endpoints)["key"])


def sign_in(app: Starlette, key: str, **headers: str) -> Answer:
    form = urlencode({"key": key}).encode()
    return ask(app, "POST", "/login", form, headers={name.replace("_", "-"): value for name, value in headers.items()})


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def page(app: Starlette, cookie: str, path: str = "/") -> Answer:
    return ask(app, "GET", path, headers={"cookie": cookie})


def fill(ctx: Context) -> None:
    """An endpoint in the middle of a canary, an execution, a version that waits, an alarm that rings."""
    with ctx.db.transaction() as tx:
        by = {"actor": "ada"}
        records.create(tx, "project", name="patients", loop={}, changed_at=tx.now, **by)
        records.create(
            tx, "endpoint", name="patients", model="patients", settings={}, status="Updating", created_by="ada", **by
        )
        for name, number, weight in (("v1", 1, 90.0), ("v2", 2, 10.0)):
            records.create(
                tx,
                "variant",
                id=f"va_{number}",
                endpoint="patients",
                name=name,
                version=f"ve_{number}",
                model="patients",
                number=number,
                weight=weight,
                instances=1,
                digest="0" * 64,
                status="Ready",
                **by,
            )
        records.create(
            tx,
            "rollout",
            endpoint="patients",
            kind="release",
            strategy="canary",
            variant="va_2",
            predecessor="va_1",
            step=1,
            by="ada",
            status="Baking",
            **by,
        )
        execution = records.create(
            tx,
            "execution",
            project="patients",
            pipeline="training",
            pipeline_version=1,
            cache=True,
            max_parallel=4,
            by="ada",
            status="Failed",
            reason=EVIL,
            **by,
        )
        for position, (name, status) in enumerate((("prepare", "Succeeded"), ("fit", "Failed"))):
            records.create(
                tx,
                "step",
                execution=execution["id"],
                name=name,
                position=position,
                kind="step",
                status=status,
                cached_from="ex_0" if status == "Succeeded" else None,
                **by,
            )
        version = records.create(
            tx, "version", model="patients", number=3, handler="predict", requested_by=EVIL, metrics={"f1": 0.9}, **by
        )
        records.create(
            tx, "evaluation", version=version["id"], model="patients", number=3, by="ada", status="Passed", **by
        )
        records.create(
            tx,
            "alarm",
            name="patients-errors",
            endpoint="patients",
            definition={"metric": "error_rate", "comparison": ">", "threshold": 0.05},
            enabled=True,
            since_at=tx.now,
            status="ALARM",
            reason="7 % of 120",
            **by,
        )


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_without_a_session_there_is_a_form_and_nothing_else(ctx: Context, app: Starlette) -> None:
    fill(ctx)
    answer = ask(app, "GET", "/")
    assert b'name="key"' in answer.body
    assert b"patients" not in answer.body


def test_a_viewer_signs_in_and_sees_the_loop(ctx: Context, app: Starlette) -> None:
    fill(ctx)
    signed_in = sign_in(app, key_of(ctx, "viewer"))
    assert (signed_in.status, signed_in.headers["location"]) == (303, "/")
    flags = signed_in.headers["set-cookie"].lower()
    assert "httponly" in flags and "samesite=strict" in flags
    shown = re.sub(r"\s+", " ", page(app, cookie_of(signed_in)).body.decode())
    for part in (
        "patients v1",
        "90 %",
        "10 %",
        "Baking",
        "patients v3",
        "release to patients v2",
        "Passed",
        "patients-errors",
        "error_rate &gt; 0.05",
    ):
        assert part in shown, part
    assert "viewer, viewer" in shown


def test_what_users_wrote_is_text_and_no_script_and_no_style_attribute_stands_in_the_page(
    ctx: Context, app: Starlette
) -> None:
    fill(ctx)
    answer = page(app, cookie_of(sign_in(app, key_of(ctx, "viewer"))))
    assert EVIL.encode() not in answer.body
    assert b"&lt;script&gt;" in answer.body
    tags = _Tags(answer.body.decode()).tags
    assert "script" not in {tag for tag, _ in tags}
    assert [name for _, attributes in tags for name in attributes if name == "style" or name.startswith("on")] == []
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def tested(ctx: Context) -> None:
    """A rollout that went back because a test failed, and later runs that passed; a shadow with its report."""
    failed = {
        "test": "known",
        "kind": "golden",
        "status": "Failed",
        "checks": 3,
        "failures": 2,
        "failed": [{"check": "case 3", "expected": EVIL, "got": '"small"'}],
        "seconds": 0.02,
        "figures": {"right": 2, "cases": 3, "expression": "x"},
    }
    differences = {"labels": [["large", "small", 4], ["small", "small", 8]], "compared": 12, "differing": 4}
    with ctx.db.transaction() as tx:
        records.create(
            tx,
            "rollout",
            actor="ada",
            endpoint="patients",
            kind="release",
            strategy="canary",
            variant="va_2",
            step=0,
            plan={"model": "patients", "number": 2, "shares": [5.0, 100.0]},
            decisions=[
                {"at": tx.now, "share": 0.0, "verdict": "back", "reason": EVIL, "figures": {"test_run": "tu_1"}},
                {"share": 5.0, "verdict": "go", "figures": {"candidate": {"requests": 7, "p99_ms": 12.345}}},
            ],
            by="ada",
            status="RolledBack",
        )
        for number, results in enumerate(([failed], [], [], [])):
            records.create(
                tx,
                "test_run",
                actor="ada",
                endpoint="patients",
                variant="va_2",
                model="patients",
                number=2,
                stage="staging",
                tests=["known"],
                results=results,
                status="Failed" if results else "Passed",
                created_at=tx.now + number,
                by="ada",
            )
        row = records.create(
            tx,
            "variant",
            actor="ada",
            endpoint="patients",
            name="dark",
            version="ve_2",
            model="patients",
            number=2,
            weight=0.0,
            shadow=25.0,
            instances=1,
            digest="0" * 64,
            status="Ready",
        )
        shadows.begin(tx, row, 25.0, "ada")
        body = {**Differences().to_dict(), **differences}
        report = {"endpoint": "patients", "variant": "dark", "kind": "shadow", "fired": False, "body": body}
        tx.execute(reports.insert().values(id=tx.new_id("mr"), start_at=tx.now, end_at=tx.now, **report))


def test_an_endpoint_s_page_shows_shares_rollouts_tests_and_what_its_shadow_would_have_said(
    ctx: Context, app: Starlette
) -> None:
    fill(ctx)
    tested(ctx)
    cookie = cookie_of(sign_in(app, key_of(ctx, "viewer")))
    assert b'href="/console/endpoints/patients"' in page(app, cookie).body
    answer = page(app, cookie, "/console/endpoints/patients")
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.body.decode()))
    for part in (
        "patients v1 90 %",
        "and copies of 25 %",
        "release (canary) to patients v2 RolledBack",
        "5 % go 7 - - 12.3",
        "Failed known golden right 2, cases 3 case 3 : expected &lt;script&gt;",
        "and 1 more",
        "4 of 12 requests were answered otherwise (33.3 %)",
        "large small 4 differs",
        "small small 8 same",
    ):
        assert part in shown, (part, shown)
    assert EVIL.encode() not in answer.body
    assert page(app, cookie, "/console/endpoints/patient").status == 404
    endpoints.create(ctx, Actor("root", "admin"), name="many", settings={"multi_model": {"memory_mb": 300}})
    many = page(app, cookie, "/console/endpoints/many").body
    assert b"at most 300 MB" in many and b"add-model many MODEL" in many and b"loopline release" not in many
    assert b'name="key"' in ask(app, "GET", "/console/endpoints/patients").body


def test_an_invoker_may_not_look(ctx: Context, app: Starlette) -> None:
    answer = sign_in(app, key_of(ctx, "invoker"))
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_a_wrong_key_opens_nothing(app: Starlette) -> None:
    answer = sign_in(app, "lk_" + "0" * 8 + "_" + "a" * 43)
    assert answer.status == 401
    assert b"unknown, expired or revoked" in answer.body


def test_each_sign_in_has_a_session_of_its_own_and_ends_the_one_before(ctx: Context, app: Starlette) -> None:
    key = key_of(ctx, "viewer")
    first = cookie_of(sign_in(app, key))
    second = cookie_of(sign_in(app, key, cookie=first))
    assert first != second
    assert b'name="key"' in page(app, first).body
    assert b"Endpoints" in page(app, second).body


def test_signing_out_ends_the_session(ctx: Context, app: Starlette) -> None:
    cookie = cookie_of(sign_in(app, key_of(ctx, "viewer")))
    assert ask(app, "POST", "/logout", headers={"cookie": cookie}).status == 303
    assert b'name="key"' in page(app, cookie).body


def test_a_revoked_key_ends_its_sessions(ctx: Context, app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(ctx, "viewer")
    cookie = cookie_of(sign_in(app, key))
    access.revoke_key(ctx, Actor("root", "admin"), key=key[3:11])
    answer = page(app, cookie)
    assert answer.status == 401
    assert b'name="key"' in answer.body


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec_fetch_site": "cross-site"}])
def test_a_form_of_another_site_is_refused(ctx: Context, app: Starlette, headers: dict[str, str]) -> None:
    assert sign_in(app, key_of(ctx, "viewer"), **headers).status == 403
    own = sign_in(app, key_of(ctx, "editor"), origin="http://testing", sec_fetch_site="same-origin")
    assert own.status == 303


def test_a_form_that_is_too_large_is_refused(app: Starlette) -> None:
    assert ask(app, "POST", "/login", b"key=" + b"x" * 5000, chunks=4).status == 400


def test_an_empty_installation_says_how_to_begin(ctx: Context, app: Starlette) -> None:
    shown = page(app, cookie_of(sign_in(app, key_of(ctx, "viewer")))).body
    assert b"loopline init my-project" in shown


def test_the_style_sheet_is_served(app: Starlette) -> None:
    assert ask(app, "GET", "/console.css").headers["content-type"].startswith("text/css")


def test_sessions_end_by_themselves() -> None:
    clock = ManualClock()
    sessions = Sessions(clock.now)
    name = sessions.begin("lk")
    clock.advance(LIFETIME_SECONDS - 1)
    assert sessions.key(name) == "lk"
    clock.advance(1)
    assert sessions.key(name) is None


def test_times_are_told_as_people_tell_them() -> None:
    assert [words.ago(0.0, now) for now in (3.21, 59, 60, 7200, 200000)] == [
        "3.2 s ago",
        "59 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]
