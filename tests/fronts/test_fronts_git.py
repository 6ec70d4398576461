"""The platform's git remote, spoken to by the real git client."""

import base64
import http.client
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from loopline.control import access, events, pushes, repositories
from loopline.fronts.git import app
from loopline.fronts.git.app import routes
from loopline.fronts.git.routes import TABLE, Route
from loopline.testing.boxes import project
from loopline.testing.world import World

PROJECT = "boxes"


class Server:
    """The routes behind a real uvicorn, as control runs them, on a TCP port."""

    def __init__(self, world: World) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        app = Starlette(routes=list(routes(world.ctx)))
        config = uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.listener.close()
        assert not self.thread.is_alive()


class Client:
    """A working copy, and git as its owner runs it."""

    def __init__(self, folder: Path, port: int, key: str, name: str = PROJECT) -> None:
        self.folder = folder
        self.url = f"http://any:{key}@127.0.0.1:{port}/git/{name}.git"
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
        }

    def git(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not ok or done.returncode == 0, done.stderr
        return done

    def begin(self, files: dict[str, str], branch: str = "main") -> str:
        self.folder.mkdir()
        self.git("init", "-q", "-b", branch)
        return self.commit(files)

    def commit(self, files: dict[str, str], message: str = "change") -> str:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def push(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.git("push", self.url, *arguments, ok=ok)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def server(world: World) -> Iterator[Server]:
    running = Server(world)
    yield running
    running.stop()


def make_key(world: World, role: str) -> str:
    access.create_user(world.ctx, world.actor, name=f"u-{role}", role=role)
    endpoints = ["*"] if role == "invoker" else None
    return str(access.create_key(world.ctx, world.actor, user=f"u-{role}", endpoints=endpoints)["key"])


@pytest.fixture
def client(world: World, server: Server, tmp_path: Path) -> Client:
    return Client(tmp_path / "work", server.port, make_key(world, "editor"))


def recorded(world: World) -> list[dict[str, Any]]:
    """Pushes, oldest first."""
    return pushes.list_(world.ctx, world.actor)["items"][::-1]


def eventually(found: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks


def children_called(name: str) -> list[str]:
    """Descendants of this process's children that run a program of this name."""
    listed = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 1) for line in listed.splitlines()]
    return [args for parent, args in lines if int(parent) == os.getpid() and args.startswith(name)]


def refs(world: World, name: str = PROJECT) -> dict[str, str]:
    listed = repositories.list_(world.ctx, world.actor)["items"]
    return next((item["branches"] for item in listed if item["project"] == name), {})


# -- pushing ----------------------------------------------------------------------------------------------------------


def test_a_first_push_makes_the_repository_and_one_push_record_with_its_commit(world: World, client: Client) -> None:
    commit = client.begin(project())
    said = client.push("main").stderr
    print(said)
    [push] = recorded(world)
    assert (push["project"], push["branch"], push["commit"]) == (PROJECT, "main", commit)
    assert (push["by"], push["source"], push["message"]) == ("u-editor", "push", "change")
    assert push["status"] == "Received" and push["dirty"] is False
    expected = (
        f"remote: loopline: push {push['id']} on main recorded; follow it with: loopline pushes show {push['id']}"
    )
    assert expected in said
    assert world.ctx.blobs.exists(push["tree"])
    assert push["tree"] == world.tree(project())  # the same files by another way are the same tree


def test_a_second_push_is_recorded_and_pushing_the_same_again_is_not(world: World, client: Client) -> None:
    client.begin(project())
    client.push("main")
    second = client.commit({"note.txt": "x"}, "second")
    client.push("main")
    assert "Everything up-to-date" in client.push("main").stderr
    assert [push["message"] for push in recorded(world)] == ["change", "second"]
    assert recorded(world)[1]["commit"] == second


def test_a_commit_that_comes_back_to_a_branch_is_the_same_push(world: World, client: Client) -> None:
    client.begin(project())
    client.push("main")
    client.push(":main")
    assert refs(world) == {}
    client.push("main")
    assert len(recorded(world)) == 1


def test_what_is_no_fast_forward_is_refused_and_starts_nothing(world: World, client: Client) -> None:
    client.begin(project())
    client.push("main")
    client.git("commit", "-q", "--amend", "-m", "another")
    refused = client.push("--force", "main", ok=False)
    assert refused.returncode != 0 and "non-fast-forward" in refused.stderr
    assert len(recorded(world)) == 1


def test_tags_and_deleted_branches_start_nothing(world: World, client: Client) -> None:
    client.begin(project())
    client.git("tag", "v1")
    client.push("main")
    client.push("v1")
    client.push("main:refs/heads/old")
    client.push(":old")
    assert [push["branch"] for push in recorded(world)] == ["main", "old"]


def test_a_branch_may_take_the_place_of_a_folder_of_branches(world: World, client: Client) -> None:
    client.begin(project())
    client.push("main:refs/heads/feature")
    client.push(":feature")
    client.push("main:refs/heads/feature/x")
    assert [push["branch"] for push in recorded(world)] == ["feature", "feature/x"]


def test_several_branches_in_one_push_are_recorded_each(world: World, client: Client) -> None:
    client.begin(project())
    client.git("branch", "dev")
    said = client.push("main", "dev").stderr
    assert sorted(push["branch"] for push in recorded(world)) == ["dev", "main"]
    assert said.count("recorded; follow it with") == 2


def test_pushes_to_two_branches_at_the_same_time_are_recorded_each_by_its_own_pusher(
    world: World, server: Server, client: Client, tmp_path: Path
) -> None:
    client.begin(project())
    other = Client(tmp_path / "other", server.port, make_key(world, "approver"))
    other.begin({**project(), "other.txt": "1"}, branch="dev")
    client.push("main")
    for round_ in range(3):
        client.commit({"a.txt": str(round_)})
        other.commit({"b.txt": str(round_)})
        threads = [threading.Thread(target=c.push, args=(b,)) for c, b in ((client, "main"), (other, "dev"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [(push["branch"], push["by"]) for push in recorded(world)]
    assert sorted(found) == [("dev", "u-approver")] * 3 + [("main", "u-editor")] * 4


def test_mistakes_in_the_loop_file_are_told_to_the_pusher_and_end_the_push(world: World, client: Client) -> None:
    client.begin({**project(), "loop.toml": '[project]\nname = "boxes"\n\n[model]\nnome = "boxes"\n'})
    said = client.push("main").stderr
    assert "remote: loopline: it starts nothing: loop.toml:5:" in said
    [push] = recorded(world)
    world.settle(lambda: recorded(world)[0]["status"] == "Rejected")
    assert "loop.toml:5:" in recorded(world)[0]["reason"]
    assert push["id"] in said


def test_a_push_without_a_loop_file_is_recorded_and_rejected(world: World, client: Client) -> None:
    client.begin({"readme.txt": "hello"})
    assert "the project has no loop.toml" in client.push("main").stderr
    world.settle(lambda: recorded(world)[0]["status"] == "Rejected")


def test_files_that_cannot_be_taken_make_a_rejected_push(world: World, client: Client) -> None:
    client.begin(project())
    (client.folder / "link").symlink_to("/etc/passwd")
    client.commit({})
    assert "link or a special file" in client.push("main").stderr
    [push] = recorded(world)
    assert push["status"] == "Rejected" and "'link'" in push["reason"]


def test_a_branch_that_moves_nothing_is_said_so(world: World, client: Client) -> None:
    client.begin(project())
    assert "the branch sandbox moves nothing" in client.push("main:refs/heads/sandbox").stderr


def test_a_push_can_be_cloned_and_fetched_by_whoever_may_read(
    world: World, server: Server, client: Client, tmp_path: Path
) -> None:
    commit = client.begin(project(), branch="master")
    client.push("master")
    reader = Client(tmp_path, server.port, make_key(world, "viewer"))
    reader.git("clone", "-q", reader.url, "copy")
    copy = Client(tmp_path / "copy", server.port, "unused")
    assert copy.git("rev-parse", "HEAD").stdout.strip() == commit
    assert "loopline" not in copy.git("ls-remote", reader.url).stdout  # our own marks are not shown


# -- who may ----------------------------------------------------------------------------------------------------------


def ask(server: Server, path: str, key: str | None = None, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    if key is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"any:{key}".encode()).decode()
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, answer.headers, text


REFS = f"/git/{PROJECT}.git/info/refs?service="


def test_a_wrong_key_is_401_and_says_how_to_show_one(world: World, server: Server, client: Client) -> None:
    for key in (None, "wrong", f"lk_{'a' * 8}_{'b' * 43}"):
        status, headers, text = ask(server, REFS + "git-receive-pack", key)
        assert status == 401 and headers["WWW-Authenticate"].startswith("Basic ")
        assert "API key" in text
    client.url = client.url.replace("any:lk_", "any:lk_0")
    client.begin(project())
    refused = client.push("main", ok=False)
    assert refused.returncode != 0 and "Authentication failed" in refused.stderr
    assert not repositories.root(world.ctx).exists()


def test_a_viewer_reads_and_may_not_push_an_invoker_may_neither(world: World, server: Server, client: Client) -> None:
    client.begin(project())
    client.push("main")
    viewer, invoker = make_key(world, "viewer"), make_key(world, "invoker")
    assert ask(server, REFS + "git-upload-pack", viewer)[0] == 200
    assert ask(server, REFS + "git-receive-pack", viewer)[0] == 403
    assert ask(server, REFS + "git-upload-pack", invoker)[0] == 403
    assert ask(server, f"/git/{PROJECT}.git/git-receive-pack", viewer, "POST")[0] == 403
    client.url = client.url.replace(client.url.split("any:")[1].split("@")[0], viewer)
    client.commit({"a": "b"})
    refused = client.push("main", ok=False)
    assert "403" in refused.stderr and "role viewer" in refused.stderr


def test_a_revoked_key_stops(world: World, server: Server) -> None:
    key = make_key(world, "editor")
    assert ask(server, REFS + "git-receive-pack", key)[0] == 200
    access.revoke_key(world.ctx, world.actor, key=key[3:11])
    assert ask(server, REFS + "git-receive-pack", key)[0] == 401


def test_a_bearer_token_is_as_good(world: World, server: Server) -> None:
    header = {"Authorization": f"Bearer {make_key(world, 'editor')}"}
    assert ask(server, REFS + "git-receive-pack", None, **header)[0] == 200


def test_a_route_without_a_permission_stops_the_start(world: World) -> None:
    with pytest.raises(TypeError, match="declares no permission"):
        routes(world.ctx, (*TABLE, Route("GET", "HEAD", "git-upload-pack", None)))


# -- what must not happen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2f..%2fetc", "a%2fb", "a..b", ".hooks", "-x", "%00", "a%0ab", "%252e%252e", "x" * 64]
)
def test_a_name_that_is_no_name_reaches_no_path(world: World, server: Server, name: str) -> None:
    before = sorted(path for path in world.ctx.settings.dir.rglob("*") if path.is_dir())
    status, _, _ = ask(server, f"/git/{name}.git/info/refs?service=git-receive-pack", make_key(world, "editor"))
    assert status in (400, 404)
    after = sorted(path for path in world.ctx.settings.dir.rglob("*") if path.is_dir())
    assert [path for path in after if path not in before] == []


@pytest.mark.parametrize("path", ["HEAD", "objects/info/packs", "config", "info/refs", "info/refs?service=git-archive"])
def test_nothing_but_smart_http_is_served(world: World, server: Server, client: Client, path: str) -> None:
    client.begin(project())
    client.push("main")
    assert ask(server, f"/git/{PROJECT}.git/{path}", make_key(world, "admin"))[0] in (400, 404)


def test_what_was_not_pushed_yet_is_not_there(world: World, server: Server) -> None:
    assert ask(server, "/git/nothing.git/info/refs?service=git-upload-pack", make_key(world, "viewer"))[0] == 404
    assert not repositories.root(world.ctx).exists()


def test_our_marks_cannot_be_pushed(world: World, client: Client) -> None:
    client.begin(project())
    refused = client.push("main:refs/loopline/seen/main", ok=False)
    assert refused.returncode != 0 and "hidden ref" in refused.stderr
    assert recorded(world) == []


def test_a_pack_beyond_the_limit_is_refused_and_leaves_nothing(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repositories, "MAX_PACK_BYTES", 1 << 20)
    client.begin(project())
    (client.folder / "large.bin").write_bytes(os.urandom(3 << 20))
    client.commit({})
    refused = client.push("main", ok=False)
    assert refused.returncode != 0
    assert recorded(world) == [] and refs(world) == {}
    left = sum(path.stat().st_size for path in repositories.path_of(world.ctx, PROJECT).rglob("*") if path.is_file())
    assert left < 1 << 20


def test_a_large_push_in_chunks_arrives_whole(world: World, client: Client) -> None:
    client.begin(project())
    large = os.urandom(5 << 20)  # beyond http.postBuffer, so that git sends it in chunks
    (client.folder / "large.bin").write_bytes(large)
    client.commit({})
    client.push("main")
    [push] = recorded(world)
    files = {entry.path: entry for entry in _manifest(world, push["tree"])}
    assert world.ctx.blobs.read(files["large.bin"].sha256) == large


def _manifest(world: World, tree: str) -> Any:
    from loopline.store import folders

    return folders.read_manifest(world.ctx.blobs, tree)


def test_the_server_s_own_git_settings_and_keys_do_not_reach_git(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "evil").write_text('[core]\n\thooksPath = "/nowhere"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "evil"))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("LOOPLINE_KEY", "secret")
    environ = repositories.environment(world.ctx)
    assert "LOOPLINE_KEY" not in environ and "GIT_DIR" not in environ
    client.begin(project())
    assert "recorded; follow it with" in client.push("main").stderr


def test_a_client_that_goes_away_in_the_middle_leaves_no_process_and_no_branch(
    world: World, server: Server, client: Client
) -> None:
    client.begin(project())
    client.push("main")
    key = client.url.split("any:")[1].split("@")[0]
    token = base64.b64encode(f"any:{key}".encode()).decode()
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            f"POST /git/{PROJECT}.git/git-receive-pack HTTP/1.1\r\nhost: x\r\nauthorization: Basic {token}\r\n"
            "content-type: application/x-git-receive-pack-request\r\ncontent-length: 1000000\r\n\r\n00".encode()
        )
        notes = repositories.root(world.ctx) / ".pending"
        eventually(lambda: any(notes.iterdir()))
    eventually(lambda: not any(notes.iterdir()))
    assert len(recorded(world)) == 1
    eventually(lambda: children_called("git") == [])


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_a_branch_that_moved_before_a_crash_is_recorded_by_the_next_start_once(
    world: World, server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.begin(project())
    with monkeypatch.context() as broken:
        broken.setattr(repositories, "record", _die)
        said = client.push("main").stderr
        eventually(lambda: not world.ctx.cache["git receiving"])
    assert "will be recorded in a moment" in said
    assert recorded(world) == [] and list(refs(world)) == ["main"]
    world.ctx.cache.clear()  # what a new process knows
    repositories.sweep(world.ctx)
    assert [(push["branch"], push["by"]) for push in recorded(world)] == [("main", "u-editor")]
    repositories.sweep(world.ctx)
    assert len(recorded(world)) == 1
    assert list((repositories.root(world.ctx) / ".pending").iterdir()) == []


def _die(*_: Any) -> list[str]:
    raise OSError("the disk is gone")


def test_a_crash_between_the_record_and_the_mark_records_nothing_twice(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.begin(project())
    with monkeypatch.context() as broken:
        original = repositories._update

        def stop_at_mark(ctx: Any, repository: Path, commands: list[str]) -> None:
            if commands:
                raise OSError("killed here")
            original(ctx, repository, commands)

        broken.setattr(repositories, "_update", stop_at_mark)
        client.push("main")
        eventually(lambda: not world.ctx.cache["git receiving"])
    assert len(recorded(world)) == 1
    world.ctx.cache.clear()
    repositories.sweep(world.ctx)
    assert len(recorded(world)) == 1
    created = [
        event for event in events.list_(world.ctx, world.actor, noun="push")["items"] if event["kind"] == "created"
    ]
    assert len(created) == 1


def test_a_repository_without_a_note_is_looked_at_when_the_process_starts(world: World, client: Client) -> None:
    client.begin(project())
    client.push("main")
    repository = repositories.path_of(world.ctx, PROJECT)
    subprocess.run(["git", f"--git-dir={repository}", "branch", "dev", "main"], check=True)
    repositories.sweep(world.ctx)
    world.ctx.cache["git swept"] = False
    repositories.sweep(world.ctx)
    assert [push["branch"] for push in recorded(world)] == ["main", "dev"]


def test_a_slow_recording_does_not_hold_the_pusher_up(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.begin(project())
    going = threading.Event()
    original = repositories.record

    def slow(*given: Any) -> list[str]:
        assert going.wait(300)
        return original(*given)

    monkeypatch.setattr(repositories, "record", slow)
    monkeypatch.setattr(app, "ANSWER_SECONDS", 0.2)
    try:
        said = client.push("main").stderr
    finally:
        going.set()
    assert "is being recorded" in said
    eventually(lambda: len(recorded(world)) == 1)


# -- two branches -----------------------------------------------------------------------------------------------------


def test_each_branch_moves_only_its_own_model_and_endpoint(world: World, client: Client) -> None:
    from loopline.control import endpoints, registry
    from loopline.testing.boxes import LOOP, follow

    loop = LOOP + '\n[endpoint]\nname = "boxes"\n'
    client.begin(project(loop_toml=loop), branch="dev")

    def models() -> dict[str, int]:
        return {row["name"]: row["last_version"] for row in registry.list_models(world.ctx, world.actor)["items"]}

    def served() -> set[str]:
        return {row["name"] for row in endpoints.list_(world.ctx, world.actor)["items"]}

    client.push("dev")
    assert follow(world, recorded(world)[-1]["id"])["status"] == "Succeeded"
    assert models() == {"boxes-dev": 1} and served() == {"boxes-dev"}
    client.push("dev:refs/heads/feature-x")
    assert follow(world, recorded(world)[-1]["id"])["status"] == "Succeeded"
    assert models() == {"boxes-dev": 1, "boxes-feature-x": 1} and served() == {"boxes-dev"}
    client.push("dev:refs/heads/main")  # merged
    assert follow(world, recorded(world)[-1]["id"])["status"] == "Succeeded"
    assert models() == {"boxes": 1, "boxes-dev": 1, "boxes-feature-x": 1} and served() == {"boxes", "boxes-dev"}
    client.push("dev:refs/heads/sandbox")
    world.settle(lambda: recorded(world)[-1]["status"] == "Ignored")
    assert models() == {"boxes": 1, "boxes-dev": 1, "boxes-feature-x": 1}
